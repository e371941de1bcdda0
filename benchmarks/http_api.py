"""The HTTP API under load: `make bench-http` writes benchmarks/results/http.json, part by part (`--only growth drone`).

- latency: requests of one client, a 50 KB JPEG of 640x480 each; `append_beyond_engine_ms` is what the engine did not
  need, by the answer's Server-Timing; the same after the process with the model was killed and came back.
- growth: an hour's worth of the four-action client (7,200 frames, 720 decisions) without its pauses; MiB of resident
  memory that the process with the model has more at its end than after a tenth of it.
- drone: the flying drone's decisions, p95, beside eight clients at its pace, over those without them; one
  process, windows in turn.
- flights: the four-action client flies the field on evaluation seeds in lock-step, with steps of 10 degrees and 1 m
  (`--large-steps`: 30 degrees and 4 m), and the agent itself on the same seeds; real_time: one flight by the clock.
- fallback: the whole graph flies on a genuine `transformers serve`, which is killed by SIGKILL while it decides; from
  the kill to the next backend's decision, and what gate and simulated drone did until then. The server needs
  `pip install accelerate==1.15.0`.
- hover_watch: watches marked `hover` are left with the memory while the drone moves, a question and its contrary, so
  that one is true; from its event to the last moment at which the drone was still told to move.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import cv2
import httpx2
import numpy as np
import psutil

from airsim_sim.model import TIMESTEP_S
from nav_common.testing import free_port
from nav_eval import machine

T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent
MISSION = "fly to the red beacon"
START_LIMIT_S = 900.0
FPS = 0.5  # so that the shipped pilot, which takes a frame each 2 s, takes each
SEEDS = range(2001, 2011)


def jpeg() -> str:
    """A picture of 640x480 of about 50 KB, in base64."""
    pixels = np.random.default_rng(1).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    data = cv2.imencode(".jpg", cv2.GaussianBlur(pixels, (0, 0), 1.8), [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    return base64.b64encode(data.tobytes()).decode()


class Client:
    """Requests of one client, with their latencies; what is not answered by 200 is an error."""

    def __init__(self, address: str, name: str = "") -> None:
        self.append_ms: list[float] = []
        self.beyond_engine_ms: list[float] = []
        self.decide_ms: list[float] = []
        self.errors = 0
        self._http = httpx2.Client(
            base_url=address, timeout=60.0, headers={"X-Client-Id": name} if name else {}
        )
        self._frame = jpeg()

    def append(self, fps: float = FPS) -> None:
        began = time.perf_counter()
        answer = self._post("/append_frame", {"frame_b64": self._frame, "fps": fps})
        if answer is not None:
            self.append_ms.append(1e3 * (time.perf_counter() - began))
            engine_ms = float(answer.headers["server-timing"].partition("dur=")[2])
            self.beyond_engine_ms.append(self.append_ms[-1] - engine_ms)

    def decide(self) -> None:
        began = time.perf_counter()
        if self._post("/decide", {"question": MISSION}) is not None:
            self.decide_ms.append(1e3 * (time.perf_counter() - began))

    def _post(self, path: str, body: dict[str, Any]) -> httpx2.Response | None:
        try:
            answer = self._http.post(path, json=body)
        except httpx2.TransportError:
            self.errors += 1
            return None
        if answer.status_code != 200:
            self.errors += 1
            return None
        return answer

    def figures(self) -> dict[str, Any]:
        return {
            "append_ms": spread(self.append_ms),
            "append_beyond_engine_ms": spread(self.beyond_engine_ms),
            "decide_ms": spread(self.decide_ms),
            "errors": self.errors,
        }


def spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "mean": statistics.fmean(values),
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "stdev": statistics.stdev(values),
        "p95": p95(values),
        "count": len(values),
    }


def p95(values: Sequence[float]) -> float:
    return float(np.percentile(values, 95))


@contextlib.contextmanager
def server(*arguments: str) -> Iterator[tuple[str, psutil.Process]]:
    """`python -m nav_server serve`: its address and its process, once it is healthy."""
    port = free_port()
    command = [sys.executable, "-m", "nav_server", "serve", "--port", str(port), "--requests-per-s", "10000"]
    command += ["--set", "local_vision_provider=engine"]  # whatever else runs on this machine
    process = subprocess.Popen([*command, *arguments])
    address = f"http://127.0.0.1:{port}"
    try:
        wait_healthy(address)
        yield address, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(60)


def wait_healthy(address: str, on_answer: Callable[[dict[str, Any]], None] = lambda health: None) -> None:
    end_s = time.monotonic() + START_LIMIT_S
    while time.monotonic() < end_s:
        with contextlib.suppress(httpx2.TransportError):
            health = httpx2.get(f"{address}/health", timeout=30.0).json()
            on_answer(health)
            if health["status"] != "unhealthy":
                return
        time.sleep(0.1)
    raise SystemExit(f"{address} is not healthy after {START_LIMIT_S:g} s")


def measure(address: str, appends: int, decides: int) -> Client:
    warm = Client(address)
    for _ in range(10):
        warm.append()
        warm.decide()
    client = Client(address)
    for number in range(max(appends, decides)):
        if number < appends:
            client.append()
        if number < decides:
            client.decide()
    return client


def bench_latency() -> dict[str, Any]:
    with server() as (address, process):
        before = measure(address, 200, 100).figures()
        (model,) = process.children()
        killed_s, answers = time.monotonic(), []
        model.kill()
        wait_healthy(address, lambda health: answers.append(health["status"]))
        outage_s = time.monotonic() - killed_s
        after = measure(address, 200, 100).figures()
        return {
            **before,
            "before_fault": before,
            "after_fault": after,
            "fault": {"outage_s": outage_s, "health_answers_meanwhile": len(answers)},
        }


def bench_growth(frames: int = 7200) -> dict[str, Any]:
    with server() as (address, process):
        client, warm_bytes = Client(address), 0
        (model,) = process.children()
        for number in range(frames):
            client.append(fps=2.0)
            if number % 10 == 9:
                client.decide()
            if number == frames // 10:
                warm_bytes = model.memory_info().rss
        grown = model.memory_info().rss - warm_bytes
        return {"rss_growth": grown / 2**20, "growth_frames": frames, "growth_errors": client.errors}


def bench_drone(window_s: float = 20.0, windows: int = 3) -> dict[str, Any]:
    """In this process: the model's thread, the drone's stream on it, and the HTTP API; the clients in another."""
    from nav_agent import toolset
    from nav_common.data import CompressedImage, GenerateGoal, GenerateStatus, PrimeRequest
    from nav_server.service import Service
    from nav_server.testing.serving import SETTINGS, running

    backends = shipped_pilot()
    clock = backends.clock
    drone = backends.stream(priority=1)
    prompt = drone.submit_prime(PrimeRequest(backends.system_prompt, toolset.tools_json()))
    assert prompt.wait(60.0)
    picture = base64.b64decode(jpeg())

    def decisions(seconds: float) -> list[float]:
        """The drone looks twice a second and decides each time, ms from the request to the call."""
        end_s, took_ms = time.monotonic() + seconds, []
        while time.monotonic() < end_s:
            began_s = clock.now()
            drone.submit_frame(CompressedImage(began_s, picture))
            goal = GenerateGoal(prompt.result.prompt_id, MISSION, temperature=0.1, earliest_frame_s=began_s)
            ticket = drone.submit_generate(goal)
            assert ticket.wait(30.0)
            assert ticket.result.status is GenerateStatus.OK
            took_ms.append(1e3 * (clock.now() - began_s))
            time.sleep(max(0.0, 0.5 - (clock.now() - began_s)))
        return took_ms

    alone: list[float] = []
    beside: list[float] = []
    errors = 0
    decisions(3.0)
    with running(Service(backends, SETTINGS)) as address:
        for _ in range(windows):
            alone += decisions(window_s)
            command = [sys.executable, __file__, "--clients", address, "--seconds", str(window_s + 20)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as clients:
                assert clients.stdout is not None
                clients.stdout.readline()  # they have begun
                beside += decisions(window_s)
                clients.terminate()
                errors += int(clients.stdout.read() or 0)
    return {
        "drone_decision_p95_ratio": p95(beside) / p95(alone),
        "drone_decision_ms": {"alone": spread(alone), "beside_8_clients": spread(beside)},
        "drone_client_errors": errors,
    }


def shipped_pilot() -> Any:
    """On a thread of its own, which has begun."""
    import torch

    from nav_common.clock import WallClock
    from nav_pilot import model_folder
    from nav_server.backends.factory import Backends, Served
    from vlm_perception.engine import QwenModel
    from vlm_perception.guard import Guard
    from vlm_perception.scheduler import ModelThread
    from vlm_perception.serving_form import ServingForm

    torch.set_num_threads(1)
    form = ServingForm.load(model_folder())
    thread = ModelThread(lambda error: os._exit(1))
    model = QwenModel.load(model_folder(), size=(form.width, form.height))
    thread.start()
    return Backends([Served(model, form, "pilot", thread)], WallClock(), Guard())


def run_clients(address: str, seconds: float, count: int = 8) -> None:
    """The four-action client's requests at its pace, `count` times, until the time is over or SIGTERM."""
    import signal

    clients = [Client(address, f"client-{number}") for number in range(count)]
    ended = threading.Event()

    def run(client: Client, offset_s: float) -> None:
        if ended.wait(offset_s):
            return
        for number in range(round(2 * seconds)):
            client.append(fps=2.0)
            if number % 10 == 9:
                client.decide()
            if ended.wait(0.5):
                return

    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    threads = [threading.Thread(target=run, args=(c, 0.5 * i / count)) for i, c in enumerate(clients)]
    for thread in threads:
        thread.start()
    time.sleep(2.0)
    print("begun", flush=True)
    for thread in threads:
        thread.join()
    print(sum(client.errors for client in clients), flush=True)


