"""A run survives kills, full disks and dying workers: nothing lost, nothing counted twice."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from nav_eval.harness import EPISODES_FILE, HarnessError, Job, LocalEngine, Store, Task, run

JOBS = [Job("field", "streaming", "", seed) for seed in range(2001, 2013)]


def square(job: Job) -> dict[str, int]:
    return {"square": job.seed**2}


def slow_square(job: Job) -> dict[str, int]:
    time.sleep(0.15)  # an episode takes its time: kills hit between and within
    return square(job)


def die_at_2005(job: Job) -> dict[str, int]:
    if job.seed == 2005:
        os.kill(os.getpid(), signal.SIGKILL)
    return square(job)


def wait_for_ever(job: Job) -> dict[str, int]:
    threading.Event().wait()
    return square(job)


def wait_for_ever_at_2005(job: Job) -> dict[str, int]:
    return wait_for_ever(job) if job.seed == 2005 else square(job)


def write_pid(folder: str) -> None:
    (Path(folder) / f"worker.{os.getpid()}").touch()


def is_running(pid: int) -> bool:
    """Whether there is such a process that has not ended (one that nobody has waited for yet has)."""
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False


def fail_at_2005(job: Job) -> dict[str, int]:
    if job.seed == 2005:
        raise ValueError("seed 2005: no such world")
    return square(job)


def results(folder: Path) -> dict[int, int]:
    lines = (folder / EPISODES_FILE).read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert len({record["job"]["seed"] for record in records}) == len(records), "an episode was counted twice"
    return {record["job"]["seed"]: record["square"] for record in records}


EXPECTED = {job.seed: job.seed**2 for job in JOBS}


def test_all_jobs_are_done_and_none_again(tmp_path):
    done = []
    run(
        JOBS,
        Store(tmp_path, {"of": 1}),
        Task(square),
        LocalEngine(2),
        lambda job, record: done.append(job),
    )
    assert results(tmp_path) == EXPECTED
    assert sorted(done) == sorted(JOBS)
    run(JOBS, Store(tmp_path, {"of": 1}), Task(fail_at_2005), LocalEngine(2))  # nothing is left to do
    assert results(tmp_path) == EXPECTED


def test_killed_at_random_times_a_run_ends_as_if_it_had_not_been(tmp_path):
    program = (
        "from pathlib import Path; import sys; sys.path.insert(0, sys.argv[2])\n"
        "from test_harness import *\n"
        "run(JOBS, Store(Path(sys.argv[1]), {'of': 1}), Task(slow_square), LocalEngine(2))\n"
    )
    program = f"if __name__ == '__main__':\n  exec({program!r})\n"
    script = tmp_path / "run.py"
    script.write_text(program)
    command = [sys.executable, str(script), str(tmp_path / "run"), str(Path(__file__).parent)]
    rng = random.Random(5)
    kills = 0
    for _ in range(30):
        process = subprocess.Popen(command, start_new_session=True)
        try:
            assert (
                process.wait(timeout=rng.uniform(0.3, 2.5) if kills else 0.7) == 0
            )  # 12 episodes take 0.9 s
            break
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
    else:
        subprocess.run(command, check=True, timeout=60)
    assert results(tmp_path / "run") == EXPECTED
    assert kills > 0


def test_a_line_cut_off_by_a_kill_is_done_again(tmp_path):
    run(JOBS[:3], Store(tmp_path, {}), Task(square), LocalEngine(1))
    with open(tmp_path / EPISODES_FILE, "ab") as file:
        file.write(b'{"job":{"scene":"field","variant":"str')
    run(JOBS[:4], Store(tmp_path, {}), Task(square), LocalEngine(1))
    assert results(tmp_path) == {job.seed: job.seed**2 for job in JOBS[:4]}


def test_a_worker_that_dies_is_said_and_what_was_finished_stays(tmp_path):
    with pytest.raises(HarnessError, match=r"a worker process died .* run the same command again"):
        run(JOBS, Store(tmp_path, {}), Task(die_at_2005), LocalEngine(1))
    kept = results(tmp_path) if (tmp_path / EPISODES_FILE).exists() else {}
    assert set(kept) <= {2001, 2002, 2003, 2004}
    run(JOBS, Store(tmp_path, {}), Task(square), LocalEngine(2))
    assert results(tmp_path) == EXPECTED


def test_an_error_of_an_episode_is_raised_and_what_was_finished_stays(tmp_path):
    with pytest.raises(ValueError, match="seed 2005"):
        run(JOBS, Store(tmp_path, {}), Task(fail_at_2005), LocalEngine(1))
    assert set(results(tmp_path)) >= {2001, 2002}


def test_another_run_is_not_mixed_in(tmp_path):
    Store(tmp_path, {"think_s": 0.3, "model": "a"})
    with pytest.raises(HarnessError, match=r"holds another run: its think_s is 0.3, not 0.5"):
        Store(tmp_path, {"think_s": 0.5, "model": "a"})


def test_a_damaged_line_is_named(tmp_path):
    run(JOBS[:2], Store(tmp_path, {}), Task(square), LocalEngine(1))
    text = (tmp_path / EPISODES_FILE).read_text().splitlines()
    (tmp_path / EPISODES_FILE).write_text(text[0] + "\nnonsense\n" + text[1] + "\n")
    with pytest.raises(HarnessError, match=r"episodes.jsonl, line 2 is damaged"):
        Store(tmp_path, {})


def test_a_full_disk_is_said_and_the_file_stays_whole(tmp_path):
    """A limit on file sizes gives the same error as a full disk, in a process of its own."""
    store = Store(tmp_path, {})
    store.add(JOBS[0], square(JOBS[0]))
    size = (tmp_path / EPISODES_FILE).stat().st_size
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, before[1]))
    try:
        with pytest.raises(
            HarnessError, match="cannot be written: File too large; 1 finished episodes are kept"
        ):
            store.add(JOBS[1], square(JOBS[1]))
        with pytest.raises(HarnessError, match="File too large; 1 finished episodes are kept: make room"):
            store.write("report.html", "x" * (size + 11))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(Store(tmp_path, {}).records) == JOBS[:1]
    assert not list(tmp_path.glob("report*"))
    assert store.write("report.html", "now there is room").read_text() == "now there is room"


def test_ctrl_c_ends_everything_at_once_and_what_was_finished_stays(tmp_path):
    """As a terminal sends it: to every process of the group, workers that are starting or flying included."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path\n"
        "from test_harness import *\n"
        "if __name__ == '__main__':\n"
        "    store = Store(Path(sys.argv[1]), {})\n"
        "    task = Task(wait_for_ever_at_2005, write_pid, (sys.argv[1],))\n"
        "    try:\n"
        "        run(JOBS[:6], store, task, LocalEngine(2))\n"
        "    except KeyboardInterrupt:\n"
        "        print('interrupted')\n"
    )
    (tmp_path / "run.py").write_text(program)
    command = [sys.executable, str(tmp_path / "run.py"), str(tmp_path / "run"), str(Path(__file__).parent)]
    process = subprocess.Popen(
        command, start_new_session=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    lines = tmp_path / "run" / EPISODES_FILE
    while not (lines.exists() and lines.read_text().count("\n") == 5):
        assert process.poll() is None
        time.sleep(0.02)
    pids = [int(path.suffix[1:]) for path in (tmp_path / "run").glob("worker.*")]
    assert len(pids) == 2
    os.killpg(process.pid, signal.SIGINT)
    began = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - began < 20.0  # the job under way would last for ever
    assert (process.returncode, out, err) == (0, "interrupted\n", "")
    assert not any(map(is_running, pids))
    assert results(tmp_path / "run") == {seed: seed**2 for seed in (2001, 2002, 2003, 2004, 2006)}


def test_workers_end_with_the_process_that_writes(tmp_path):
    """SIGKILL leaves the parent no time to end them."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path\n"
        "from test_harness import *\n"
        "if __name__ == '__main__':\n"
        "    store = Store(Path(sys.argv[1]), {})\n"
        "    run(JOBS, store, Task(wait_for_ever, write_pid, (sys.argv[1],)), LocalEngine(2))\n"
    )
    (tmp_path / "run.py").write_text(program)
    command = [sys.executable, str(tmp_path / "run.py"), str(tmp_path / "run"), str(Path(__file__).parent)]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 60.0
    pids: list[int] = []
    while len(pids) < 2:
        assert time.monotonic() < deadline, "the workers did not start"
        pids = [int(path.suffix[1:]) for path in (tmp_path / "run").glob("worker.*")]
        time.sleep(0.05)
    process.kill()
    process.wait()
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline, f"workers {pids} outlived the run"
        time.sleep(0.05)
