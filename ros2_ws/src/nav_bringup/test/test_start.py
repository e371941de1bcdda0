"""The programs' entry points: a Ctrl-C while their imports run ends them without a traceback."""

from __future__ import annotations

import signal
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

# Stands for the seconds in which torch and rclpy are imported.
SLOW_IMPORT = """
import importlib, runpy, sys
class SlowImport:
    def find_spec(self, name, path=None, target=None):
        if name == {slow!r}:
            print("importing", flush=True)
            import time; time.sleep(60)
sys.meta_path.insert(0, SlowImport())
module, _, function = {entry!r}.partition(":")
if function:
    getattr(importlib.import_module(module), function)()
else:
    runpy.run_module(module, run_name="__main__")
"""


def entry(package: str, executable: str) -> str:
    return next(
        point.value
        for point in entry_points(group="console_scripts", name=executable)
        if point.dist is not None and point.dist.name.replace("-", "_") == package
    )


@pytest.mark.parametrize(
    ("entry", "slow"),
    [
        (entry("airsim_bridge", "airsim_bridge"), "airsim_bridge.node"),
        (entry("airsim_bridge", "edge"), "airsim_bridge.bridge"),
        (entry("airsim_bridge", "record_flight"), "airsim_bridge.bridge"),
        (entry("vlm_perception", "vlm_perception"), "vlm_perception.node"),
        (entry("nav_agent", "nav_agent"), "nav_agent.node"),
        (entry("nav_eval", "record"), "nav_eval.node"),
        (entry("nav_eval", "play"), "nav_eval.node"),
        # python -m
        ("airsim_bridge.edge", "airsim_bridge.bridge"),
        ("airsim_bridge.record_flight", "airsim_bridge.bridge"),
    ],
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_during_the_imports_ends_the_program_quietly(
    entry: str, slow: str, number: signal.Signals
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_IMPORT.format(slow=slow, entry=entry)],
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