def bench_flights(large_steps: bool, seeds: Sequence[int] = SEEDS) -> dict[str, Any]:
    from nav_eval.episodes import Control, EpisodeFlyer, EpisodeSettings
    from nav_pilot import model_folder
    from nav_server.service import Service
    from nav_server.testing.airsim_nav_client import ClientSettings
    from nav_server.testing.flights import SMALL_STEPS, fly
    from nav_server.testing.serving import SETTINGS, running

    settings = ClientSettings() if large_steps else SMALL_STEPS
    service = Service(shipped_pilot(), SETTINGS)
    graph = EpisodeFlyer(model_folder(), EpisodeSettings(MISSION))
    flights: list[dict[str, Any]] = []
    with running(service) as address, httpx2.Client(base_url=address) as http:
        for seed in seeds:
            flown = fly(http, seed, MISSION, settings)
            flights.append(
                {
                    "seed": seed,
                    "success": flown.success,
                    "distance_m": round(flown.distance_m, 2),
                    "contacts": flown.contacts,
                    "said_reached": flown.said_reached,
                    "decisions": len(flown.flight.decisions),
                    "errors": flown.flight.errors,
                    "graph_success": graph.fly("field", seed, "streaming", Control.NONE)["success"]["2m"],
                }
            )
            print(flights[-1], flush=True)
    name = "flights_large_steps" if large_steps else "flights"
    counts = {key: sum(bool(flight[key]) for flight in flights) for key in ("success", "graph_success")}
    return {name: {"of": len(flights), **counts, "flights": flights}}


