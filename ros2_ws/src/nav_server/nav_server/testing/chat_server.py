"""A server of OpenAI's chat API, which gives the answers that it was given and notes what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ANSWERS = Path(__file__).parent / "answers"


def recorded(name: str) -> dict[str, Any]:
    """An answer of LM Studio or Ollama."""
    return dict(json.loads((ANSWERS / f"{name}.json").read_text()))


def saying(text: str) -> dict[str, Any]:
    """An answer of these words."""
    message = {"role": "assistant", "content": text}
    return {
        **recorded("lm_studio_text"),
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
    }


class ChatServer:
    """`answers`: (status, body) for one request after the other, the last for all that follow."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, Any]] = []
        self.requests: list[dict[str, Any]] = []
        self.hold: threading.Event | None = None
        """Answers wait for it."""
        self.asked = threading.Event()
        self.url = ""
        self._httpd: ThreadingHTTPServer | None = None

    def start(self, port: int = 0) -> None:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def _send(self, status: int, body: Any) -> None:
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self) -> None:
                self._send(200, {"object": "list", "data": [{"id": "moondream2", "object": "model"}]})

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                owner.requests.append(json.loads(body))
                owner.asked.set()
                if owner.hold:
                    owner.hold.wait(30.0)
                status, answer = owner.answers[0] if len(owner.answers) == 1 else owner.answers.pop(0)
                self._send(status, answer)

            def log_message(self, *arguments: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

            def handle_error(self, *arguments: object) -> None:
                pass  # a client that has gone

        self._httpd = Server(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self._httpd.server_address[1]}/v1"
        threading.Thread(target=self._httpd.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def port(self) -> int:
        assert self._httpd
        return int(self._httpd.server_address[1])

    def stop(self) -> None:
        if self._httpd:
            self._httpd.shutdown()
            self._httpd.server_close()
            self._httpd = None


@contextmanager
def chat_server(*answers: tuple[int, Any]) -> Iterator[ChatServer]:
    server = ChatServer()
    server.answers = list(answers)
    server.start()
    try:
        yield server
    finally:
        if server.hold:
            server.hold.set()
        server.stop()
