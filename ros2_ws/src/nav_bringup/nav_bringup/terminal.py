"""One line of the terminal that keeps changing, ordinary lines above it; plain lines where there is no terminal."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from typing import TextIO


class Terminal:
    """Usable from any thread. A terminal that was closed, or a pipe without a reader, swallows what is written.

    `status` replaces the changing line; without a terminal it is printed when its `key` differs from the last one's.
    The changing line is dim, unless NO_COLOR is set (https://no-color.org).
    """

    def __init__(self, stream: TextIO = sys.stdout) -> None:
        self._stream = stream
        self._live = stream.isatty() and os.environ.get("TERM") != "dumb"
        self._dim, self._plain = ("", "") if os.environ.get("NO_COLOR") else ("\x1b[2m", "\x1b[0m")
        self.lost = False
        """Whether the terminal was closed. Only the leader of a session gets SIGHUP then, which may be `make`."""
        self._lock = threading.Lock()
        self._shown = ""
        self._key: object = None

    def status(self, line: str, key: object = None) -> None:
        with self._lock:
            if self._live:
                width = shutil.get_terminal_size().columns - 1
                shown = f"{self._dim}{line[:width]}{self._plain}"
                if shown != self._shown:
                    self._shown = shown
                    self._write(f"\r\x1b[2K{shown}")
            elif key != self._key:
                self._key = key
                self._write(line + "\n")

    def say(self, line: str) -> None:
        """An ordinary line, which stays."""
        with self._lock:
            before = "\r\x1b[2K" if self._shown else ""
            self._write(f"{before}{line}\n{self._shown}")

    def end_status(self) -> None:
        """Let the changing line stay as it is."""
        with self._lock:
            if self._shown:
                self._write("\n")
                self._shown = ""

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:
            self.lost = self._live
            # What is still buffered would fail again at the interpreter's end.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
