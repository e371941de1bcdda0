"""Keys are read whole: no part of a special key passes for a letter, and a lone Esc is still a key."""

import os
import sys
import time

import pytest

from airsim_bridge.keyboard import MOTIONS
from airsim_bridge.keys import ESCAPE, ESCAPE_TIMEOUT_S, SEQUENCE_TIMEOUT_S, Keys, PosixKeys, WindowsKeys

POSIX = {
    "up": "\x1b[A",
    "right, application mode": "\x1bOC",
    "Delete": "\x1b[3~",
    "Page Up with Ctrl": "\x1b[5;5~",
    "F1": "\x1bOP",
    "F1 with Shift": "\x1bO2P",
    "F5": "\x1b[15~",
    "F3 of the Linux console": "\x1b[[C",
    "Alt with w": "\x1bw",
    "Alt with an arrow, rxvt": "\x1b\x1b[A",
    "mouse wheel, SGR": "\x1b[<64;10;10M",
    "a colour of the terminal": "\x1b]11;rgb:ffff/ffff/ffff\a",
    "the same, ended by ST": "\x1b]11;rgb:ffff/ffff/ffff\x1b\\",
    "the terminal's name": "\x1bP>|wezterm 20240203\x1b\\",
}
# What msvcrt.getwch gives: right ends in M (manual control), Delete in S (backward).
WINDOWS = {"up": "\xe0H", "right": "\xe0M", "Delete": "\xe0S", "F1": "\x00;", "Home": "\xe0G", "End": "\xe0O"}


def pressed(decoder, text, now=0.0):
    return "".join(decoder.feed(character, now) for character in text) + decoder.expire(now)


@pytest.mark.parametrize("sequence", POSIX.values(), ids=POSIX.keys())
def test_a_special_key_is_no_key_of_ours_and_the_next_letter_is(sequence):
    decoder = PosixKeys()
    assert pressed(decoder, sequence) == ""
    assert pressed(decoder, "wm") == "wm"
    assert decoder.expire(10.0) == ""  # nor an Esc afterwards


@pytest.mark.parametrize("sequence", WINDOWS.values(), ids=WINDOWS.keys())
def test_a_special_key_of_windows_neither(sequence):
    decoder = WindowsKeys()
    assert pressed(decoder, sequence) == ""
    assert pressed(decoder, "wm") == "wm"


def test_a_lone_esc_is_a_key_after_a_moment():
    decoder = PosixKeys()
    assert pressed(decoder, ESCAPE, 0.0) == ""
    assert decoder.expire(0.5 * ESCAPE_TIMEOUT_S) == ""
    assert decoder.expire(1.1 * ESCAPE_TIMEOUT_S) == ESCAPE
    assert pressed(decoder, "w", 1.0) == "w"


def test_esc_and_a_letter_later_are_two_keys():
    decoder = PosixKeys()
    pressed(decoder, ESCAPE, 0.0)
    assert pressed(decoder, "w", 1.0) == ESCAPE + "w"


def test_esc_held_down_is_esc():
    decoder = PosixKeys()
    assert "".join(pressed(decoder, ESCAPE, 0.03 * k) for k in range(20)) == ""
    assert decoder.expire(2.0) == ESCAPE


def test_a_sequence_split_by_a_slow_line_is_still_one():
    decoder = PosixKeys()
    assert pressed(decoder, "\x1b[", 0.0) == ""
    assert pressed(decoder, "A", 0.9 * SEQUENCE_TIMEOUT_S) == ""
    assert pressed(decoder, "w", 1.0) == "w"


@pytest.mark.parametrize("begun", ["\x1b[", "\x1b]11;rgb", "\x1bP"])
def test_a_sequence_that_never_ends_is_given_up(begun):
    decoder = PosixKeys()
    assert pressed(decoder, begun, 0.0) == ""
    assert pressed(decoder, "w", 1.1 * SEQUENCE_TIMEOUT_S) == "w"


def test_the_letter_that_looks_like_a_prefix_swallows_nothing():
    decoder = WindowsKeys()
    assert pressed(decoder, "\xe0", 0.0) == ""  # typed on a French keyboard
    assert pressed(decoder, "w", 1.0) == "w"


def test_on_windows_esc_is_a_key_at_once():
    assert pressed(WindowsKeys(), ESCAPE) == ESCAPE


@pytest.fixture
def terminal(monkeypatch):
    """The other end of a pseudo-terminal that is this process's standard input."""
    if sys.platform == "win32":
        pytest.skip("no pseudo-terminals")
    master, slave = os.openpty()
    with os.fdopen(slave, "r") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield master
        os.close(master)


def taken(keys, expected, timeout_s=5.0):
    seen, end = "", time.monotonic() + timeout_s
    while len(seen) < len(expected) and time.monotonic() < end:
        seen += keys.take()
        time.sleep(0.01)
    return seen


def test_from_a_terminal_without_enter(terminal):
    with Keys() as keys:
        os.write(terminal, "w\x1b[Aé".encode() + b"m")
        assert taken(keys, "wém") == "wém"
        os.write(terminal, b"\x1b")
        assert taken(keys, ESCAPE) == ESCAPE


def test_motions_are_letters_and_the_space():
    assert all(len(key) == 1 and key.isascii() and key.isprintable() for key in MOTIONS)
