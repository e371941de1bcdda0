"""The same jobs on a Ray cluster of two workers: the same results, also after a worker is killed.

Ray is an optional extra: `python -m pip install -r requirements-ray.txt`.
"""

from __future__ import annotations

import importlib.util
import os
import signal
from pathlib import Path

import pytest

from nav_eval.harness import EPISODES_FILE, HarnessError, Job, LocalEngine, Record, Store, Task, run
from nav_eval.ray_engine import RETRIES, RayEngine

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="Ray is not installed (python -m pip install -r requirements-ray.txt): no cluster was tried",
)
JOBS = [Job("field", "streaming", "", seed) for seed in range(2001, 2009)]
_offset = 0


def set_up(offset: int) -> None:
    global _offset
    _offset = offset


def square(job: Job) -> Record:
    return {"square": job.seed**2 + _offset, "folder": os.getcwd()}


def die_once_at_2003(job: Job) -> Record:
    marker = Path("died")
    if job.seed == 2003 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return square(job)


def die_at_2003(job: Job) -> Record:
    if job.seed == 2003:
        with open("deaths", "a") as file:
            file.write("x")
        os.kill(os.getpid(), signal.SIGKILL)
    return square(job)


def fail_at_2003(job: Job) -> Record:
    if job.seed == 2003:
        raise ValueError("seed 2003: no such world")
    return square(job)


def lines(folder: Path) -> list[str]:
    return sorted((folder / EPISODES_FILE).read_text().splitlines())


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the command is called in; the cluster's workers import this module."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return tmp_path


@needs_ray
@pytest.mark.timeout(300)
def test_a_cluster_of_two_workers_gives_the_results_of_this_machine_also_when_one_is_killed(
    here: Path,
) -> None:
    run(JOBS, Store(here / "local", {}), Task(square, set_up, (5,)), LocalEngine(2))
    run(JOBS, Store(here / "ray", {}), Task(die_once_at_2003, set_up, (5,)), RayEngine(2))
    assert (here / "died").exists()
    assert lines(here / "ray") == lines(here / "local")


@needs_ray
@pytest.mark.timeout(300)
def test_a_job_that_kills_its_workers_or_fails_ends_the_run_and_what_was_finished_stays(here: Path) -> None:
    with pytest.raises(HarnessError, match=r"a worker process died .* finished and kept"):
        run(JOBS, Store(here / "run", {}), Task(die_at_2003), RayEngine(2))
    assert len((here / "deaths").read_text()) == 1 + RETRIES
    with pytest.raises(ValueError, match="seed 2003: no such world"):
        run(JOBS, Store(here / "run", {}), Task(fail_at_2003), RayEngine(2))
    run(JOBS, Store(here / "run", {}), Task(square), RayEngine(2))
    run(JOBS, Store(here / "local", {}), Task(square), LocalEngine(2))
    assert lines(here / "run") == lines(here / "local")


@needs_ray
@pytest.mark.timeout(300)
def test_a_cluster_that_is_not_there_is_said(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(HarnessError, match=r"no Ray cluster can be used at .*refused.* check RAY_ADDRESS"):
        run(JOBS, Store(here / "run", {}), Task(square), RayEngine(2))


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_it_is_said_how_to_get_it() -> None:
    with pytest.raises(HarnessError, match=r"pip install -r requirements-ray\.txt"):
        RayEngine(2)
