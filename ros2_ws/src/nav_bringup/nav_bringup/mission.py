"""One mission from nothing: starts the graph, sends the mission, shows it, records it, judges it (`make fly`).

    python -m nav_bringup.fly --scene field --seed 2 --mission "fly to the red beacon"
    python -m nav_bringup.fly --side edge --link tls/gpu.example.org:7447 --certificates DIR      (on one machine)
    python -m nav_bringup.fly --side server --link tls/0.0.0.0:7447 --certificates DIR            (on the other)

leaves in `runs/<time>/`: `summary.json`, the recording `flight/`, `pictures/`, the processes' logs, however the mission
ends (Ctrl-C, SIGTERM and a closed terminal included; not SIGKILL). The last line of output is the summary's path.
Without `--mission` the embedded simulator's scene says where to fly, as in an evaluation. With `--mission-file` (see
`mission_file`) it flies the file's missions one after another. A file's missions, and any of several instructions, are
flown with a memory bank; several instructions leave `mapping.json` too (`mapping_0.json` and so on where there are
several missions), and the frames that were archived.
Exit status: 0 when the pilot itself ended the mission, its limits included; CONFIGURATION_ERROR for a wrong argument or
parameter; 1 otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import rclpy
from nav_msgs_ext.srv import Prime
from rclpy.utilities import try_shutdown

from airsim_sim import instructions
from airsim_sim.world import Goal, World, WorldError, load_world
from nav_agent.navigator import GoalRejected, Navigator
from nav_bringup import mission_file, runner
from nav_bringup.graph import ArgumentError, deployment
from nav_bringup.mission_file import PlannedMission
from nav_bringup.runner import POLL_S, commands, run_folder
from nav_bringup.supervisor import Supervisor
from nav_bringup.terminal import Terminal
from nav_bringup.watch import Watch
from nav_common import topics
from nav_common.data import NavigateFeedback, NavigateState, Odometry, Outcome
from nav_common.frames import ned_from_enu
from nav_common.process import CONFIGURATION_ERROR, StopSignals
from nav_common.topics import PRIME_SERVICE
from nav_eval import flight_pictures, summary
from nav_eval.bags import BagError
from nav_eval.flight_log import load
from nav_eval.flight_view import view_of_recording
from nav_eval.ground_truth import GroundTruth, Truth
from nav_eval.html_pages import flight_page
from nav_eval.judge import judge
from nav_eval.summary import NoOutcome

# A cold start reads 2 GB of libraries from the disk; a warm one takes under 20 s.
READY_TIMEOUT_S = 180.0
# Above the agent's own time limit, in case it never answers.
FEEDBACK_TIMEOUT_S = 60.0
CANCEL_TIMEOUT_S = 5.0
ATTEMPT_S = 3.0
LINK_HERE = "here"
MONITOR_PAGE = "http://127.0.0.1:6006/"
OF_THE_FIELD = "fly to the red beacon"
"""What the default scene asks for: the mission where the simulator is elsewhere and none is given."""
# Outcomes that the pilot itself brought about, its limits included.
PILOT_OUTCOMES = (Outcome.FINISHED, Outcome.STEP_LIMIT, Outcome.TIME_LIMIT, Outcome.STUCK)


@dataclass(frozen=True)
class End:
    """How the mission ended, and the exit status for it."""

    outcome: Outcome | NoOutcome
    reason: str
    exit_status: int = 1


class _Stopped(Exception):
    """The mission cannot start or go on."""

    def __init__(self, outcome: Outcome | NoOutcome, reason: str, exit_status: int = 1) -> None:
        super().__init__(reason)
        self.end = End(outcome, reason, exit_status)


def main(words: Sequence[str] | None = None) -> int:
    options = _options(words)
    terminal = Terminal()
    began = time.monotonic()
    try:
        scene = _scene(options)
        planned = _planned(options, scene)
        world = _judged(scene, planned)
        if options.side == "edge":
            return runner.main(_edge_words(options, world))
        folder, lines = _prepare(options, planned)
    except (ArgumentError, WorldError) as error:
        print(f"fly: {error}", file=sys.stderr)
        return CONFIGURATION_ERROR
    stop = StopSignals()
    if options.monitor:
        terminal.say(f"monitoring page: {MONITOR_PAGE} (once the model is loaded)")
    supervisor = Supervisor(lines, folder / "log", lambda line: terminal.say(f"  {line}"))
    truth = _follow_truth(options, world)
    mission = _Mission(options, planned, folder, supervisor, stop, terminal, began)
    try:
        supervisor.start()
        end = mission.fly()
    except _Stopped as stopped:
        end = stopped.end
    except Exception as error:  # a fault of this program must not cost the flight its summary
        terminal.say(traceback.format_exc())
        end = End(Outcome.ERROR, f"{type(error).__name__}: {error}")
    finally:
        terminal.status("ending: agent, perception, bridge, simulator", key="ending")
        truth.stop()
        seen = max(stop.count, 1)
        supervisor.stop(kill_now=lambda: stop.count > seen)
        terminal.end_status()
    facts = {"mission": planned[-1].text, **_setting(options, truth), "start_s": mission.start_s}
    if options.mission_file:
        facts["missions"] = mission.ends
    _report(folder, facts, end, truth, scene, world, terminal)
    return end.exit_status


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m nav_bringup.fly", description="Flies one mission from nothing."
    )
    parser.add_argument(
        "--mission", help="where to fly, in words (default: what the embedded simulator's scene asks for)"
    )
    parser.add_argument(
        "--mission-file", type=Path, help="missions instead: a .txt (an instruction a line) or a .jsonl"
    )
    parser.add_argument("--scene", default="field", help="scene of the embedded simulator")
    parser.add_argument("--seed", default="1", help="seed of the scene")
    parser.add_argument("--set", default="", help="parameters of the scene, as colour=blue")
    parser.add_argument(
        "--model",
        default=os.environ.get("QWEN_MODEL_PATH", ""),
        help="folder of a Qwen2.5-VL model (default: QWEN_MODEL_PATH, else the shipped pilot)",
    )
    parser.add_argument(
        "--vision",
        default="engine",
        help="what sees: engine (default), lmstudio, ollama, cloud, or auto: as `python -m nav_server policy` says",
    )
    parser.add_argument("--params-file", default="", help="YAML file of the nodes' parameters")
    parser.add_argument(
        "--airsim-host", default="", help="host of a running AirSim (default: embedded simulator)"
    )
    parser.add_argument("--airsim-port", default=41451, type=int, help="port of AirSim's RPC")
    parser.add_argument(
        "--goal", default="", help="object of the AirSim scene that is to be reached, for judging"
    )
    parser.add_argument(
        "--time-limit", default=0.0, type=float, help="seconds (default: the agent's own limit)"
    )
    parser.add_argument(
        "--max-decisions", default=0, type=int, help="decisions (default: the agent's own limit)"
    )
    parser.add_argument(
        "--side",
        default="both",
        choices=("both", "edge", "server"),
        help="of two machines: the edge serves its drone until Ctrl-C, the server flies the mission with it",
    )
    parser.add_argument(
        "--link",
        nargs="?",
        default="",
        const=LINK_HERE,
        metavar="ADDRESS",
        help="alone: edge and server apart on this machine, with the link between; with --side: its address, at the "
        "server as tls/0.0.0.0:7447, at the edge as tls/host:7447",
    )
    parser.add_argument(
        "--certificates", default="", help="folder of this machine's certificates for the link"
    )
    parser.add_argument(
        "--internet", default="", help="what the link crosses: lan, wan, uplink, slow, cut, or a probe's file"
    )
    parser.add_argument(
        "--monitor", action="store_true", help=f"serve the monitoring page while it flies: {MONITOR_PAGE}"
    )
    parser.add_argument("--runs", default=Path("runs"), type=Path, help="where the flight's folder is made")
    return parser.parse_args(words)


def _planned(options: argparse.Namespace, scene: World | None) -> list[PlannedMission]:
    """What is to be flown, in order."""
    if options.mission_file:
        return mission_file.read(options.mission_file)
    if options.mission is not None:
        if not options.mission.strip():
            raise ArgumentError('mission is empty: say where to fly, as MISSION="fly to the red beacon"')
        return [PlannedMission((options.mission,))]
    if scene is None:
        return [PlannedMission((OF_THE_FIELD,))]
    asked = tuple(one.text for one in instructions.mission(scene))
    if not asked:
        raise ArgumentError(
            f'scene {scene.name!r} has no `instructions`: add them to its file, or give MISSION="fly to ..."'
        )
    return [PlannedMission(asked)]


def _bank(options: argparse.Namespace, planned: Sequence[PlannedMission]) -> str:
    """Perception's memory_bank: for several instructions, or a mission file."""
    if any(len(mission.instructions) > 1 for mission in planned):
        return "several"
    return "one" if options.mission_file else "off"


