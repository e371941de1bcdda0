"""The process with the model, started by `serve`: loads it, serves the HTTP API on the socket it was given."""

from __future__ import annotations

import argparse
import os
import pickle
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import NoReturn

import uvicorn

from nav_common import atomic
from nav_common.process import CONFIGURATION_ERROR, SWITCH_INTERVAL_S
from nav_server import policy as policies
from nav_server import serve, settings
from nav_server.app import create_app
from nav_server.backends.factory import load_engine, make
from nav_server.policy import Policy
from nav_server.service import Service
from vlm_perception.guard import Guard, GuardSettings
from vlm_perception.scheduler import ModelThread

_CLOSE_LIMIT_S = 2.0
_KEEP_PERIOD_S = 0.5
"""Of saving the record: so much is lost by a kill."""


def decided(options: argparse.Namespace) -> Policy:
    """The policy, as the first of these processes decided it: what is down while a later one starts stays a choice.

    Raises:
        ValueError: there is none for what the options ask.
    """
    kept: Path = options.decided
    if kept.exists():
        return pickle.loads(kept.read_bytes())  # type: ignore[no-any-return]
    made = policies.decide_here(serve.policy_sources(options))
    print(made.summary(), flush=True)
    atomic.write_bytes(kept, pickle.dumps(made))
    return made


class _AnnouncingServer(uvicorn.Server):
    """uvicorn, which says on a pipe that it serves."""

    def __init__(self, config: uvicorn.Config, announce: int) -> None:
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        os.write(self._announce, b"ready\n")
        os.close(self._announce)


def _on_failure(error: BaseException) -> None:
    """What the streams hold is unknown now: the process ends, to be started anew."""
    traceback.print_exception(error)
    print(f"the model's thread has ended, and so does the process: {error}", file=sys.stderr, flush=True)
    os._exit(1)


def _keep(guard: Guard) -> NoReturn:
    """The guard's record outlives this process; one that only fails ends, to be started anew."""
    while True:
        time.sleep(_KEEP_PERIOD_S)
        try:
            guard.save()
        except OSError as error:
            _say(f"the guard's record cannot be written: {error}")
        if guard.restart_due:
            _say(f"ending, to be started anew: {guard.restart_due}")
            os._exit(1)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> NoReturn:
    parser = argparse.ArgumentParser(prog="nav_server.model_process", description=__doc__)
    serve.add_arguments(parser)
    parser.add_argument("--listener", type=int, required=True, help="file descriptor of the listening socket")
    parser.add_argument(
        "--announce", type=int, required=True, help="file descriptor to write to once it serves"
    )
    parser.add_argument(
        "--decided", type=Path, required=True, help="file of this service that keeps its policy"
    )
    options = parser.parse_args()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        http = settings.from_options(options)
        policy = decided(options)
        guard_settings = GuardSettings.around(policy.vision.max_tokens.value, policy.break_ms.value)
        guard = Guard(guard_settings, record_file=options.record, on_alert=_say)
        thread = ModelThread(_on_failure)
        backends = make(
            policy, guard, lambda role: load_engine(role, thread, options.torch_threads), _on_failure
        )
    except ValueError as error:
        print(f"nav_server serve: {error}", file=sys.stderr, flush=True)
        os._exit(CONFIGURATION_ERROR)
    thread.start()
    service = Service(backends, http)
    threading.Thread(target=_keep, args=(guard,), name="guard", daemon=True).start()
    service.health()  # the first answer is the slowest
    listener = socket.socket(fileno=options.listener)
    _AnnouncingServer(serve.uvicorn_config(create_app(service), http), options.announce).run([listener])
    thread.close(_CLOSE_LIMIT_S)
    guard.save()
    sys.stdout.flush()
    os._exit(0)  # what is left is taking torch down, which takes seconds and serves nobody


if __name__ == "__main__":
    main()
