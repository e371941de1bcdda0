"""An HTTP server in a thread of this process."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI

from nav_server.app import create_app
from nav_server.serve import uvicorn_config
from nav_server.service import Service
from nav_server.settings import HttpSettings

# What tests send in a second must not be what is tested.
SETTINGS = HttpSettings(port=0, requests_per_s=10_000.0)


@contextlib.contextmanager
def running(service: Service) -> Iterator[str]:
    """Serves within this block, on a free port of loopback; its address."""
    with listening(create_app(service), service.settings) as address:
        yield address


@contextlib.contextmanager
def listening(app: FastAPI, settings: HttpSettings) -> Iterator[str]:
    """Serves an application, as `running` does."""
    server = uvicorn.Server(uvicorn_config(app, settings))
    server.config.host, server.config.port = "127.0.0.1", 0
    worker = threading.Thread(target=server.run, name="http", daemon=True)
    worker.start()
    while not server.started:
        assert worker.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        worker.join(15.0)
        assert not worker.is_alive()
