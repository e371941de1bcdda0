"""`python -m nav_server serve`: keeps the process with the model running, and answers for it while it starts.

Two processes share one listening socket. The one with the model serves it; while that loads, or comes back after a
crash, this one answers: /health says so, everything else is asked to try again. No address is ever refused, and
nothing of torch is loaded here.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from nav_common.process import (
    CONFIGURATION_ERROR,
    Restarts,
    StopSignals,
    ending,
    popen,
)
from nav_server import access, policy, settings
from nav_server.connections import connection_class
from nav_server.problems import Problem
from nav_server.settings import HttpSettings

_STOP_S = 10.0
_POLL_S = 0.1


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "serve",
        help="the HTTP API, with a model of its own",
        description=f"Serve the HTTP API. Tokens come from {settings.TOKENS_VARIABLE}; the page is at /docs.",
    )
    add_arguments(parser)
    parser.set_defaults(run=_serve)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of this process and of the one with the model."""
    settings.add_arguments(parser)
    parser.add_argument(
        "--model",
        default="",
        metavar="DIR",
        help="folder of a Qwen2.5-VL model, for the engine to serve whatever else runs here; default: as the policy "
        "decides (`python -m nav_server policy --explain`)",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    policy.add_settings(parser)
    parser.add_argument("--torch-threads", type=int, default=1, metavar="INT", help="default %(default)s")
    parser.add_argument(
        "--record",
        type=Path,
        metavar="FILE",
        help="keeps the guard's counters over restarts; default: a temporary file, gone with this process",
    )


def _serve(options: argparse.Namespace) -> int:
    http = settings.from_options(options)
    if options.model:
        settings.check_model(Path(options.model), "--model")
    policy_sources(options)
    try:
        listener = socket.create_server((http.host, http.port), family=_family(http.host), backlog=128)
    except OSError as error:
        raise ValueError(
            f"cannot listen on {http.host} port {http.port}: {error.strerror or error}"
        ) from None
    port = listener.getsockname()[1]
    with listener, tempfile.TemporaryDirectory(prefix="nav_server-") as folder:
        arguments = [
            *(f"--{name.replace('_', '-')}={getattr(options, name)}" for name in _SHARED),
            *policy.arguments_of(options),
            f"--record={options.record or Path(folder) / 'record.json'}",
            f"--decided={Path(folder) / 'policy'}",
            f"--listener={listener.fileno()}",
        ]
        print(f"listening on http://{http.host}:{port} (page: /docs); loading", flush=True)
        return ModelProcess(listener, arguments, http).run(StopSignals())


def policy_sources(options: argparse.Namespace) -> policy.Sources:
    """What the options, and whatever else, say of the policy. Raises PolicyError."""
    given: dict[str, str] = {}
    if options.model:
        given = {"qwen_model_path": options.model, "local_vision_provider": "engine"}
    if options.device != "auto":
        given["device"] = options.device
    return policy.sources_of(options, given)


_SHARED = (
    *("host", "port", "max_clients", "idle_s", "max_body_bytes", "max_pixels", "requests_per_s"),
    *("max_connections", "connection_idle_s", "body_s", "model", "device", "torch_threads"),
)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


class ModelProcess:
    """The process with the model, started again whenever it ends."""

    def __init__(self, listener: socket.socket, arguments: Sequence[str], http: HttpSettings) -> None:
        self._listener = listener
        self._arguments = arguments
        self._http = http
        self._restarts = Restarts()

    def run(self, signals: StopSignals) -> int:
        """Until a signal asks to stop, or the process refuses its configuration; the exit status."""
        why = "the model is being loaded"
        while True:
            began_s = time.monotonic()
            status = self._run_once(signals, why)
            if status is None:
                return 0
            if status == CONFIGURATION_ERROR:
                return CONFIGURATION_ERROR
            wait_s = self._restarts.delay_s(time.monotonic() - began_s)
            why = f"the process with the model {ending(status)}: it is being started again"
            print(f"{why} in {wait_s:g} s", file=sys.stderr, flush=True)
            with self._standing_in(why):
                if signals.wait(wait_s):
                    return 0

    def _run_once(self, signals: StopSignals, why: str) -> int | None:
        """Its exit status; None: it was stopped, as a signal asked for."""
        ready, announce = os.pipe()
        try:
            process = popen(
                [
                    sys.executable,
                    "-m",
                    "nav_server.model_process",
                    *self._arguments,
                    f"--announce={announce}",
                ],
                pass_fds=(self._listener.fileno(), announce),
                stdin=subprocess.DEVNULL,
            )
            os.close(announce)
            with self._standing_in(why):
                while process.poll() is None and not signals.wait(_POLL_S):
                    # Readable: it is ready, or it has ended.
                    if select.select([ready], [], [], 0.0)[0]:
                        break
            while process.poll() is None and not signals.wait(_POLL_S):
                pass
            if process.poll() is None:
                _end(process)
                return None
            return process.returncode
        finally:
            os.close(ready)

    @contextlib.contextmanager
    def _standing_in(self, why: str) -> Iterator[None]:
        """Within this block the requests are answered here."""
        server = uvicorn.Server(uvicorn_config(_stand_in(self._http, why), self._http))
        thread = threading.Thread(
            target=server.run, kwargs={"sockets": [self._listener.dup()]}, name="stand-in", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            server.should_exit = True
            thread.join()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _stand_in(http: HttpSettings, why: str) -> Starlette:
    async def answer(request: Request) -> JSONResponse:
        try:
            access.client_of(Headers(scope=request.scope), http.tokens)
        except Problem as problem:
            return JSONResponse({"detail": problem.detail}, problem.status)
        health = {"status": "unhealthy", "latency_ms": 0.0, "model_loaded": False, "message": why}
        content = (
            health if request.url.path == "/health" else {"detail": f"{why}: try again in a few seconds"}
        )
        # Closed: the next request of this client shall find the process with the model.
        headers = {"Retry-After": "2", "Connection": "close"}
        return JSONResponse(content, HTTPStatus.SERVICE_UNAVAILABLE, headers)

    methods = ["GET", "POST"]
    return Starlette(routes=[Route("/{path:path}", answer, methods=methods)])


def uvicorn_config(app: object, http: HttpSettings) -> uvicorn.Config:
    """uvicorn's configuration for an application behind these limits."""
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        http=connection_class(http.max_connections, http.connection_idle_s),
        loop="asyncio",  # not what happens to be installed: uvloop's transports are others
        ws="websockets-sansio",
        ws_per_message_deflate=False,  # what the page gets is small and often
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=2,
        server_header=False,
    )
