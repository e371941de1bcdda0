"""Unrequested ends: a closed terminal, a killed runner, a parameter that a node refuses."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nav_common.process import CONFIGURATION_ERROR
from nav_common.testing import free_port, unique_domain_id
from nav_pilot import model_folder


class Session:
    """A program with a terminal of its own, its output, and its descendants.

    under_make: started by make, which the hang-up then ends first.
    """

    def __init__(self, folder: Path, *arguments: str, under_make: bool = False) -> None:
        self.output = b""
        self._closing = threading.Event()
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.environ["ROS_DOMAIN_ID"] = str(DOMAIN)
            if under_make:
                program = shlex.join([sys.executable, "-m", *arguments])
                os.execvp("make", ["make", "--silent", f"--eval=fly: ; @{program}", "fly"])
            os.execv(sys.executable, [sys.executable, "-m", *arguments])
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def close_terminal(self) -> None:
        self._closing.set()
        self._reader.join()
        os.close(self._terminal)

    def await_output(self, text: str, timeout_s: float = 120.0) -> None:
        end = time.monotonic() + timeout_s
        while text.encode() not in self.output:
            assert time.monotonic() < end, f"no {text!r} within {timeout_s:g} s in: {self.output.decode()}"
            time.sleep(0.02)

    def descendants(self) -> list[int]:
        found, todo = [], [self.pid]
        while todo:
            pid = todo.pop()
            with contextlib.suppress(OSError):
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
                todo += [int(child) for child in children]
                found += [int(child) for child in children]
        return found

    def await_end(self, timeout_s: float = 60.0) -> int:
        """The exit status; negative: the signal."""
        end = time.monotonic() + timeout_s
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            assert time.monotonic() < end, f"still runs after {timeout_s:g} s: {self.output.decode()}"
            time.sleep(0.02)

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while not self._closing.is_set():
                if select.select([self._terminal], [], [], 0.1)[0]:
                    self.output += os.read(self._terminal, 65536)


DOMAIN = unique_domain_id()


def runs(pid: int) -> bool:
    """Whether `pid` runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def await_gone(pids: list[int], timeout_s: float = 45.0) -> None:
    end = time.monotonic() + timeout_s
    while left := [pid for pid in pids if runs(pid)]:
        assert time.monotonic() < end, f"processes left: {left}"
        time.sleep(0.02)


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Session]:
    """A runner with simulator and bridge."""
    session = Session(tmp_path, "nav_bringup.runner", "edge", f"airsim_port:={free_port()}")
    session.await_output("runner: started")
    logs = tmp_path / "runs" / "latest" / "log"
    end = time.monotonic() + 60.0
    while "connected" not in (logs / "airsim_bridge.log").read_text():
        assert time.monotonic() < end, session.output.decode()
        time.sleep(0.05)
    yield session
    for pid in [session.pid, *session.descendants()]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_a_closed_terminal_ends_the_runner_in_order_and_leaves_no_process(edge: Session) -> None:
    processes = edge.descendants()
    assert len(processes) == 2
    edge.close_terminal()
    assert edge.await_end() == 0
    await_gone(processes)


def test_a_killed_runner_leaves_no_process(edge: Session) -> None:
    processes = edge.descendants()
    os.kill(edge.pid, signal.SIGKILL)
    edge.await_end()
    await_gone(processes)


def test_a_parameter_that_a_node_refuses_ends_the_graph_with_its_line_and_status_2(tmp_path: Path) -> None:
    parameters = tmp_path / "parameters.yaml"
    parameters.write_text("airsim_bridge: {ros__parameters: {max_sped: 3.0}}\n")
    words = ["edge", f"airsim_port:={free_port()}", f"params_file:={parameters}"]
    session = Session(tmp_path, "nav_bringup.runner", *words)
    session.await_output(
        "airsim_bridge refuses to start: airsim_bridge has no parameter max_sped (given: 3.0)"
    )
    assert session.await_end() == CONFIGURATION_ERROR
    assert "did you mean max_speed?" in session.output.decode()
    assert "restarting" not in session.output.decode()


@pytest.mark.skipif(
    not (model_folder() / "config.json").is_file(), reason="no weights: python -m nav_pilot.train"
)
def test_a_terminal_closed_in_flight_leaves_a_summary_and_no_process(tmp_path: Path) -> None:
    session = Session(tmp_path, "nav_bringup.fly", "--airsim-port", str(free_port()), under_make=True)
    session.await_output("accepted after")
    processes = session.descendants()
    assert len(processes) == 6  # with fly itself and the recorder
    session.close_terminal()
    assert session.await_end() == -signal.SIGHUP
    await_gone(processes)
    figures = json.loads((tmp_path / "runs" / "latest" / "summary.json").read_text())
    assert figures["outcome"] == "cancelled"
    assert figures["hover_violations"] == 0