def _scene(options: argparse.Namespace) -> World | None:
    """The embedded simulator's world; None with a real AirSim, or a simulator at another machine."""
    if (options.side == "both") == (options.link not in ("", LINK_HERE)):
        raise ArgumentError(
            f"side is {options.side!r} and link {options.link!r}: one of two machines needs the link's address, as "
            "--side server --link tls/0.0.0.0:7447, or --side edge --link tls/host:7447; one machine takes --link alone"
        )
    if options.internet and options.side != "both":
        raise ArgumentError(f"internet is {options.internet!r}: two machines have one of their own")
    if options.airsim_host or options.side == "server":
        return None
    parameters = dict(item.partition("=")[::2] for item in options.set.split(",") if item)
    if not options.seed.isdigit():
        raise ArgumentError(f"seed is {options.seed!r}, must be a whole number from 0")
    return load_world(options.scene, int(options.seed), **parameters)


def _judged(scene: World | None, planned: Sequence[PlannedMission]) -> World | None:
    """The world for judging and the map: its goal is the object that the last instruction names."""
    if scene is None:
        return None
    named = instructions.named_last(scene, planned[-1].instructions[-1])
    return replace(scene, goals=(Goal(named, scene.object(named).position),) if named else ())


def _edge_arguments(options: argparse.Namespace) -> dict[str, str]:
    return {
        "scene": options.scene,
        "seed": options.seed,
        "scene_parameters": options.set,
        "airsim_host": options.airsim_host,
        "airsim_port": str(options.airsim_port),
    }


