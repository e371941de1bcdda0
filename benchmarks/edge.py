"""The edge: how fast the simulator is, how soon the drone stands when a process is killed, what the reflex saves.

python benchmarks/edge.py [--quick] writes benchmarks/results/edge.json (`make bench-edge`).

Stopping is measured on the simulator's own log, on the virtual clock (many times, every phase) and in real time with
the real processes killed by SIGKILL, beside processes that keep every core busy.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nav_msgs_ext.msg import DroneState

from airsim_bridge.testing.graph import BridgeProcess, Operator, Simulator, await_, own_domain
from airsim_bridge.testing.lockstep import Lockstep
from airsim_sim.simulation import Simulation
from airsim_sim.world import load_world
from nav_common.contract import (
    COMMAND_DURATION_S,
    COMMAND_PERIOD_S,
    STANDSTILL_M_S,
    ZERO_VELOCITY_WITHIN_S,
)
from nav_common.data import Twist
from nav_common.testing import free_port
from nav_eval import machine

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks/results/edge.json"
SPEED_M_S = 2.0
# A flight at an obstacle begins this far from it, on a line that the reflex sees from the start.
RUN_UP_M = 12.0
CRUISE_M = 1.5


def simulator_speed(seconds: float) -> dict[str, float]:
    """Colour at 320x240 and depth at 160x120 of every frame while flying at 200 Hz physics, in one process."""
    simulation = Simulation(load_world("field", 1))
    simulation.call("enableApiControl", True, "")
    simulation.call("armDisarm", True, "")
    simulation.set_pose((0.0, 0.0, 2.0))
    simulation.render("front_center", "scene")
    frames, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        simulation.call(
            "moveByVelocityBodyFrame",
            *(1.0, 0.0, 0.0, COMMAND_DURATION_S),
            *(0, {"is_rate": True, "yaw_or_rate": 20.0}, ""),
        )
        simulation.step(1 / 30)
        simulation.render("front_center", "scene")
        simulation.render("front_center", "depth_planar")
        frames += 1
    return {"sim_fps": frames / (time.perf_counter() - start)}


def lockstep_speed(seconds: float) -> dict[str, float]:
    """The whole edge with pictures at 10 Hz and depth at 5 Hz, and the same flight again: its path must be the same."""
    factors, paths = [], []
    for _ in range(2):
        flight = Lockstep(image_rate_hz=10.0, depth_rate_hz=5.0, reflex=True)
        flight.place(0.0, 0.0, 2.0)
        began, start = flight.clock.now(), time.perf_counter()
        for k in range(round(seconds / 2.0)):
            flight.stream(2.0, Twist.body(1.0, 0.2 * (k % 3), 0.1, 0.3))
        factors.append((flight.clock.now() - began) / (time.perf_counter() - start))
        paths.append(flight.simulation.log.rows()[:, 1:4])
    return {
        "lockstep_realtime_factor": max(factors),
        "path_difference_m": float(abs(paths[0] - paths[1]).max()),
    }


def kills_virtual(count: int) -> dict[str, Any]:
    """The sender stops: on the virtual clock, at every phase against the gate's period."""
    chance = random.Random(1)
    flight = Lockstep()
    flight.place(0.0, 0.0, 20.0)
    zeros, stands = [], []
    for _ in range(count):
        flight.clock.sleep(chance.uniform(0.0, 0.05))
        direction = chance.uniform(-math.pi, math.pi)
        speed = chance.uniform(0.5, 5.0)
        twist = Twist.body(speed * math.cos(direction), speed * math.sin(direction))
        flight.stream(chance.uniform(0.2, 1.2), twist)
        last = flight.clock.now() - COMMAND_PERIOD_S
        before = flight.speed
        flight.clock.sleep(2.0)
        zero = flight.first_zero(last)
        zeros.append(zero - last)
        rows = flight.simulation.log.rows()[-600:]
        moving = rows[(rows[:, 4:7] ** 2).sum(axis=1) > STANDSTILL_M_S**2]
        stands.append((float(moving[-1, 0]) - zero if len(moving) else 0.0) - before / 6.0)
        if math.hypot(*flight.simulation.position[:2]) > 100.0:
            flight.place(0.0, 0.0, 20.0)
    # Standstill comes after v/a (a = 6 m/s^2), and the controller's last bit, which is exponential.
    return {"kills": count, "hover_s_max": max(zeros), "standstill_after_v_over_a_s_max": max(stands)}


@contextlib.contextmanager
def every_core_busy() -> Iterator[None]:
    """One process that computes for each core."""
    workers = [multiprocessing.Process(target=_compute, daemon=True) for _ in range(os.cpu_count() or 1)]
    for worker in workers:
        worker.start()
    try:
        yield
    finally:
        for worker in workers:
            worker.terminate()


