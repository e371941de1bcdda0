"""Requests to stop that arrive at the worst moment, shutdowns that hang, children of parents that die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nav_common.process import STOP_SIGNALS
from nav_common.testing import INTERRUPTIBLE_SLEEP

# Each round is a node's main thread that waits, and two signals as close together as a terminal sends them.
DOUBLE_SIGNALS = """
import os, signal, threading
from nav_common.process import StopSignals
for round in range(2000):
    stop = StopSignals()
    begin = threading.Barrier(2)
    def twice():
        begin.wait()
        os.kill(os.getpid(), signal.SIGINT); os.kill(os.getpid(), signal.SIGTERM)
    sender = threading.Thread(target=twice)
    sender.start()
    begin.wait()
    assert stop.wait(timeout_s=10.0)
    sender.join()
print("rounds", round + 1)
"""

STARTING = f"""
from nav_common.process import exit_on_signals
exit_on_signals()
print("starting", flush=True)
import time; {INTERRUPTIBLE_SLEEP}
"""

RUNNING = """
from nav_common.process import StopSignals
stop = StopSignals()
print("running", flush=True)
print("stopped", stop.wait(30.0), stop.count)
"""

HANGING = """
from nav_common.process import StopSignals, limit_shutdown
import threading
stop = StopSignals()
print("running", flush=True)
stop.wait()
limit_shutdown(0.3)
threading.Lock().acquire() and threading.Event().wait()
"""

# An object that the interpreter's finalization destroys last, after it has reset the signal handlers.
FINALIZING = """
import os, sys, time
class Last:
    def __del__(self, write=os.write, sleep=time.sleep):
        write(1, b"finalizing\\n")
        sleep(2.0)
sys.last = Last()
from nav_common.process import StopSignals
stop = StopSignals()
"""

PARENT = """
import sys, time
from nav_common.process import popen
child = popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True); time.sleep(60)
"""


def start(program: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout
    return process


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def test_two_signals_at_once_never_hang_a_waiting_process() -> None:
    process = start(DOUBLE_SIGNALS)
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert out == "rounds 2000\n", err


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_during_start_ends_the_process_quietly(number: signal.Signals) -> None:
    process = start(STARTING)
    assert first_line(process) == "starting"
    process.send_signal(number)
    assert process.communicate(timeout=20) == ("", "")
    assert process.returncode == 0


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_each_stop_signal_is_a_request(number: signal.Signals) -> None:
    process = start(RUNNING)
    assert first_line(process) == "running"
    process.send_signal(number)
    assert process.communicate(timeout=20) == ("stopped True 1\n", "")


def test_an_ignored_hangup_stays_ignored() -> None:
    ignoring = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    process = start(ignoring + RUNNING)
    assert first_line(process) == "running"
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.3)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=20) == ("stopped True 1\n", "")


def test_an_interrupt_counts_in_a_background_job_of_a_shell_which_ignores_it() -> None:
    ignoring = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    process = start(ignoring + RUNNING)
    assert first_line(process) == "running"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=40) == ("stopped True 1\n", "")


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_further_signal_during_finalization_changes_nothing(number: signal.Signals) -> None:
    process = start(FINALIZING)
    assert first_line(process) == "finalizing"
    process.send_signal(number)
    process.communicate(timeout=40)
    assert process.returncode == 0


def test_a_shutdown_that_hangs_ends_at_its_deadline_and_shows_where() -> None:
    process = start(HANGING)
    assert first_line(process) == "running"
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "Thread" in err


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_a_child_ends_when_its_parent_is_killed() -> None:
    parent = start(PARENT)
    child = int(first_line(parent))
    assert Path(f"/proc/{child}").exists()
    parent.kill()
    parent.communicate()
    end = time.monotonic() + 10.0
    while _alive(child):
        assert time.monotonic() < end, f"child {child} outlives its parent"
        time.sleep(0.02)


def _alive(pid: int) -> bool:
    """Whether `pid` runs (a zombie does not)."""
    try:
        os.kill(pid, 0)
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False


LOADING = f"""
import os, signal, threading, time
from nav_common.process import StopSignals, exiting_on_signals
stop = StopSignals()
with exiting_on_signals():
    pass
os.kill(os.getpid(), signal.SIGINT)  # after the block a signal is a request again
print(stop.wait(5.0), flush=True)
with exiting_on_signals():
    print("loading", flush=True)
    {INTERRUPTIBLE_SLEEP}
"""


def test_a_signal_while_a_model_is_loaded_ends_the_process_quietly_and_afterwards_is_a_request() -> None:
    process = start(LOADING)
    assert first_line(process) == "True"
    assert first_line(process) == "loading"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20) == ("", "")
    assert process.returncode == 0
