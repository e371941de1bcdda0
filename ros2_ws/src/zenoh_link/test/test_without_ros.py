"""What the edge machine uses imports where neither ROS nor POSIX's own modules are, as on Windows."""

import subprocess
import sys

import pytest

MISSING = ("rclpy", "nav_msgs_ext", "fcntl", "termios", "tty", "pwd", "resource")


@pytest.mark.parametrize("module", ["zenoh_link.transport", "zenoh_link.__main__", "airsim_bridge.remote"])
def test_it_imports(module):
    lines = [
        "import sys, subprocess, socket, asyncio",  # the standard library's own use of them is Python's business
        *(f"sys.modules[{name!r}] = None" for name in MISSING),
        f"import {module}",
    ]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, timeout=60)


def test_the_node_does_not(monkeypatch):
    monkeypatch.setitem(sys.modules, "rclpy", None)
    sys.modules.pop("zenoh_link.node", None)
    with pytest.raises(ImportError):
        __import__("zenoh_link.node")