def bench_real_time(seed: int = 2002) -> dict[str, Any]:
    """One flight in real time: the embedded simulator's process, AirSim's RPC, the HTTP API's processes."""
    from airsim_bridge.client import AirSimClient
    from nav_common.clock import WallClock
    from nav_server.testing.airsim_nav_client import NavClient
    from nav_server.testing.flights import SMALL_STEPS, finished

    port = free_port()
    simulator = subprocess.Popen(
        [sys.executable, "-m", "airsim_sim", "--scene", "field", "--seed", str(seed), "--port", str(port)]
    )
    try:
        with server() as (address, _), httpx2.Client(base_url=address) as http:
            rpc = AirSimClient("127.0.0.1", port)
            rpc.call("enableApiControl", True, "")
            rpc.call("armDisarm", True, "")
            rpc.call("takeoff", 20.0, "", timeout_s=25.0)
            client = NavClient(http, rpc, WallClock(), MISSION, SMALL_STEPS)
            began_s = time.monotonic()
            flight = client.run(lambda: finished(client.flight) is not None)
            collided = rpc.call("simGetCollisionInfo", "")["has_collided"]
            return {
                "real_time_flight": {
                    "seed": seed,
                    "seconds": round(time.monotonic() - began_s, 1),
                    "decisions": len(flight.decisions),
                    "errors": flight.errors,
                    "finished": finished(flight),
                    "collided": bool(collided),
                }
            }
    finally:
        simulator.terminate()
        simulator.wait(20)


