"""What tests and benchmarks share: a ROS domain of one's own, a free TCP port, a busy process, a script as a module."""

from __future__ import annotations

import contextlib
import importlib.util
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

_claimed: list[socket.socket] = []  # held until the process ends, so that the domain stays claimed

# Any fixed range of ports that nothing else uses: one port stands for one domain, and the operating system
# releases it when the process dies.
_CLAIM_PORT = 21700


def unique_domain_id() -> int:
    """A ROS domain from 1 to 101 (the range that is safe on every system) that no other process on this machine
    has claimed by this function.

    Raises:
        RuntimeError: all are claimed.
    """
    candidates = list(range(1, 102))
    random.shuffle(candidates)
    for domain in candidates:
        claim = socket.socket()
        try:
            claim.bind(("127.0.0.1", _CLAIM_PORT + domain))
        except OSError:
            claim.close()
            continue
        _claimed.append(claim)
        return domain
    raise RuntimeError("all ROS domains from 1 to 101 are claimed on this machine: end some test processes")


@contextlib.contextmanager
def busy_process() -> Iterator[None]:
    """Beside a process that keeps one core busy."""
    burner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        burner.kill()
        burner.wait()


INTERRUPTIBLE_SLEEP = "[time.sleep(0.02) for _ in range(3000)]"
"""A minute, in the text of a program that a signal shall end. Python runs a signal's handler between two instructions:
one that comes just before a single long sleep waits for its end."""


def free_port() -> int:
    """A TCP port on loopback that was free just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def load_script(path: Path) -> ModuleType:
    """A script that lies outside the packages, as a module of its file's name."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