def _compute() -> None:
    os.nice(5)  # as perception is, beside the bridge
    while True:
        sum(range(100_000))


SENDER = """
import sys, time
from airsim_bridge.testing.graph import Operator, await_
operator = Operator()
print("ready", flush=True)
sys.stdin.readline()
await_(lambda: operator.state and operator.odometry)
while True:
    operator.command({speed})
    time.sleep({period})
"""


def sender() -> subprocess.Popen[str]:
    """A process that streams a motion once it gets a line on its input, until it is killed."""
    script = SENDER.format(speed=SPEED_M_S, period=COMMAND_PERIOD_S)
    return subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def kills_of_the_sender(count: int) -> dict[str, Any]:
    """The process that commands is killed in flight, in real time, every core busy."""
    own_domain()
    simulator, operator = Simulator(), Operator()
    bridge = BridgeProcess(
        simulator.port, frame_timeout_s=0.0, reflex=False, image_rate_hz=2.0, depth_rate_hz=0.0
    )
    spare = sender()
    hovers, stands = [], []
    try:
        operator.take_off()
        with every_core_busy():
            for k in range(count):
                simulator.simulation.set_pose((0.0, 0.0, 10.0), 40.0 * k)
                operator.await_state(lambda s: s.gate_mode == DroneState.GATE_HOLD, 40.0)
                process, spare = spare, sender()
                assert process.stdout is not None
                assert process.stdin is not None
                process.stdout.readline()
                process.stdin.write("go\n")
                process.stdin.flush()
                await_(lambda: simulator.speed() > 0.7 * SPEED_M_S, 40.0)
                killed, before = simulator.time_s, simulator.speed()
                process.kill()
                process.wait()
                await_(lambda: simulator.speed() < STANDSTILL_M_S, 10.0)
                stood = simulator.time_s
                zero = simulator.moving_demand_ends(killed)
                hovers.append(
                    zero - killed + COMMAND_PERIOD_S
                )  # its last command was at most a period before
                stands.append(stood - zero - before / 6.0)
    finally:
        spare.kill()
        bridge.end()
        operator.close()
        simulator.stop()
    return {"kills": count, "hover_s_max": max(hovers), "standstill_after_v_over_a_s_max": max(stands)}


def kills_of_the_bridge(count: int) -> dict[str, Any]:
    """The bridge itself is killed in flight: AirSim's own command duration must stop the drone."""
    own_domain()
    simulator, operator = Simulator(), Operator()
    hovers, stands = [], []
    bridge = BridgeProcess(simulator.port, reflex=False)
    try:
        operator.take_off()
        for _ in range(count):
            operator.await_state(lambda s: s.connected and s.gate_mode == DroneState.GATE_HOLD, 40.0)
            end = time.monotonic() + 20.0
            while simulator.speed() < 0.8 * SPEED_M_S and time.monotonic() < end:
                operator.command(-SPEED_M_S if simulator.simulation.position[0] > 8.0 else SPEED_M_S)
                time.sleep(COMMAND_PERIOD_S)
            killed, before = simulator.time_s, simulator.speed()
            bridge.kill()
            await_(lambda: simulator.speed() < STANDSTILL_M_S, 10.0)
            stood = simulator.time_s
            zero = simulator.moving_demand_ends(killed - COMMAND_PERIOD_S)
            hovers.append(zero - killed + COMMAND_PERIOD_S)
            stands.append(stood - zero - before / 6.0)
            operator.forget()
            bridge = BridgeProcess(simulator.port, reflex=False)
            await_(lambda: operator.state and operator.odometry, 60.0)
    finally:
        bridge.end()
        operator.close()
        simulator.stop()
    return {"kills": count, "hover_s_max": max(hovers), "standstill_after_v_over_a_s_max": max(stands)}


def run_ups(
    simulation: Simulation, count: int, chance: random.Random
) -> Iterator[tuple[float, float, float]]:
    """(north, west, yaw in degrees) of places from which an obstacle lies straight ahead, clear of all others."""
    solid = [o for o in simulation.world.objects if o.radius > 0.05 and o.kind not in ("hill", "strip")]
    found = 0
    while found < count:
        target = chance.choice(solid)
        bearing = chance.uniform(-math.pi, math.pi)
        away = target.radius + RUN_UP_M
        x = target.position[0] - away * math.cos(bearing)
        y = target.position[1] - away * math.sin(bearing)
        if all(math.dist((x, y), o.position[:2]) > o.radius + 2.0 for o in solid):
            found += 1
            yield x, y, math.degrees(bearing)