class Flown:
    """The whole graph around a simulator in this process, and what is heard of it; flies a goal after the other."""

    def __init__(self) -> None:
        import rclpy
        from rclpy.executors import SingleThreadedExecutor

        from airsim_bridge.testing.graph import Simulator, own_domain
        from nav_agent.testing.graph import Watcher
        from nav_common import topics
        from nav_common.data import EngineStatus, WatchEvent
        from nav_common.ros import from_ros, subscription

        own_domain()
        rclpy.init()
        self.simulator = Simulator()
        self.seen = Watcher()
        self.backends: list[str] = []
        self.events: list[WatchEvent] = []
        subscription(
            self.seen,
            topics.ENGINE_STATUS,
            "",
            lambda m: self.backends.append(from_ros(EngineStatus, m).backend),
        )
        subscription(self.seen, topics.WATCH_EVENT, "", lambda m: self.events.append(from_ros(WatchEvent, m)))
        self.under_way = False
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.seen)
        threading.Thread(target=self._executor.spin, daemon=True).start()

    def close(self) -> None:
        self._executor.shutdown()
        self.simulator.stop()

    def fly_until(self, navigator: Any, condition: Callable[[], T], limit_s: float = 120.0) -> T:
        """Returns what the condition gives once that is true. A goal that ends before is followed by another, from the
        start."""
        from nav_agent.navigator import GoalRejected

        end_s = time.monotonic() + limit_s
        while not (found := condition()):
            assert time.monotonic() < end_s, (
                f"not within {limit_s:g} s; {self.seen.state}, {self.seen.goal_states[-1:]}, {self.seen.decisions[-3:]}"
            )
            if not self.under_way or navigator.is_done():
                if not self.simulator.simulation.on_ground:
                    self.simulator.simulation.set_pose((0.0, 0.0, 2.0))
                self.under_way = False
                with contextlib.suppress(TimeoutError, GoalRejected):
                    navigator.fly(MISSION, timeout_s=5.0)
                    self.under_way = True
            time.sleep(0.002)
        return found

    def told_to_move(self, from_s: float, until_s: float) -> list[tuple[float, bool]]:
        """(s after `from_s`, whether a velocity was demanded) of each step of the simulated drone; Unix time."""
        offset_s = time.time() - self.simulator.time_s
        demands = self.simulator.moving_demands(from_s - offset_s)
        return [(at - from_s + offset_s, told) for at, told in demands if at < until_s - offset_s]

    def await_no_demand(self, from_s: float) -> float:
        """How long after `from_s` the drone was told to move, s."""
        end_s = time.monotonic() + 10.0
        while time.monotonic() < end_s:
            for at, told in self.told_to_move(from_s, time.time()):
                if not told:
                    return at
            time.sleep(0.02)
        raise AssertionError("told to move for 10 s")


