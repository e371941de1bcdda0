"""The supervisor: restarts, refused configurations, ordered shutdown that leaves no process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nav_bringup import supervisor as supervisor_module
from nav_bringup.supervisor import ProcessSpec, Supervisor
from nav_common import process as process_module
from nav_common.testing import INTERRUPTIBLE_SLEEP

SLEEPER = f"import time; print('here', flush=True); {INTERRUPTIBLE_SLEEP}"
STUBBORN = """
import signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('here', flush=True); time.sleep(60)
"""
WITH_GRANDCHILD = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(60)'], start_new_session=False)
print('grandchild', child.pid, flush=True); time.sleep(60)
"""


def python(name: str, program: str, *arguments: str, respawn: bool = True) -> ProcessSpec:
    return ProcessSpec(name, [sys.executable, "-S", "-c", program, *arguments], respawn)


class Watched:
    """A supervisor with what it said and wrote."""

    def __init__(self, folder: Path) -> None:
        self.said: list[str] = []
        self._folder = folder
        self.supervisor: Supervisor | None = None

    def start(self, *commands: ProcessSpec) -> Supervisor:
        self.supervisor = Supervisor(commands, self._folder, self.said.append)
        self.supervisor.start()
        return self.supervisor

    def log(self, name: str) -> str:
        path = self._folder / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def until(self, condition: Callable[[], object], timeout_s: float = 20.0) -> None:
        assert self.supervisor is not None
        end = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end, f"not within {timeout_s} s; said: {self.said}"
            self.supervisor.poll()
            time.sleep(0.01)


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    watched = Watched(tmp_path / "log")
    yield watched
    if watched.supervisor is not None:
        watched.supervisor.stop(kill_now=lambda: True)


def alive(pid: int) -> bool:
    """Whether `pid` runs (a zombie does not)."""
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False


def test_a_killed_process_is_started_again(watched: Watched) -> None:
    supervisor = watched.start(python("agent", SLEEPER), python("bridge", SLEEPER))
    agent, bridge = supervisor.pid("agent"), supervisor.pid("bridge")
    assert agent
    os.kill(agent, signal.SIGKILL)
    watched.until(lambda: supervisor.pid("agent") not in (agent, None))
    assert supervisor.pid("bridge") == bridge
    assert "agent was killed by SIGKILL; restarting" in watched.said[0]


def test_a_process_gets_no_ctrl_c_of_the_terminal_but_shares_the_session_so_that_niceness_counts(
    watched: Watched,
) -> None:
    pid = watched.start(python("agent", SLEEPER)).pid("agent")
    assert pid
    assert os.getpgid(pid) == pid
    assert os.getsid(pid) == os.getsid(0)


def test_a_process_that_keeps_dying_is_started_less_and_less_often(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_module, "RESTART_DELAYS_S", (0.01, 0.3, 0.6))
    watched.start(python("agent", "raise SystemExit(1)"))
    watched.until(lambda: len(watched.said) == 4)
    waits = [line.split("restarting in ")[1].split(" s")[0] for line in watched.said]
    assert waits == ["0.01", "0.3", "0.6", "0.6"]


def test_a_process_that_had_lived_is_started_again_at_once(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_module, "STARTED_PROPERLY_S", 0.0)
    watched.start(python("agent", "raise SystemExit(1)"))
    watched.until(lambda: len(watched.said) == 3)
    assert all("restarting in 0.1 s" in line for line in watched.said)


def test_a_process_that_refuses_its_parameters_fails_the_graph_with_its_message(watched: Watched) -> None:
    message = "[FATAL] parameter port is 99999, must be 1 to 65535"
    supervisor = watched.start(python("bridge", f"print({message!r}); raise SystemExit(2)"))
    watched.until(lambda: supervisor.failure)
    assert supervisor.failure == "bridge refuses to start: parameter port is 99999, must be 1 to 65535"
    assert not supervisor.active


def test_a_program_that_is_not_there_fails_the_graph(watched: Watched) -> None:
    supervisor = watched.start(ProcessSpec("bridge", ["/nowhere/airsim_bridge"]))
    assert (
        supervisor.failure == "bridge cannot be started (/nowhere/airsim_bridge): No such file or directory"
    )


