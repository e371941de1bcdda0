"""Keeps a list of processes running: starts them, logs their output, restarts what ended, ends them in order."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nav_common.process import CONFIGURATION_ERROR, Restarts, ending, popen

# From one signal to the next, when a process is asked to end: the agent must hover, a recorder write its index,
# perception on a busy machine needs up to 10 s.
STOP_TIMEOUTS_S = {signal.SIGINT: 15.0, signal.SIGTERM: 3.0, signal.SIGKILL: 2.0}

# Lines worth a person's attention: ROS's log lines from WARN on, and how Python and C programs crash.
_PROBLEM = re.compile(
    r"^\[(WARN|ERROR|FATAL)\]|^Traceback|^\w*(Error|Exception): |terminate called|Segmentation fault"
)


@dataclass(frozen=True)
class ProcessSpec:
    """A process to run: its name, its command line, whether it is restarted when it has ended."""

    name: str
    arguments: Sequence[str]
    respawn: bool = True
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass
class _Child:
    spec: ProcessSpec
    log: Path
    process: subprocess.Popen[bytes] | None = None
    pump: threading.Thread | None = None
    started_s: float = 0.0
    restarts: Restarts = field(default_factory=Restarts)
    restart_at_s: float | None = None
    recent: deque[str] = field(default_factory=lambda: deque(maxlen=8))


class Supervisor:
    """Runs processes, in the order of their `specs`; `stop` ends them in the reverse order.

    Call `poll` several times a second from the thread that called `start`: a child ends with that thread, so that none
    outlives a killed supervisor. `say` gets one line for each event and for each problem in a child's output; it must
    not raise.
    """

    def __init__(self, specs: Sequence[ProcessSpec], log_folder: Path, say: Callable[[str], None]) -> None:
        self._children = [_Child(spec, log_folder / f"{spec.name}.log") for spec in specs]
        self._say = say
        self._stopping = False
        self.failure: str | None = None
        """Why the graph cannot run: a process refuses its configuration or does not exist. None while it can."""
        log_folder.mkdir(parents=True, exist_ok=True)

    def start(self) -> None:
        for child in self._children:
            self._start(child)

    def poll(self) -> None:
        """Notice what has ended, start again what is due."""
        now = time.monotonic()
        for child in self._children:
            if child.process is not None and child.process.poll() is not None:
                self._handle_exit(child, child.process.returncode, now)
            elif child.restart_at_s is not None and now >= child.restart_at_s:
                child.restart_at_s = None
                self._start(child)

    def stop(self, kill_now: Callable[[], bool] = lambda: False) -> None:
        """End everything, the last started first; each is gone with all its descendants before the next is asked.

        `kill_now` is asked all the while: once true, what still runs is killed.
        """
        self._stopping = True  # a child that is interrupted while it imports is no problem
        for child in reversed(self._children):
            child.restart_at_s = None
            if child.process is not None:
                self._end(child, child.process, kill_now)
                child.process = None

    def pid(self, name: str) -> int | None:
        """Process id of `name`, None while it does not run."""
        child = next(child for child in self._children if child.spec.name == name)
        return child.process.pid if child.process is not None else None

    @property
    def active(self) -> bool:
        """Whether anything runs or will be restarted."""
        return any(child.process is not None or child.restart_at_s is not None for child in self._children)

    @property
    def running(self) -> list[str]:
        """Names of the processes that run."""
        return [child.spec.name for child in self._children if child.process is not None]

    def _start(self, child: _Child) -> None:
        spec = child.spec
        try:
            child.process = popen(
                spec.arguments,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**os.environ, **spec.environment},
                # Ctrl-C reaches the supervisor alone, which then ends them in order. Not a session of its own: Linux
                # shares the processor fairly between sessions (autogroup), and niceness would count for nothing.
                process_group=0,
            )
        except OSError as error:
            self.failure = f"{spec.name} cannot be started ({spec.arguments[0]}): {error.strerror}"
            self._say(self.failure)
            return
        child.started_s = time.monotonic()
        child.pump = threading.Thread(
            target=self._pump, args=(child, child.process), name=f"log-{spec.name}", daemon=True
        )
        child.pump.start()

    def _handle_exit(self, child: _Child, status: int, now: float) -> None:
        assert child.pump is not None
        assert child.process is not None
        _kill_group(child.process.pid, signal.SIGKILL)  # what it left behind
        child.pump.join(timeout=1.0)
        child.process = None
        how = ending(status)
        if status == CONFIGURATION_ERROR:
            self.failure = f"{child.spec.name} refuses to start: {_reason(child.recent)}"
            self._say(self.failure)
        elif not child.spec.respawn:
            self._say(f"{child.spec.name} {how}")
        else:
            wait_s = child.restarts.delay_s(now - child.started_s)
            child.restart_at_s = now + wait_s
            self._say(f"{child.spec.name} {how}; restarting in {wait_s:g} s (log: {child.log})")

    def _end(self, child: _Child, process: subprocess.Popen[bytes], kill_now: Callable[[], bool]) -> None:
        for number, timeout_s in STOP_TIMEOUTS_S.items():
            if number != signal.SIGKILL and kill_now():
                continue
            _kill_group(process.pid, number)
            end_s = time.monotonic() + timeout_s
            while time.monotonic() < end_s and not (kill_now() and number != signal.SIGKILL):
                try:
                    process.wait(timeout=0.1)
                    break
                except subprocess.TimeoutExpired:
                    pass
            if process.poll() is not None:
                break
            if number != signal.SIGKILL:
                self._say(f"{child.spec.name} does not end on {number.name}")
        _kill_group(process.pid, signal.SIGKILL)  # descendants that ignored the request
        if child.pump is not None:
            child.pump.join(timeout=1.0)

    def _pump(self, child: _Child, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with child.log.open("ab", buffering=0) as log, process.stdout as output:
            for raw in output:
                log.write(raw)
                line = raw.decode(errors="replace").rstrip()
                if line:
                    child.recent.append(line)
                if _PROBLEM.search(line) and not self._stopping:
                    self._say(f"[{child.spec.name}] {line}")


def _reason(lines: Sequence[str]) -> str:
    """The line that says why, of the last lines of a program that refused its configuration."""
    if not lines:
        return "it printed nothing"
    reasons = [line for line in lines if re.search(r"\[FATAL\]|error:|Error", line)]
    return (reasons or list(lines))[-1].removeprefix("[FATAL]").strip()


def _kill_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)
