"""Perception's node with the HTTP API and the monitoring page in the same process: one loaded model, the flying drone's
stream first."""

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
from nav_server.app import create_app
from nav_server.page import PATH
from nav_server.page.board import Board
from nav_server.page.node import GraphFeed
from nav_server.page.view import add_page
from nav_server.serve import uvicorn_config
from nav_server.service import Service
from nav_server.sessions import Served
from nav_server.settings import DEFAULT_PORT, HttpSettings, tokens_of_environment
from vlm_perception.node import VlmPerception

DRONE_PRIORITY = 1
"""The streams of HTTP clients have 0."""
_CLOSE_LIMIT_S = 3.0


class ServedPerception(VlmPerception):
    """VlmPerception, and the HTTP API over its model. Parameters: perception's, and those of HttpSettings with http_
    before the name; tokens come from the environment."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        settings = self._http_settings()
        runs: str = declare(self, "http_runs", "runs", "folder of past flights, for the monitoring page")
        self.stream.priority = DRONE_PRIORITY
        name = os.path.basename(str(self.get_parameter("model").value).rstrip("/"))
        served = Served(self.qwen, self.stream.form, name)
        service = Service(served, self._model, settings, guard=self._guard)
        try:
            listener = socket.create_server((settings.host, settings.port), backlog=128)
        except OSError as error:
            raise ValueError(
                f"parameter http_port is {settings.port}: cannot listen on {settings.host}: {error.strerror or error}"
            ) from None
        self.http_port = int(listener.getsockname()[1])
        board, self._memory_stamps_s = Board(), list[float]()
        self._feed = GraphFeed(self, self._namespace, board, self._wall, lambda: self._memory_stamps_s)
        app = create_app(service)
        add_page(
            app,
            board,
            self._feed,
            now=self._wall.now,
            runs=Path(runs).expanduser().absolute(),
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
        self._memory_stamps_s = self.stream.memory.chunk_stamps_s

    def destroy_node(self) -> None:
        self._feed.close()
        self._http.should_exit = True
        self._http_thread.join(_CLOSE_LIMIT_S)
        super().destroy_node()


def main() -> NoReturn:
    status = run(ServedPerception, threads=1)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # as perception's own: taking torch down takes seconds


if __name__ == "__main__":
    main()