def test_a_recorder_is_not_started_again(watched: Watched) -> None:
    supervisor = watched.start(python("recorder", "raise SystemExit(1)", respawn=False))
    watched.until(lambda: watched.said)
    assert watched.said == ["recorder ended with status 1"]
    assert not supervisor.active


def test_everything_ends_in_the_reverse_order_of_starting(watched: Watched, tmp_path: Path) -> None:
    order = tmp_path / "order"
    program = (
        "import signal, sys, time\n"
        "def end(*_):\n"
        "    time.sleep(0.1 if sys.argv[1] == 'agent' else 0)\n"
        f"    open({str(order)!r}, 'a').write(sys.argv[1] + ' '); sys.exit(0)\n"
        "signal.signal(signal.SIGINT, end); print('here', flush=True); "
        f"{INTERRUPTIBLE_SLEEP}\n"
    )
    names = ("simulator", "bridge", "agent")
    supervisor = watched.start(*(python(name, program, name) for name in names))
    watched.until(lambda: all("here" in watched.log(name) for name in names))
    supervisor.stop()
    assert order.read_text() == "agent bridge simulator "
    assert supervisor.running == []


def test_a_process_that_ignores_every_request_is_killed(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = dict.fromkeys(supervisor_module.STOP_TIMEOUTS_S, 0.2)
    monkeypatch.setattr(supervisor_module, "STOP_TIMEOUTS_S", quick)
    supervisor = watched.start(python("agent", STUBBORN))
    watched.until(lambda: "here" in watched.log("agent"))
    pid = supervisor.pid("agent")
    assert pid
    supervisor.stop()
    assert not alive(pid)
    assert watched.said == ["agent does not end on SIGINT", "agent does not end on SIGTERM"]


def test_a_stop_that_is_to_kill_now_waits_for_no_process(watched: Watched) -> None:
    supervisor = watched.start(python("agent", STUBBORN), python("bridge", STUBBORN))
    watched.until(lambda: "here" in watched.log("agent") and "here" in watched.log("bridge"))
    begin = time.monotonic()
    supervisor.stop(kill_now=lambda: True)
    assert time.monotonic() - begin < 2.0
    assert supervisor.running == []


def test_descendants_are_gone_too(watched: Watched) -> None:
    supervisor = watched.start(python("agent", WITH_GRANDCHILD))
    watched.until(lambda: "grandchild" in watched.log("agent"))
    grandchild = int(watched.log("agent").split()[1])
    pid = supervisor.pid("agent")
    assert pid
    assert alive(grandchild)
    os.kill(pid, signal.SIGKILL)
    watched.until(lambda: watched.said and not alive(grandchild))


def test_a_killed_supervisor_leaves_no_process(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys, time\n"
        "from nav_bringup.supervisor import ProcessSpec, Supervisor\n"
        f"s = Supervisor([ProcessSpec('agent', [sys.executable, '-S', '-c', {SLEEPER!r}])], "
        f"pathlib.Path({str(tmp_path)!r}), print)\n"
        "s.start(); print(s.pid('agent'), flush=True); time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    child = int(parent.stdout.readline())
    assert alive(child)
    parent.kill()
    parent.wait()
    end = time.monotonic() + 10
    while alive(child):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_only_trouble_is_said_aloud_and_all_of_it_is_in_the_log(watched: Watched) -> None:
    lines = [
        "[INFO] [1.0] [agent]: ready",
        "[WARN] [1.0] [agent]: slow",
        "libEGL warning: dri2",
        "ValueError: no",
    ]
    watched.start(python("agent", f"print({chr(10).join(lines)!r}); import time; time.sleep(60)"))
    watched.until(lambda: "ValueError" in watched.log("agent") and len(watched.said) >= 2)
    assert watched.said == ["[agent] [WARN] [1.0] [agent]: slow", "[agent] ValueError: no"]
    assert watched.log("agent").splitlines() == lines
