"""How a process of the graph is asked to end, and that none outlives its parent. Without ROS."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import faulthandler
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

# Ctrl-C, the polite kill, a closed terminal (SIGBREAK is Windows' for a console that is closed).
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
STOP_SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
# Exit status of a program that refuses its configuration: starting it again cannot help. argparse's, too.
CONFIGURATION_ERROR = 2
# For a whole shutdown. Far above what any node needs (perception on a busy machine: 10 s), and what ends a node in
# which a library hangs although its parent is gone and nobody sends SIGKILL.
SHUTDOWN_DEADLINE_S = 30.0
# Before a process that ended by itself is started again: almost none at first (a drone waits), then longer.
RESTART_DELAYS_S = (0.1, 1.0, 2.0, 5.0, 10.0)
# A process that ran this long had started properly: its next end counts as the first again.
STARTED_PROPERLY_S = 30.0
SWITCH_INTERVAL_S = 0.0002
"""Of Python's threads. rclpy's executor holds the interpreter's lock 88 % of the time that any thread of the agent
does; at the default of 5 ms a thread that shall tick at 20 Hz got it 30 to 130 ms late, up to 1 s: a waiter asks for
the lock only after a whole interval in which nobody else got it."""

_PR_SET_PDEATHSIG = 1  # prctl(2)


class StopSignals:
    """SIGINT, SIGTERM and SIGHUP as requests to stop: counted, and waited for.

    Made in the main thread; replaces those signals' handlers. A hang-up that the parent made this process ignore
    (`nohup`) stays ignored. The interpreter's own C handler writes each signal's number into a socket, which `wait`
    reads. `Event.set` in a Python handler would not do: it takes a lock, and a second signal inside it blocks the main
    thread for ever. Nor would a queue: a signal just before the thread blocks in `get` leaves its handler pending.
    """

    def __init__(self) -> None:
        self._receiver, self._sender = socket.socketpair()
        self._receiver.setblocking(False)
        self._sender.setblocking(False)
        self._count = 0
        self._requested = False
        signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        _handle_stop_signals(lambda *_: None)
        # The interpreter's finalization resets handlers, and a further Ctrl-C would then end the process by the signal.
        atexit.register(_handle_stop_signals, signal.SIG_IGN)

    @property
    def count(self) -> int:
        """Signals received so far."""
        self._read()
        return self._count

    def request(self) -> None:
        """End `wait` without a signal; from any thread."""
        with contextlib.suppress(BlockingIOError):  # full: there are requests enough
            self._sender.send(b"\0")

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for a signal or `request`, at most `timeout_s`; whether there has been one. From one thread."""
        end_s = None if timeout_s is None else time.monotonic() + timeout_s
        self._read()
        while not self._requested:
            remaining_s = None if end_s is None else end_s - time.monotonic()
            if remaining_s is not None and remaining_s <= 0.0:
                return False
            select.select([self._receiver], [], [], remaining_s)
            self._read()
        return True

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while received := self._receiver.recv(4096):
                signals = sum(
                    number in STOP_SIGNALS for number in received
                )  # other handlers' signals come too
                self._count += signals
                self._requested |= signals > 0 or 0 in received


def exit_on_signals() -> None:
    """Until `StopSignals` takes over: a stop signal ends the process at once, with status 0 and without a traceback.

    For the first line of a program, before its imports, which take seconds.
    """
    _handle_stop_signals(lambda *_: os._exit(0))


@contextlib.contextmanager
def exiting_on_signals() -> Iterator[None]:
    """Within this block a stop signal ends the process as `exit_on_signals` says, though `StopSignals` exists: for a
    step before anything is served that takes long and cannot be interrupted. Does nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    exit_on_signals()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def limit_shutdown(deadline_s: float = SHUTDOWN_DEADLINE_S) -> None:
    """Exit with status 1 and every thread's stack on stderr if the process still lives in `deadline_s` seconds."""
    faulthandler.dump_traceback_later(deadline_s, exit=True, file=sys.__stderr__ or sys.stderr)


class Restarts:
    """How long to wait before a process is started again: RESTART_DELAYS_S in turn, and from the first again after one
    that ran for STARTED_PROPERLY_S."""

    def __init__(self) -> None:
        self._failures = 0

    def delay_s(self, ran_s: float) -> float:
        """The wait after one that ran `ran_s` and ended."""
        if ran_s > STARTED_PROPERLY_S:
            self._failures = 0
        self._failures += 1
        return RESTART_DELAYS_S[min(self._failures, len(RESTART_DELAYS_S)) - 1]


def ending(status: int) -> str:
    """How a process ended, by its return code: `was killed by SIGKILL`, `ended with status 1`."""
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


def popen(arguments: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """`subprocess.Popen` of a child that gets SIGTERM when this process dies, whatever ends it.

    By the kernel, so it holds for SIGKILL too; on Linux only, elsewhere it is plain `Popen`. Call it from a thread that
    lives as long as the process (the main thread): the kernel takes that thread's end for the parent's.
    """
    if sys.platform == "linux":
        options["preexec_fn"] = _end_with(os.getpid())
    return subprocess.Popen(arguments, **options)


_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def _end_with(parent: int) -> Callable[[], None]:
    """What the child does between fork and exec."""

    def prepare() -> None:
        assert _libc is not None
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    return prepare


def _handle_stop_signals(handler: Callable[[int, Any], None] | signal.Handlers) -> None:
    for number in STOP_SIGNALS:
        # `nohup` ignores SIGHUP, and that is respected. A shell's background job ignores SIGINT too, but launch and the
        # runner end their nodes with it.
        if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)
