"""Jobs on a Ray cluster: `--engine ray`. Ray is an optional extra (`requirements-ray.txt`).

Episodes are independent, so that there is nothing to schedule: each is a task of one core. A task whose worker or
machine dies is done again elsewhere, by Ray. Every machine of the cluster needs this project built, its environment in
PYTHONPATH (`source scripts/env.sh` before `ray start`), and the model's folder at the same path.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Any

from nav_eval.harness import HarnessError, Job, Record, Results, Task, WorkerDiedError

RETRIES = 3
"""Of a task whose worker died (chosen): a machine that goes away is outlived, an episode that kills its worker is not
flown for ever."""
CONNECT_TIMEOUT_S = 5.0


class RayEngine:
    """The cluster that RAY_ADDRESS names, or one made of this machine.

    processes: cores of the cluster that is made here; a cluster that exists has its own.
    """

    def __init__(self, processes: int) -> None:
        """
        Raises:
            HarnessError: Ray is not installed.
        """
        try:
            import ray
        except ImportError as error:
            raise HarnessError(
                "--engine ray needs Ray, which is not installed: python -m pip install -r requirements-ray.txt"
            ) from error
        self._ray = ray
        self._processes = processes

    def results(self, jobs: Sequence[Job], task: Task) -> Results:
        """See `harness.Engine.results`."""
        ray = self._ray
        self._connect()
        try:
            remote = ray.remote(num_cpus=1, max_retries=RETRIES)(_do)
            shared = ray.put(task)
            pending = {remote.remote(shared, os.getcwd(), job): job for job in jobs}
            while pending:
                done, _ = ray.wait(list(pending))
                for reference in done:
                    yield pending.pop(reference), ray.get(reference)
        except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
            raise WorkerDiedError from error
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        finally:
            ray.shutdown()

    def _connect(self) -> None:
        """Without a log of every worker, a dashboard, or a report of how Ray is used."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        address = os.environ.get("RAY_ADDRESS", "")
        options: dict[str, Any] = {} if address else {"num_cpus": self._processes, "include_dashboard": False}
        try:
            _check_listening(address)
            self._ray.init(log_to_driver=False, configure_logging=False, **options)
        except (OSError, ValueError, RuntimeError) as error:
            raise HarnessError(
                f"no Ray cluster can be used at {address!r}: {error}; check RAY_ADDRESS"
            ) from error


def _check_listening(address: str) -> None:
    """OSError where nobody listens, which Ray would try again for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S).close()


_set_up_for: Task | None = None


def _do(task: Task, folder: str, job: Job) -> Record:
    """In a worker, which is set up once, in the folder that relative paths are from."""
    global _set_up_for
    if task != _set_up_for:
        os.chdir(folder)
        if task.setup is not None:
            task.setup(*task.setup_arguments)
        _set_up_for = task
    return task.work(job)