def bench_fallback(kills: int = 5) -> dict[str, Any]:
    """The next backend is the shipped pilot. A dead one is tried again after 30 s: a kill takes that long."""
    from graph import graph

    from nav_agent.navigator import Navigator
    from nav_server.backends.fallback import RETRY_AFTER_S
    from nav_server.testing import tiny_llava
    from nav_server.testing.transformers_server import TransformersServer

    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        model, server = Path(folder) / "model", TransformersServer(Path(folder))
        tiny_llava.make(model, '{"name": "turn_left", "arguments": {"angle_deg": 30}}')
        server.start()
        ask_once(server.url, model)
        flown = Flown()
        settings = {
            "LMSTUDIO_HOST": server.url,
            "LMSTUDIO_MODEL": str(model),
            "OLLAMA_HOST": "http://127.0.0.1:9",
        }
        try:
            with graph(flown.simulator, "vision:=lmstudio", **settings), Navigator("bench") as navigator:
                for number in range(kills):
                    killed_s = kill_in_mid_decision(flown, navigator, server)
                    rows.append(after_kill(flown, navigator, killed_s))
                    print(rows[-1], flush=True)
                    if number < kills - 1:
                        navigator.cancel()
                        server.start()
                        ask_once(server.url, model)
                        time.sleep(max(0.0, killed_s + RETRY_AFTER_S + 1.0 - time.time()))
        finally:
            server.kill()
            flown.close()
    return {
        "fallback": {
            "kills": kills,
            "decision_of_the_next_s": spread([row["next_decision_s"] for row in rows]),
            "told_to_move_s_max": max(row["told_to_move_s"] for row in rows),
            "commands_to_move": sum(row["commands_to_move"] for row in rows),
            "in_mid_request": sum(row["in_mid_request"] for row in rows),
            "gate_meanwhile": sorted({gate for row in rows for gate in row["gate"]}),
            "each": rows,
        }
    }


def ask_once(url: str, model: Path) -> None:
    """The server loads its model with the first request."""
    picture = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{jpeg()}"}}
    words = {"type": "text", "text": "go"}
    body = {"model": str(model), "messages": [{"role": "user", "content": [picture, words]}], "max_tokens": 4}
    httpx2.post(f"{url}/chat/completions", json=body, timeout=120.0).raise_for_status()


def kill_in_mid_decision(flown: Flown, navigator: Any, server: Any) -> float:
    """Unix time of the kill: the server computes on a request of a flight whose decisions it makes."""
    from nav_common.data import GenerateStatus

    def decided() -> bool:
        ours = flown.backends and flown.backends[-1].startswith("lmstudio")
        return bool(ours) and any(d.status is GenerateStatus.OK for d in flown.seen.decisions[before:])

    def spent_s() -> float:
        return sum(process.cpu_times()[:2])

    before, process = len(flown.seen.decisions), psutil.Process(server.process.pid)
    flown.fly_until(navigator, decided)
    idle_s = spent_s()
    flown.fly_until(navigator, lambda: spent_s() > idle_s + 0.02)
    killed_s = time.time()
    server.kill()
    return killed_s


def after_kill(flown: Flown, navigator: Any, killed_s: float) -> dict[str, Any]:
    """What came of the decision under way, when the next one was there, and what the drone did until then. Where the
    answer had left the server already, the time counts from the ask that found it dead."""
    from nav_common.data import GenerateStatus

    def after() -> list[Any]:
        """The decision that failed, and those that follow."""
        since = [decision for decision in flown.seen.decisions if decision.stamp_s > killed_s]
        failed = [number for number, decision in enumerate(since) if decision.status is not GenerateStatus.OK]
        return since[failed[0] :] if failed else []

    flown.fly_until(navigator, lambda: any(decision.status is GenerateStatus.OK for decision in after()))
    failed, next_one = after()[0], next(d for d in after() if d.status is GenerateStatus.OK)
    met_s = max(killed_s, failed.ask_stamp_s)
    states = [state for state in flown.seen.states if met_s < state.stamp_s < next_one.stamp_s]
    commands = [command for command in flown.seen.commands if met_s < command.stamp_s < next_one.stamp_s]
    told = flown.told_to_move(met_s, next_one.stamp_s)
    return {
        "next_decision_s": round(next_one.stamp_s - met_s, 3),
        "in_mid_request": failed.ask_stamp_s < killed_s,
        "failed": failed.message,
        "backend": flown.backends[-1],
        "gate": sorted({f"{state.gate_mode.name}: {state.gate_reason}" for state in states}),
        "gate_states": len(states),
        "commands": len(commands),
        "commands_to_move": sum(not command.twist.is_hover for command in commands),
        "told_to_move_s": round(sum(moving for _, moving in told) * TIMESTEP_S, 3),
    }


