"""Keys from a terminal, whole: a special key is several characters, of which none may pass for a letter."""

from __future__ import annotations

import codecs
import contextlib
import importlib
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

ESCAPE = "\x1b"
# What follows within this time makes a sequence of an Esc, otherwise it is a key of its own: terminals send a sequence
# at once, and a slow line splits it seldom by more.
ESCAPE_TIMEOUT_S = 0.1
# A sequence that has begun and does not end is given up after this long.
SEQUENCE_TIMEOUT_S = 1.0


class PosixKeys:
    """Keys in the characters of a POSIX terminal (ECMA-48): a special key is a sequence that begins with Esc.

    Sequences are read whole, and none of them stands for a key of this program; a lone Esc is a key.
    """

    def __init__(self) -> None:
        self._sequence = ""
        self._began_at = 0.0

    def feed(self, character: str, now: float) -> str:
        """The keys that are complete with `character`, read at `now` (s)."""
        keys = self.expire(now)
        if self._sequence == "" and character != ESCAPE:
            return keys + character
        if self._sequence == "" or (self._sequence == ESCAPE and character == ESCAPE):
            self._sequence, self._began_at = ESCAPE, now  # two: Alt with a special key
            return keys
        self._sequence += character
        if self._is_whole():
            self._sequence = ""
        return keys

    def expire(self, now: float) -> str:
        """The keys that are complete because nothing more has come until `now` (s)."""
        age_s = now - self._began_at
        if self._sequence == ESCAPE and age_s > ESCAPE_TIMEOUT_S:
            self._sequence = ""
            return ESCAPE
        if self._sequence and age_s > SEQUENCE_TIMEOUT_S:
            self._sequence = ""
        return ""

    def _is_whole(self) -> bool:
        kind, rest = self._sequence[1], self._sequence[2:]
        if (
            kind == "["
        ):  # parameters and intermediates, then a final byte; the Linux console has Esc [ [ A for F1
            return bool(rest) and rest != "[" and not " " <= rest[-1] <= "?"
        if kind == "O":  # perhaps a digit for the modifiers, then one letter
            return bool(rest) and not rest[-1].isdigit()
        if kind in "]P":  # a terminal's answer in words (OSC, DCS), to its end
            return rest.endswith(("\a", ESCAPE + "\\"))
        return True  # Alt with a key


class WindowsKeys:
    """Keys in the characters of msvcrt.getwch: a special key is two characters, the first NUL or U+00E0.

    U+00E0 is also the letter a with a grave accent, which nothing follows at once. Neither is a key of this program.
    """

    def __init__(self) -> None:
        self._prefix_at: float | None = None

    def feed(self, character: str, now: float) -> str:
        """The keys that are complete with `character`, read at `now` (s)."""
        self.expire(now)
        if self._prefix_at is not None:
            self._prefix_at = None
            return ""
        if character in ("\x00", "\xe0"):
            self._prefix_at = now
            return ""
        return character

    def expire(self, now: float) -> str:
        """Give up a prefix that nothing has followed until `now` (s)."""
        if self._prefix_at is not None and now - self._prefix_at > ESCAPE_TIMEOUT_S:
            self._prefix_at = None
        return ""


class Keys:
    """Keys from the terminal one by one, without Enter; from a pipe, whatever comes. A context manager."""

    def __init__(self) -> None:
        self._decoder: PosixKeys | WindowsKeys = PosixKeys()
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._terminal: Any = None
        self._attributes: Any = None
        self._read: queue.SimpleQueue[tuple[float, str]] = queue.SimpleQueue()

    def __enter__(self) -> Keys:
        read = self._read_stdin
        if sys.stdin.isatty():
            if sys.platform == "win32":
                read = importlib.import_module("msvcrt").getwch
                self._decoder = WindowsKeys()
            else:
                self._terminal = importlib.import_module("termios")
                self._attributes = self._terminal.tcgetattr(sys.stdin)
                importlib.import_module("tty").setcbreak(sys.stdin)
        threading.Thread(target=self._pump, args=(read,), name="keys", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._terminal is not None:
            with contextlib.suppress(self._terminal.error):  # the terminal is gone
                self._terminal.tcsetattr(sys.stdin, self._terminal.TCSADRAIN, self._attributes)

    def take(self) -> str:
        """Keys pressed since the last call."""
        keys = ""
        now = time.monotonic()  # before the queue is read: what has been read until now is in it
        while True:
            try:
                read_at, text = self._read.get_nowait()
            except queue.Empty:
                return keys + self._decoder.expire(now)
            for character in text:
                keys += self._decoder.feed(character, read_at)

    def _pump(self, read: Callable[[], str]) -> None:
        while text := read():
            self._read.put((time.monotonic(), text))

    def _read_stdin(self) -> str:
        """What has come, "" at the end. Past Python's buffer: a thread that waits in it holds a lock that the
        interpreter needs at exit."""
        text = ""
        while not text:
            try:
                data = os.read(sys.stdin.fileno(), 1024)
            except OSError:  # the terminal is gone
                return ""
            if not data:
                return ""
            text = self._utf8.decode(data)
        return text
