"""One line of the terminal that keeps changing, ordinary lines above it; plain lines where there is no terminal."""

from __future__ import annotations

import shutil
import sys
import threading
from typing import TextIO


class Terminal:
    """Usable from any thread.

    `status` replaces the changing line; without a terminal it is printed when its `key` differs from the last one's.
    """

    def __init__(self, stream: TextIO = sys.stdout) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._lock = threading.Lock()
        self._shown = ""
        self._key: object = None

    def status(self, line: str, key: object = None) -> None:
        with self._lock:
            if self._live:
                width = shutil.get_terminal_size().columns - 1
                self._shown = line[:width]
                self._stream.write(f"\r\x1b[2K{self._shown}")
            elif key != self._key:
                self._key = key
                self._stream.write(line + "\n")
            self._stream.flush()

    def say(self, line: str) -> None:
        """An ordinary line, which stays."""
        with self._lock:
            if self._shown:
                self._stream.write("\r\x1b[2K")
            self._stream.write(line + "\n")
            if self._shown:
                self._stream.write(self._shown)
            self._stream.flush()

    def end_status(self) -> None:
        """Let the changing line stay as it is."""
        with self._lock:
            if self._shown:
                self._stream.write("\n")
                self._shown = ""
                self._stream.flush()
