"""The programs' entry points: a Ctrl-C while their imports run ends them without a traceback."""

from __future__ import annotations

import signal
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from nav_common.testing import INTERRUPTIBLE_SLEEP

# Stands for the seconds in which torch and rclpy are imported.
SLOW_IMPORT = """
import importlib, runpy, sys
class SlowImport:
    def find_spec(self, name, path=None, target=None):
        if name == {slow!r}:
            print("importing", flush=True)
            import time; {sleep}
sys.meta_path.insert(0, SlowImport())
module, _, function = {entry!r}.partition(":")
if function:
    getattr(importlib.import_module(module), function)()
else:
    runpy.run_module(module, run_name="__main__")
"""


# The programs of the packages, and the import that is slow.
SLOW = {
    ("airsim_bridge", "airsim_bridge"): "airsim_bridge.node",
    ("airsim_bridge", "edge"): "airsim_bridge.bridge",
    ("airsim_bridge", "record_flight"): "airsim_bridge.bridge",
    ("airsim_sim", "airsim_sim"): "airsim_sim.command",
    ("nav_agent", "nav_agent"): "nav_agent.node",
    ("nav_bringup", "fly"): "nav_bringup.mission",
    ("nav_eval", "play"): "nav_eval.node",
    ("nav_eval", "record"): "nav_eval.node",
    ("nav_eval", "truth"): "nav_eval.node",
    ("nav_server", "served_perception"): "nav_server.node",
    ("vlm_perception", "vlm_perception"): "vlm_perception.node",
    ("zenoh_link", "zenoh_link"): "zenoh_link.node",
}
# Command lines that import what they need before their main: a Ctrl-C meanwhile is Python's own KeyboardInterrupt.
COMMAND_LINES = {
    ("nav_agent", "fly"),
    ("nav_bringup", "monitor"),
    ("nav_bringup", "run"),
    ("nav_eval", "nav_eval"),
    ("nav_server", "nav_server"),
    ("zenoh_link", "link_tool"),
}
PACKAGES = {path.parent.name for path in Path(__file__).parents[2].glob("*/setup.py")}
PROGRAMS = {
    (package, point.name): point.value
    for point in entry_points(group="console_scripts")
    if point.dist and (package := point.dist.name.replace("-", "_")) in PACKAGES
}


def test_every_program_of_the_packages_is_tried_here_or_is_a_command_line() -> None:
    assert set(PROGRAMS) == {*SLOW, *COMMAND_LINES}


@pytest.mark.parametrize(
    ("entry", "slow"),
    [
        *((PROGRAMS[program], slow) for program, slow in SLOW.items()),
        ("nav_eval.start:live", "nav_eval.node"),  # `python -m nav_eval live`
        # python -m
        ("airsim_bridge.edge", "airsim_bridge.bridge"),
        ("airsim_bridge.record_flight", "airsim_bridge.bridge"),
        ("airsim_sim", "airsim_sim.command"),
        ("nav_bringup.fly", "nav_bringup.mission"),
    ],
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_during_the_imports_ends_the_program_quietly(
    entry: str, slow: str, number: signal.Signals
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_IMPORT.format(slow=slow, entry=entry, sleep=INTERRUPTIBLE_SLEEP)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    try:
        assert process.stdout.readline() == "importing\n"
        process.send_signal(number)
        assert process.communicate(timeout=30) == ("", "")
        assert process.returncode == 0
    finally:
        process.kill()