def _edge_words(options: argparse.Namespace, world: World | None) -> list[str]:
    """What the runner starts at the edge: no mission, but the truth for the server's judge: where what it names is."""
    arguments = {
        **_edge_arguments(options),
        "params_file": options.params_file,
        "link": options.link,
        "certificates": options.certificates,
        "truth": (world.goal.name if world and world.goals else options.goal) or "unknown",
    }
    return ["--side", "edge", *(f"{name}:={value}" for name, value in arguments.items() if value)]


def _prepare(options: argparse.Namespace, planned: Sequence[PlannedMission]) -> tuple[Path, list[Any]]:
    """The run's folder and the graph's command lines; the folder is made only when all else is right."""
    arguments = {
        "memory_bank": _bank(options, planned),
        "model": options.model,
        "vision": options.vision,
        "params_file": options.params_file,
        "certificates": options.certificates,
        "http": "true" if options.monitor else "false",
        "http_runs": str(options.runs),
    }
    if options.side == "server":
        graph = deployment("server")
        arguments["link"] = options.link
    else:
        graph = deployment("full_stack")
        link = "true" if options.link else "false"
        arguments |= {**_edge_arguments(options), "link": link, "internet": options.internet}
    commands(graph, arguments)
    folder = run_folder(options.runs)
    return folder, commands(graph, {**arguments, "record": str(folder / "flight")})


class LinkTruth(Truth):
    """The truth that the edge tells over the link, where it was started to; read at `stop`."""

    def __init__(self) -> None:
        super().__init__()
        self._watch = Watch(None, {topics.TRUTH: Odometry, topics.TRUTH_GOAL: Odometry}, "fly_truth")

    def stop(self) -> None:
        for odometry in self._watch.of(topics.TRUTH):
            self.add(ned_from_enu(odometry.position))
        for odometry in self._watch.of(topics.TRUTH_GOAL):
            self.goal = ned_from_enu(odometry.position)
        self._watch.close()


def _follow_truth(options: argparse.Namespace, world: World | None) -> GroundTruth | LinkTruth:
    if options.side == "server":
        return LinkTruth()
    host = options.airsim_host or "127.0.0.1"
    return GroundTruth(host, options.airsim_port, "" if world else options.goal)


TRUTH_MISSING = (
    "missing: the edge tells none (start it with truth:=NAME, or by make fly ARGS='--side edge ...')"
)


def _setting(options: argparse.Namespace, truth: Truth) -> dict[str, Any]:
    model = options.model or "shipped pilot"
    if options.side == "server":
        told = "over the link" if truth.track else TRUTH_MISSING
        return {"edge": f"at the other end of {options.link}", "truth": told, "model": model}
    if options.airsim_host:
        return {"airsim": f"{options.airsim_host}:{options.airsim_port}", "model": model}
    return {
        "scene": options.scene,
        "seed": int(options.seed),
        "scene_parameters": options.set,
        "model": model,
    }


DECISIONS_EACH = 15
"""Most decisions of each of several instructions (chosen: an expert takes 3 to 12)."""


