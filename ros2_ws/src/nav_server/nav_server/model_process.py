"""The process with the model, started by `serve`: loads it, serves the HTTP API on the socket it was given."""

from __future__ import annotations

import argparse
import os
import socket
import sys
import threading
import time
import traceback
from typing import NoReturn

import torch
import uvicorn

from nav_common.process import CONFIGURATION_ERROR, SWITCH_INTERVAL_S
from nav_pilot import model_folder
from nav_server import serve, settings
from nav_server.app import create_app
from nav_server.service import Service
from nav_server.sessions import Served
from vlm_perception.engine import QwenModel
from vlm_perception.guard import Guard
from vlm_perception.scheduler import ModelThread
from vlm_perception.serving_form import ServingForm

_CLOSE_LIMIT_S = 2.0
_KEEP_PERIOD_S = 0.5
"""Of saving the record: so much is lost by a kill."""


def load(options: argparse.Namespace) -> Served:
    """The model of the options, loaded.

    Raises:
        ValueError: it cannot be, or not on that device.
    """
    folder = settings.model_of(options.model, model_folder())
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device is cuda, but torch finds no GPU: use auto or cpu")
    torch.set_num_threads(options.torch_threads)
    form = ServingForm.load(folder)
    device = None if options.device == "auto" else options.device
    return Served(QwenModel.load(folder, size=(form.width, form.height), device=device), form, folder.name)


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
    options = parser.parse_args()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        http = settings.from_options(options)
        served = load(options)
    except ValueError as error:
        print(f"nav_server serve: {error}", file=sys.stderr, flush=True)
        os._exit(CONFIGURATION_ERROR)
    thread = ModelThread(_on_failure)
    guard = Guard(record_file=options.record, on_alert=_say)
    service = Service(served, thread, http, guard=guard)
    thread.start()
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
