"""The nodes' entry points: a Ctrl-C while the node's imports run ends it without a traceback."""

from __future__ import annotations

import signal
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

# Stands for the seconds in which torch and rclpy are imported.
SLOW_IMPORT = """
import importlib, sys
class SlowImport:
    def find_spec(self, name, path=None, target=None):
        if name == {node!r}:
            print("importing", flush=True)
            import time; time.sleep(60)
sys.meta_path.insert(0, SlowImport())
module, _, function = {entry!r}.partition(":")
getattr(importlib.import_module(module), function)()
"""


def entry(package: str, executable: str) -> str:
    return next(
        point.value
        for point in entry_points(group="console_scripts", name=executable)
        if point.dist is not None and point.dist.name.replace("-", "_") == package
    )


@pytest.mark.parametrize(
    ("package", "executable"),
    [
        ("airsim_bridge", "airsim_bridge"),
        ("vlm_perception", "vlm_perception"),
        ("nav_agent", "nav_agent"),
        ("nav_eval", "record"),
        ("nav_eval", "play"),
    ],
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_during_the_imports_ends_the_node_quietly(
    package: str, executable: str, number: signal.Signals
) -> None:
    program = SLOW_IMPORT.format(node=f"{package}.node", entry=entry(package, executable))
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout
    try:
        assert process.stdout.readline() == "importing\n"
        process.send_signal(number)
        assert process.communicate(timeout=30) == ("", "")
        assert process.returncode == 0
    finally:
        process.kill()