def bench_hover_watch(stops: int = 10) -> dict[str, Any]:
    from graph import MOVING_M_S, graph
    from nav_msgs_ext.srv import Watch

    from nav_agent.navigator import Navigator
    from nav_common import topics
    from vlm_perception.prompting import WAY_FREE_QUESTION

    flown = Flown()
    rows: list[dict[str, Any]] = []
    watch = flown.seen.create_client(Watch, topics.WATCH_SERVICE)
    contrary = [WAY_FREE_QUESTION, f"no: {WAY_FREE_QUESTION}"]

    def leave(owner: str, questions: list[str]) -> None:
        answered = threading.Event()
        request = Watch.Request(owner=owner, hover_watches=questions)
        watch.call_async(request).add_done_callback(lambda _: answered.set())
        assert answered.wait(10.0), "the watches were not taken"

    try:
        with graph(flown.simulator), Navigator("bench") as navigator:
            for number in range(stops):
                flown.fly_until(
                    navigator,
                    lambda: (
                        flown.simulator.speed() > MOVING_M_S and flown.simulator.simulation.velocity[2] < 0.3
                    ),
                )
                states, events = len(flown.seen.states), len(flown.events)
                leave(f"bench-{number}", contrary)
                stopped = flown.fly_until(
                    navigator,
                    lambda: next(
                        (s for s in flown.seen.states[states:] if s.gate_reason.startswith("watch:")),  # noqa: B023
                        None,
                    ),
                )
                leave(f"bench-{number}", [])
                assert stopped is not None, "the gate did not stop it"
                event = next(event for event in flown.events[events:] if event.holds and event.hover)
                stopped_s = flown.await_no_demand(event.stamp_s)
                rows.append(
                    {
                        "watch": event.watch,
                        "cost_ms": round(event.cost_ms, 1),
                        "gate_mode_before": flown.seen.states[states - 1].gate_mode.name,
                        "gate_mode": stopped.gate_mode.name,
                        "gate_reason": stopped.gate_reason,
                        "to_gate_s": round(stopped.stamp_s - event.stamp_s, 3),
                        "told_to_move_s": round(stopped_s, 3),
                    }
                )
                print(rows[-1], flush=True)
                flown.under_way = False  # each from the start: later the pilot may circle for minutes
    finally:
        flown.close()
    return {
        "hover_watch": {
            "stops": stops,
            "told_to_move_s": spread([row["told_to_move_s"] for row in rows]),
            "each": rows,
        }
    }


PARTS = ("latency", "growth", "drone", "flights", "real_time", "fallback", "hover_watch")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--large-steps", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/http.json")
    parser.add_argument("--clients", metavar="URL", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=60.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.clients:
        run_clients(options.clients, options.seconds)
        return
    benches: dict[str, Callable[[], dict[str, Any]]] = {
        "latency": bench_latency,
        "growth": bench_growth,
        "drone": bench_drone,
        "flights": lambda: bench_flights(options.large_steps),
        "real_time": bench_real_time,
        "fallback": bench_fallback,
        "hover_watch": bench_hover_watch,
    }
    results = json.loads(options.out.read_text()) if options.out.exists() else {}
    for part in options.only:
        results.update(benches[part]())
        results["machine"] = machine.describe()
        results.setdefault("load_average", {})[part] = round(os.getloadavg()[0], 1)
        options.out.write_text(json.dumps(results, indent=1) + "\n")
        print(part, "done", flush=True)
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
