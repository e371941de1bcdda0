"""A server of OpenAI's API that others wrote, as a process: `transformers serve`, for a tiny model."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from nav_common.testing import free_port

START_LIMIT_S = 180.0
"""Loading torch on a machine that others use too; the model is loaded by the first request."""


def missing() -> str:
    """What of it is not installed, with the remedy; "" when nothing is missing."""
    if importlib.util.find_spec("accelerate") is None:
        return "transformers serve needs it: pip install accelerate==1.15.0"
    return "" if _program() else "no program `transformers` beside this Python"


def _program() -> str | None:
    return shutil.which("transformers", path=os.path.dirname(sys.executable))


class TransformersServer:
    """Started, killed and started again on one port. `folder`: for what it prints, and for the models it has
    downloaded, which it lists (none: a model's folder is given by its path)."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.process: subprocess.Popen[bytes] | None = None
        self._log = folder / "serve.log"
        self._downloaded = folder / "downloaded"
        self._downloaded.mkdir()

    def start(self) -> None:
        """Returns once it answers.

        Raises:
            RuntimeError: something is missing; it ended, or did not come up in time, with what it printed.
        """
        command = _program()
        if problem := missing():
            raise RuntimeError(problem)
        assert command
        with self._log.open("ab") as output:
            self.process = subprocess.Popen(
                [command, "serve", "--host", "127.0.0.1", "--port", str(self.port), "--device", "cpu"],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": "1",
                    "HF_HUB_OFFLINE": "1",
                    "HF_HUB_CACHE": str(self._downloaded),
                },
            )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        end_s = time.monotonic() + START_LIMIT_S
        while True:
            try:
                opener.open(f"http://127.0.0.1:{self.port}/health", timeout=5).close()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > end_s:
                    self.kill()
                    said = self._log.read_text(errors="replace")[-3000:]
                    raise RuntimeError(f"transformers serve does not come up:\n{said}") from None
                time.sleep(0.2)

    def kill(self) -> None:
        """By SIGKILL; returns once it is gone."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