class _Mission:
    """Sends the missions to the graph that comes up, one after another, and watches them until their end."""

    def __init__(
        self,
        options: argparse.Namespace,
        planned: Sequence[PlannedMission],
        folder: Path,
        supervisor: Supervisor,
        stop: StopSignals,
        terminal: Terminal,
        began: float,
    ) -> None:
        self._options = options
        self._planned = planned
        self._folder = folder
        self._supervisor = supervisor
        self._stop = stop
        self._terminal = terminal
        self._began = began
        self.start_s: float | None = None
        """From the beginning to the acceptance of the first mission, s."""
        self.ends: list[dict[str, Any]] = []
        """How each mission ended."""

    def fly(self) -> End:
        """Raises _Stopped."""
        rclpy.init(signal_handler_options=rclpy.signals.SignalHandlerOptions.NO)
        try:
            with Navigator("fly") as navigator:
                self._await_perception()
                for number, mission in enumerate(self._planned):
                    self._send(navigator, mission)
                    try:
                        end = self._watch(navigator)
                    except _Stopped:
                        self._cancel(navigator)
                        raise
                    self._keep_end(number, mission, end)
                    if end.exit_status:
                        break
                return end
        finally:
            try_shutdown()

    def _keep_end(self, number: int, mission: PlannedMission, end: End) -> None:
        """How it ended, and of several missions what the memory knew then."""
        self.ends.append({"mission": mission.text, "outcome": end.outcome.name.lower(), "reason": end.reason})
        mapping = self._folder / "mapping.json"
        if len(self._planned) > 1 and mapping.exists():
            shutil.copyfile(mapping, self._folder / f"mapping_{number}.json")

    def _await_perception(self) -> None:
        """The model takes longest to load, and a goal sent before would wait for it and may time out."""
        node = rclpy.create_node("fly_readiness")
        try:
            prime = node.create_client(Prime, PRIME_SERVICE)
            while not prime.service_is_ready():
                self._starting("perception to load its model")
        finally:
            node.destroy_node()

    def _send(self, navigator: Navigator, mission: PlannedMission) -> None:
        waiting, sent, count = "the agent", False, len(mission.instructions)
        began = self._began if self.start_s is None else time.monotonic()
        while not sent:
            self._starting(waiting, began)
            try:
                navigator.fly(
                    *mission.instructions,
                    switch_frame_indices=mission.switch_frame_indices,
                    max_decisions=self._options.max_decisions or (DECISIONS_EACH * count if count > 2 else 0),
                    time_limit_s=self._options.time_limit,
                    timeout_s=ATTEMPT_S,
                )
                sent = True
            except TimeoutError:
                pass
            except GoalRejected as rejection:
                waiting = f"the agent ({rejection})"
        took_s = round(time.monotonic() - began, 1)
        self.start_s = took_s if self.start_s is None else self.start_s
        self._terminal.say(f"mission {mission.text!r} accepted after {took_s} s")

    def _starting(self, what: str, began: float | None = None) -> None:
        """One period of waiting for the graph to come up."""
        seconds = time.monotonic() - (self._began if began is None else began)
        if seconds > READY_TIMEOUT_S:
            raise _Stopped(NoOutcome.NOT_STARTED, f"after {READY_TIMEOUT_S:g} s still waiting for {what}")
        self._tick(f"{seconds:5.1f} s  waiting for {what}", what)

    def _watch(self, navigator: Navigator) -> End:
        agent = self._supervisor.pid("nav_agent")
        received_s = begin = time.monotonic()
        decisions = Decisions()
        while not navigator.is_done():
            if unread := navigator.unread_feedback():
                received_s = time.monotonic()
            self._say_finished(decisions, unread)
            self._tick(_shown(navigator.feedback(), time.monotonic() - begin), "flying")
            if self._supervisor.pid("nav_agent") != agent:
                raise _Stopped(
                    NoOutcome.AGENT_LOST,
                    "nav_agent ended in flight and its goal with it; the gate holds the drone",
                )
            if time.monotonic() - received_s > FEEDBACK_TIMEOUT_S:
                raise _Stopped(
                    NoOutcome.AGENT_LOST, f"no feedback from the agent for {FEEDBACK_TIMEOUT_S:g} s"
                )
        self._say_finished(decisions, navigator.unread_feedback())
        for line in decisions.last():
            self._terminal.say(line)
        result = navigator.result(timeout_s=0.0)
        return End(result.outcome, result.reason, 0 if result.outcome in PILOT_OUTCOMES else 1)

    def _say_finished(self, decisions: Decisions, unread: Sequence[NavigateFeedback]) -> None:
        for feedback in unread:
            for line in decisions.finished(feedback):
                self._terminal.say(line)

    def _cancel(self, navigator: Navigator) -> None:
        """Before the processes end: the agent commands hover, instead of the gate's timeout."""
        navigator.cancel()
        with contextlib.suppress(TimeoutError, RuntimeError):
            navigator.result(timeout_s=CANCEL_TIMEOUT_S)

    def _tick(self, status: str, key: object) -> None:
        """One period of waiting: keep the graph running, update the terminal, notice a reason to stop."""
        self._supervisor.poll()
        if self._supervisor.failure:
            raise _Stopped(Outcome.ERROR, self._supervisor.failure, CONFIGURATION_ERROR)
        self._terminal.status(status, key)
        if self._stop.wait(POLL_S) or self._terminal.lost:
            raise _Stopped(Outcome.CANCELLED, "interrupted by a signal or a closed terminal")


