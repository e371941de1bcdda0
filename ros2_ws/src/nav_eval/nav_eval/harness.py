"""Independent jobs in parallel processes, each result kept as soon as it is there: a run that was killed goes on where
it was, with nothing lost or counted twice.

A run has a folder: `run.json` says what it is of, `episodes.jsonl` holds one line for each finished job. One process
writes; the others fly, here (`LocalEngine`) or on a cluster (`nav_eval.ray_engine`). A line that was cut off by a kill
is dropped, and its job done again.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from nav_common.atomic import write_text

RUN_FILE = "run.json"
EPISODES_FILE = "episodes.jsonl"

Record = dict[str, Any]
Results = Generator[tuple["Job", Record], None, None]


class HarnessError(RuntimeError):
    """A run that cannot begin or go on; the message says why, what was kept and what to do."""


@dataclass(frozen=True, order=True)
class Job:
    """One episode to fly. `control`: "" for the policy as it is. `forced`: the tool call (JSON) forced at the decision
    that the run is a fork of; "" for none."""

    scene: str
    variant: str
    control: str
    seed: int
    forced: str = ""


class Store:
    """The finished jobs of a run, on disk."""

    def __init__(self, folder: Path, run: Mapping[str, Any]) -> None:
        """Open the run in `folder`, or begin it.

        Args:
            run: what the run is of; JSON. The same run goes on; another one must not be mixed in.

        Raises:
            HarnessError: the folder holds another run, is damaged, or cannot be written.
        """
        self._path = folder / EPISODES_FILE
        self._folder = folder
        self.records: dict[Job, Record] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._claim(folder / RUN_FILE, dict(run))
            self._read()
        except OSError as error:
            raise self._unwritable(error) from error

    def _claim(self, path: Path, run: Record) -> None:
        wanted = json.loads(json.dumps(run))
        if not path.exists():
            write_text(path, json.dumps(wanted, indent=1) + "\n")
            return
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise HarnessError(
                f"{path} is damaged ({error}): remove the folder and start the run anew"
            ) from error
        different = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
        if different:
            key = different[0]
            raise HarnessError(
                f"{path.parent} holds another run: its {key} is {found.get(key)!r:.80}, not {wanted.get(key)!r:.80}; "
                "choose another folder"
            )

    def _read(self) -> None:
        """All whole lines; what follows the last of them is cut off."""
        if not self._path.exists():
            return
        data = self._path.read_bytes()
        whole = data.rfind(b"\n") + 1
        for number, line in enumerate(data[:whole].splitlines(), 1):
            try:
                record = json.loads(line)
                job = Job(**record["job"])
            except (ValueError, KeyError, TypeError) as error:
                raise HarnessError(
                    f"{self._path}, line {number} is damaged ({error}): remove that line"
                ) from error
            self.records[job] = record
        if whole != len(data):
            os.truncate(self._path, whole)

    def add(self, job: Job, record: Record) -> None:
        """Keep a result, on disk before this returns.

        Raises:
            HarnessError: it cannot be written; what was there stays whole.
        """
        line = json.dumps({"job": asdict(job), **record}, separators=(",", ":")) + "\n"
        size = self._path.stat().st_size if self._path.exists() else 0
        try:
            with open(self._path, "ab") as file:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if self._path.exists():
                os.truncate(self._path, size)
            raise self._unwritable(error) from error
        self.records[job] = json.loads(line)

    def write(self, name: str, text: str) -> Path:
        """A file of the run's folder, whole or not at all; its path.

        Raises:
            HarnessError: it cannot be written; an earlier one stays.
        """
        path = self._folder / name
        try:
            write_text(path, text)
        except OSError as error:
            raise self._unwritable(error) from error
        return path

    def _unwritable(self, error: OSError) -> HarnessError:
        return HarnessError(
            f"{self._folder} cannot be written: {error.strerror or error}; {len(self.records)} finished episodes are "
            "kept: make room and run the same command again"
        )


class Engine(Protocol):
    """Where jobs are done: processes of this machine, or a cluster."""

    def results(self, jobs: Sequence[Job], task: Task) -> Results:
        """Each job's result, in the order in which they come. When the iterator is closed, at whatever point,
        everything under way ends at once.

        Raises:
            WorkerDiedError: a worker ended in the middle of a job.
        """


@dataclass(frozen=True)
class Task:
    """What is done with each job. `work`: importable, and its result JSON. A process that does jobs calls
    `setup(*setup_arguments)` first."""

    work: Callable[[Job], Record]
    setup: Callable[..., None] | None = None
    setup_arguments: tuple[Any, ...] = ()


class WorkerDiedError(RuntimeError):
    """A worker ended in the middle of a job."""


def run(
    jobs: Sequence[Job],
    store: Store,
    task: Task,
    engine: Engine,
    on_finished: Callable[[Job, Record], None] = lambda job, record: None,
) -> None:
    """Do every job that the store does not hold yet.

    Args:
        on_finished: called in this process for each result, in the order in which they come.

    Raises:
        HarnessError: a worker died, or the store cannot be written. What was finished stays.
        Exception: whatever a job raised; what was finished stays.
    """
    missing = [job for job in jobs if job not in store.records]
    if not missing:
        return
    results = engine.results(missing, task)
    with contextlib.closing(results):
        try:
            for job, record in results:
                store.add(job, record)
                on_finished(job, store.records[job])
        except WorkerDiedError as error:
            kept = sum(job in store.records for job in jobs)
            raise HarnessError(
                f"a worker process died (killed, or out of memory); {kept} of {len(jobs)} episodes are "
                "finished and kept: run the same command again to go on"
            ) from error


class LocalEngine:
    """Processes of this machine."""

    def __init__(self, processes: int) -> None:
        self._processes = processes

    def results(self, jobs: Sequence[Job], task: Task) -> Results:
        """See `Engine.results`."""
        context = multiprocessing.get_context("spawn")
        ended, end = context.Pipe(duplex=False)
        pool = ProcessPoolExecutor(
            min(self._processes, len(jobs)), context, initializer=_set_up, initargs=(task, ended)
        )
        try:
            # The workers inherit that Ctrl-C is not for them: the terminal sends it to every process.
            with _blocked(signal.SIGINT):
                pending = {pool.submit(task.work, job): job for job in jobs}
            ended.close()
            while pending:
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    yield pending.pop(future), future.result()
        except BrokenProcessPool as error:
            raise WorkerDiedError from error
        finally:
            end.close()
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _blocked(signal_number: int) -> Iterator[None]:
    """A signal that comes meanwhile is delivered afterwards; threads and processes started meanwhile never get it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal_number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _set_up(task: Task, ended: multiprocessing.connection.Connection) -> None:
    """In a worker: end at once when the engine closes its end of the pipe, or its process ends, however that ends."""

    def follow() -> None:
        multiprocessing.connection.wait([ended])
        os._exit(1)

    threading.Thread(target=follow, name="follow-engine", daemon=True).start()
    if task.setup is not None:
        task.setup(*task.setup_arguments)
