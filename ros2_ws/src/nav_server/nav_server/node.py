"""Perception's node with backends by policy, and on the same backends the HTTP API and the monitoring page: one loaded
model, the flying drone first."""

from __future__ import annotations

import dataclasses
import os
import socket
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

import uvicorn

from nav_common.ros import declare, run
from nav_pilot import model_folder
from nav_server.app import create_app
from nav_server.backends.factory import Backends, Callbacks, Served, load_engine, make
from nav_server.page import PATH
from nav_server.page.board import Board
from nav_server.page.node import GraphFeed
from nav_server.page.view import add_page
from nav_server.policy import BackendKind, Sources, decide_here
from nav_server.serve import uvicorn_config
from nav_server.service import Service
from nav_server.settings import DEFAULT_PORT, HttpSettings, tokens_of_environment
from vlm_perception.backend import Backend
from vlm_perception.guard import GuardSettings
from vlm_perception.node import ModelParameters, VlmPerception
from vlm_perception.stream import StreamSettings

DRONE_PRIORITY = 1
"""The streams of HTTP clients have 0."""
BY_POLICY = "auto"
_CLOSE_LIMIT_S = 3.0


class ServedPerception(VlmPerception):
    """VlmPerception on the backends of a policy, and the HTTP API on the same. Parameters: perception's, `vision`,
    `http`, and those of HttpSettings with http_ before the name; tokens come from the environment."""

    def __init__(self, **kwargs: Any) -> None:
        self._memory_stamps_s: list[float] = []
        super().__init__(**kwargs)
        self.http_port = 0
        self._http: uvicorn.Server | None = None
        settings = self._http_settings()
        runs: str = declare(self, "http_runs", "runs", "folder of past flights, for the monitoring page")
        if declare(self, "http", True, "serve the HTTP API"):
            self._serve(settings, Path(runs).expanduser().absolute())

    def _make_stream(self, settings: StreamSettings) -> Backend:
        vision: str = declare(
            self,
            "vision",
            str(BackendKind.ENGINE),
            "what sees and decides: the engine with `model`, a model server, or auto: as the execution policy says",
            choices=(BY_POLICY, *map(str, BackendKind)),
        )
        chosen = self._declare_model()
        self._backends = self._begin(vision, chosen)
        callbacks = Callbacks(
            self._publish_status,
            self._publish_watch,
            self._publish_active_frames,
            self._on_warning,
            self._on_fallback,
        )
        return self._backends.stream(
            priority=DRONE_PRIORITY, settings=settings, callbacks=callbacks, bank=self._bank()
        )

    def _begin(self, vision: str, chosen: ModelParameters) -> Backends:
        if vision == BackendKind.ENGINE:
            model, form = self._load(chosen)
            served = Served(model, form, Path(chosen.folder).name, self._model)
            return Backends([served], self._wall, self._guard)
        policy = decide_here(Sources(_arguments(vision, chosen)))
        for line in policy.summary().splitlines():
            self.get_logger().info(line)
        return make(
            policy,
            self._guard,
            lambda role: load_engine(role, self._model, chosen.torch_threads),
            self._on_model_failure,
            self._wall,
        )

    def _guard_defaults(self) -> GuardSettings:
        said = Sources({}).settings  # the file .env too
        return GuardSettings.around(said.default_max_tokens, said.circuit_breaker_threshold)

    def _on_fallback(self, reason: str) -> None:
        self.get_logger().warning(f"answers from now on: {reason}")
        self._publish_status()

    def _serve(self, settings: HttpSettings, runs: Path) -> None:
        service = Service(self._backends, settings)
        try:
            listener = socket.create_server((settings.host, settings.port), backlog=128)
        except OSError as error:
            raise ValueError(
                f"parameter http_port is {settings.port}: cannot listen on {settings.host}: {error.strerror or error}"
            ) from None
        self.http_port = int(listener.getsockname()[1])
        board = Board()
        self._feed = GraphFeed(self, self._namespace, board, self._wall, lambda: self._memory_stamps_s)
        app = create_app(service)
        add_page(
            app,
            board,
            self._feed,
            now=self._wall.now,
            runs=runs,
            tokens=bool(settings.tokens),
        )
        self._http = uvicorn.Server(uvicorn_config(app, settings))
        self._http_thread = threading.Thread(
            target=self._http.run, kwargs={"sockets": [listener]}, name="http", daemon=True
        )
        self._http_thread.start()
        self.get_logger().info(
            f"HTTP API on http://{settings.host}:{self.http_port}, pages: {PATH}/ (monitoring), /docs"
        )

    def _http_settings(self) -> HttpSettings:
        host: str = declare(self, "http_host", "127.0.0.1", "address of the HTTP API; others need a token")
        port: int = declare(
            self, "http_port", DEFAULT_PORT, "its port; 0: any free one", minimum=0, maximum=65535
        )
        clients: int = declare(
            self, "http_max_clients", HttpSettings.max_clients, "streams at a time", minimum=1, maximum=64
        )
        settings = HttpSettings(max_clients=clients)
        return dataclasses.replace(settings, host=host, port=port, tokens=tokens_of_environment())

    def _publish_status(self) -> None:
        super()._publish_status()
        self._memory_stamps_s = self.stream.chunk_stamps_s

    def destroy_node(self) -> None:
        if self._http is not None:
            self._feed.close()
            self._http.should_exit = True
            self._http_thread.join(_CLOSE_LIMIT_S)
        super().destroy_node()
        self._backends.close()


def _arguments(vision: str, chosen: ModelParameters) -> dict[str, Any]:
    """The parameters, as arguments of the policy."""
    said: dict[str, Any] = {}
    if vision == BackendKind.CLOUD:
        said["force_cloud"] = True
    elif vision != BY_POLICY:
        said["local_vision_provider"] = vision
    if Path(chosen.folder) != model_folder():
        said["qwen_model_path"] = chosen.folder
    if chosen.device != "auto":
        said["device"] = chosen.device
    if chosen.max_cache_tokens:
        said["max_cache_tokens"] = chosen.max_cache_tokens
    return said


def main() -> NoReturn:
    status = run(ServedPerception, threads=1)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # as perception's own: taking torch down takes seconds


if __name__ == "__main__":
    main()