class Decisions:
    """A line for each decision, once its result is there: it stays, above the line that changes."""

    def __init__(self) -> None:
        self._number, self._call, self._result = 0, "", ""

    def finished(self, feedback: NavigateFeedback) -> list[str]:
        """The lines that `feedback` completes. While a call is under way the result is still the one before's."""
        if not feedback.decisions:
            return []
        lines = self.last() if feedback.decisions != self._number else []
        self._number, self._call = feedback.decisions, feedback.last_tool_call
        if feedback.state is not NavigateState.MOVING:
            self._result = feedback.last_result
        return lines

    def last(self) -> list[str]:
        """The line of the decision that was seen last, once."""
        if not self._number:
            return []
        line = f"#{self._number:<3} {self._call:34} {self._result}".rstrip()
        self._number, self._call, self._result = 0, "", ""
        return [line]


def _shown(feedback: NavigateFeedback | None, seconds: float) -> str:
    """Within 80 columns."""
    if feedback is None:
        return f"{seconds:5.0f} s  accepted"
    return (
        f"{seconds:5.0f} s  {feedback.state.name.lower():10} #{feedback.decisions:<3} "
        f"frame {feedback.frame_age_s:4.1f} s old  cache {feedback.cache_use:4.0%}"
    )


def _report(
    folder: Path,
    facts: Mapping[str, Any],
    end: End,
    truth: Truth,
    scene: World | None,
    world: World | None,
    terminal: Terminal,
) -> None:
    """Judge the recording; write summary and pictures; print the result. scene: as the instructions mean it; world:
    with the last one's goal."""
    bag = folder / "flight"
    flight = report = None
    try:
        flight = load(bag)
        report = judge(flight)
    except BagError as error:
        terminal.say(f"no recording to judge: {error}")
    distance_m = _distance_m(truth, world)
    path_m = flight.path_m if flight and not truth.track else truth.path_m
    ends = summary.instruction_ends(flight, scene) if flight and scene else []
    figures = summary.summarize(flight, report, end.outcome, end.reason, path_m, distance_m, ends)
    path = folder / "summary.json"
    path.write_text(json.dumps({**figures, **facts}, indent=2) + "\n")
    shots = folder / "pictures"
    shots.mkdir()
    if flight:
        flight_pictures.write_frames(bag, flight, shots)
        title, shown = f"Flight {folder.name}", viewer_facts(figures, facts)
        viewer = flight_page(view_of_recording(bag, world), title, shown)
        (folder / "flight.html").write_text(viewer, encoding="utf-8")
    if world:
        cv2.imwrite(str(shots / "map.png"), flight_pictures.draw_map(world, truth.track))
    if report and report.breaches:
        terminal.say(report.text(most=5))
    terminal.say(summary.text(figures))
    if facts.get("truth") == TRUTH_MISSING:
        terminal.say(f"truth       {TRUTH_MISSING}")
    terminal.say(f"pictures    {shots}")
    if flight:
        terminal.say(f"viewer      {folder / 'flight.html'}")
    terminal.say(str(path))


def viewer_facts(figures: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, str]:
    """What the viewer says above a flight: words with units, and nothing that is empty."""
    said = {
        name.replace("_", " "): value for name, value in facts.items() if name not in ("missions", "start_s")
    }
    ends = [f"{end['mission']}: {end['outcome']} ({end['reason']})" for end in facts.get("missions", ())]
    if len(ends) > 1:
        said["mission"] = "; ".join(ends)
    if facts["start_s"] is not None:
        said["started"] = f"{facts['start_s']} s after the command"
    shown = {"mission": said.pop("mission"), **summary.rows(figures), **said}
    return {name: str(value) for name, value in shown.items() if value not in ("", None)}


def _distance_m(truth: Truth, world: World | None) -> float | None:
    """From where the flight ended to what was named, m; None where that is not known."""
    if not world:
        return truth.distance_m
    if not world.goals or not truth.track:
        return None
    north, east, _ = truth.track[-1]
    return world.object(world.goal.name).distance_m((north, -east))


if __name__ == "__main__":
    sys.exit(main())