def reflex_lockstep(flights: int) -> dict[str, Any]:
    """Straight at obstacles at 1 to 5 m/s."""
    chance = random.Random(2)
    contacts = interventions = 0
    seeds = max(flights // 20, 1)
    for seed in range(1, seeds + 1):
        flight = Lockstep(seed=seed, reflex=True, depth_rate_hz=5.0)
        for x, y, yaw_deg in run_ups(flight.simulation, flights // seeds, chance):
            flight.place(x, y, CRUISE_M, yaw_deg)
            speed = chance.uniform(1.0, 5.0)
            before = len(flight.simulation.collisions)
            flight.stream((RUN_UP_M + 4.0) / speed + 2.0, Twist.body(speed))
            contacts += len(flight.simulation.collisions) > before
            flight.clock.sleep(1.0)
        assert flight.bridge.reflex is not None
        interventions += flight.bridge.reflex.interventions
    return {"flights": flights, "contacts": contacts, "interventions": interventions}


def reflex_real_time(flights: int) -> dict[str, Any]:
    """The same with the real node, at 5 m/s."""
    own_domain()
    simulator, operator = Simulator(), Operator()
    bridge = BridgeProcess(simulator.port)
    contacts = 0
    try:
        operator.take_off()
        for x, y, yaw_deg in run_ups(simulator.simulation, flights, random.Random(3)):
            simulator.simulation.set_pose((x, y, CRUISE_M), yaw_deg)
            time.sleep(1.0)
            before = len(simulator.simulation.collisions)
            operator.stream(6.0, 5.0)
            contacts += len(simulator.simulation.collisions) > before
            time.sleep(1.0)
    finally:
        bridge.end()
        operator.close()
        simulator.stop()
    return {"flights": flights, "contacts": contacts}


def bridge_load(seconds: float) -> dict[str, float]:
    """The share of a core that the node takes at 640x480 and 20 Hz, the pictures' rate and age at a subscriber, and the
    latest tick of the gate, by its own clock."""
    own_domain()
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "settings.json"
        capture = [{"ImageType": 0, "Width": 640, "Height": 480, "FOV_Degrees": 90}]
        settings.write_text(json.dumps({"CameraDefaults": {"CaptureSettings": capture}}))
        command = [sys.executable, "-m", "airsim_sim", "--port", str(port), "--settings", str(settings)]
        simulator = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        operator = Operator()
        bridge = BridgeProcess(port, image_rate_hz=20.0)
        try:
            await_(lambda: len(operator.images) > 40, 60.0)
            operator.images.clear()
            operator.latencies_s.clear()
            operator.diagnostics.clear()
            before, start = processor_time(bridge.process.pid), time.monotonic()
            time.sleep(seconds)
            elapsed = time.monotonic() - start
            share = (processor_time(bridge.process.pid) - before) / elapsed
            images, ages = len(operator.images), sorted(operator.latencies_s)
            ticks_late_ms = [float(late) for late in operator.diagnostic("gate tick late ms")]
        finally:
            bridge.end()
            operator.close()
            simulator.terminate()
            simulator.wait()
    return {
        "bridge_core_share": share,
        "image_hz": images / elapsed,
        "image_age_ms_p50": 1e3 * ages[len(ages) // 2],
        "gate_tick_late_ms_max": max(ticks_late_ms),
    }


def processor_time(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of everything, nothing written")
    quick = parser.parse_args().quick
    part = 10 if quick else 1
    result: dict[str, Any] = {
        "machine": machine.describe(),
    }
    result |= simulator_speed(20.0 / part)
    result |= lockstep_speed(60.0 / part)
    result |= bridge_load(20.0 / part)
    kills = {
        "virtual": kills_virtual(1000 // part),
        "sender": kills_of_the_sender(100 // part),
        "bridge": kills_of_the_bridge(20 // part),
    }
    result["gate"] = {
        "kills": sum(parts["kills"] for parts in kills.values()),
        "hover_s_max": max(parts["hover_s_max"] for parts in kills.values()),
        "parts": kills,
    }
    flown = {"lockstep": reflex_lockstep(200 // part), "real_time": reflex_real_time(10 // part)}
    result["reflex"] = {
        "flights": sum(parts["flights"] for parts in flown.values()),
        "contacts": sum(parts["contacts"] for parts in flown.values()),
        "parts": flown,
    }
    text = json.dumps(result, indent=2)
    print(text)
    if not quick:
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_text(text + "\n")
    failures = [
        f"{name} is {value:.3g}, must be {bound}"
        for name, value, ok, bound in (
            (
                "hover_s_max",
                result["gate"]["hover_s_max"],
                result["gate"]["hover_s_max"] <= ZERO_VELOCITY_WITHIN_S,
                f"at most {ZERO_VELOCITY_WITHIN_S}",
            ),
            ("reflex contacts", result["reflex"]["contacts"], not result["reflex"]["contacts"], "0"),
            (
                "path_difference_m",
                result["path_difference_m"],
                result["path_difference_m"] <= 1e-9,
                "at most 1e-9",
            ),
        )
        if not ok
    ]
    for failure in failures:
        print(f"edge: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
