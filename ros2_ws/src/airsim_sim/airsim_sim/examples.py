"""AirSim's own examples against this simulator: `python -m airsim_sim.examples AirSim/PythonClient/multirotor`.

Each example of the folder runs in a process of its own with the genuine `airsim` client, against a fresh simulator, in
an empty folder, with a key pressed for it now and then, and without a display. A table says what became of each:

  ran      it ended by itself without an error, or was stopped after the time limit (many are endless loops)
  refused  it needs what is not here: a display, another package, a second drone; with the reason
  failed   anything else, with the last line of its error

The client needs numpy 1 and so an environment of its own, `.venv-conformance`, which `make setup` makes. Settings that
an example shows in its text are the simulator's. Exit status: 0 without a failure, 1 with one, 2 when it cannot start.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import msgpack

from airsim_sim.flight import STILL_SPEED
from airsim_sim.model import IMAGE_TYPES
from nav_common.process import CONFIGURATION_ERROR, popen

KEY_INTERVAL_S = 0.4  # between key presses; AirSim's wait_key throws away what was typed before
TAIL_BYTES = 65_536  # of an example's output is kept
HANG_S = 5  # chosen: no call takes so long but a motion, and then the drone moves
GRACE_S = 10.0  # from SIGINT to SIGKILL
# AirSim's own sizes of pictures, which its examples count on; this simulator's defaults are others.
AIRSIM_PICTURES: dict[str, Any] = {
    "CaptureSettings": [{"ImageType": number, "Width": 256, "Height": 144} for number in IMAGE_TYPES]
}
# Settings that an example needs and does not show.
UNSHOWN_SETTINGS: dict[str, dict[str, Any]] = {
    "teleport.py": {"Vehicles": {"PX4": {"VehicleType": "PX4Multirotor"}}}
}
# Runs an example as its author does, but with the port of our simulator instead of AirSim's.
_BOOTSTRAP = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
import airsim, msgpackrpc.future
port, path = int(sys.argv[1]), sys.argv[2]
def with_port(original):
    def initialise(self, ip="", port=port, timeout_value=3600):
        original(self, ip, port, timeout_value)
    return initialise
def with_report(original):
    def join(self):
        started = time.monotonic()
        try:
            return original(self)
        except KeyboardInterrupt:
            print(f"waited {time.monotonic() - started:.0f} s for an answer", flush=True)
            raise
    return join
msgpackrpc.future.Future.join = with_report(msgpackrpc.future.Future.join)
airsim.VehicleClient.__init__ = with_port(airsim.VehicleClient.__init__)
airsim.MultirotorClient.__init__ = with_port(airsim.MultirotorClient.__init__)
sys.argv = [path]
sys.path.insert(0, path.rpartition("/")[0])
with open(path, encoding="utf-8") as file:
    code = compile(file.read(), path, "exec")
exec(code, {"__name__": "__main__", "__file__": path})
"""


class Verdict(Enum):
    """What became of an example."""

    RAN = "ran"
    REFUSED = "refused"
    FAILED = "failed"


@dataclass(frozen=True)
class Result:
    """An example's outcome, in words too."""

    name: str
    verdict: Verdict
    seconds: float
    reason: str


class ExamplesError(ValueError):
    """The examples cannot be run at all; the text says what is missing and how to get it."""


def conformance_python() -> Path | None:
    """The interpreter of the environment that has AirSim's clients, if there is one."""
    named = os.environ.get("AIRSIM_CONFORMANCE_PYTHON")
    if named:
        return Path(named)
    for folder in (*Path(__file__).resolve().parents, *Path.cwd().resolve().parents, Path.cwd()):
        python = folder / ".venv-conformance" / "bin" / "python"
        if python.exists():
            return python
    return None


def find_examples(folder: Path, names: Sequence[str] = ()) -> list[Path]:
    """The scripts of the folder that make a client, or those named. Raises ExamplesError."""
    if not folder.is_dir():
        raise ExamplesError(f"{folder}: no such folder; it is PythonClient/multirotor of an AirSim checkout")
    found = [path for path in sorted(folder.glob("*.py")) if "Client(" in _source(path)]
    if not found:
        raise ExamplesError(
            f"{folder}: no script there makes a client; wanted is AirSim's PythonClient/multirotor"
        )
    missing = set(names) - {path.stem for path in found}
    if missing:
        raise ExamplesError(f"{folder}: no example {', '.join(sorted(missing))}")
    return [path for path in found if not names or path.stem in names]


def _source(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def settings_in(source: str) -> dict[str, Any]:
    """The settings.json that an example shows in a comment or docstring; empty if it shows none."""
    text = re.sub(r"(?m)^[ \t]*#[ \t]?", "", source)
    at = text.find('"SettingsVersion"')
    while (at := text.rfind("{", 0, at)) >= 0:
        with contextlib.suppress(json.JSONDecodeError):
            settings, _ = json.JSONDecoder().raw_decode(text, at)
            if "SettingsVersion" in settings:
                return dict(settings)
    return {}


def judge(status: int, stopped: bool, output: str, standing: bool = False) -> tuple[Verdict, str]:
    """Verdict and reason from exit status, whether the time limit ended it, and the end of its output.

    `standing`: the drone did not move when the limit came. Who then waits for an answer would do so for ever.
    """
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    missing = re.search(r"ModuleNotFoundError: No module named '([^'.]+)", output)
    if missing:
        return Verdict.REFUSED, f"needs the package {missing[1]}"
    if "cv2.error" in output and ("imshow" in output or "cvShowImage" in output or "highgui" in output):
        return Verdict.REFUSED, "needs a display"
    several = re.search(r"'(\w+)' cannot be added: this simulator flies one drone", output)
    several = several or re.search(r"Vehicle API for '(\w+)' is not available", output)
    if several:
        return Verdict.REFUSED, f"needs a second drone, {several[1]}"
    if "rpclib" in output:
        return Verdict.FAILED, next(line for line in lines if "rpclib" in line)
    waited = re.search(r"waited (\d+) s for an answer", output)
    if stopped and standing and waited and int(waited[1]) >= HANG_S:
        return Verdict.FAILED, f"waits for an answer for {waited[1]} s while the drone stands still"
    if stopped and (last in ("", "KeyboardInterrupt") or status == 0):
        return Verdict.RAN, "stopped at the time limit"
    if status == 0:
        return Verdict.RAN, ""
    return Verdict.FAILED, last or f"exit status {status}"


class Simulator:
    """A simulator process on a free port."""

    def __init__(self, folder: Path, settings: dict[str, Any], clock_speed: float) -> None:
        command = [sys.executable, "-m", "airsim_sim", "--port", "0", "--end-with-parent"]
        command += ["--clock-speed", f"{clock_speed:g}"]
        (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
        command += ["--settings", str(folder / "settings.json")]
        self._errors = (folder / "simulator.log").open("w+", encoding="utf-8")
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._errors, text=True)
        assert self._process.stdout is not None
        ready = re.search(r" on [\d.]+:(\d+) ", self._process.stdout.readline())
        if ready is None:
            self.stop()
            raise ExamplesError(f"the simulator did not start: {self.errors()}")
        self.port = int(ready[1])

    @property
    def running(self) -> bool:
        """Whether the process still lives."""
        return self._process.poll() is None

    def speed(self) -> float:
        """The drone's speed in m/s; infinite when the simulator does not answer."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=GRACE_S) as connection:
                connection.sendall(msgpack.packb([0, 1, "getMultirotorState", [""]]))
                unpacker = msgpack.Unpacker()
                while data := connection.recv(TAIL_BYTES):
                    unpacker.feed(data)
                    for _, _, _, state in unpacker:
                        return math.hypot(*state["kinematics_estimated"]["linear_velocity"].values())
        except OSError:
            pass
        return math.inf

    def errors(self) -> str:
        """What it wrote on stderr last."""
        self._errors.seek(0)
        return (self._errors.read()[-TAIL_BYTES:].strip().splitlines() or ["no error said"])[-1]

    def stop(self) -> None:
        """Ends the process."""
        self._process.terminate()
        try:
            self._process.wait(timeout=GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def run_example(path: Path, python: Path, limit_s: float, clock_speed: float) -> Result:
    """Runs one example against a simulator of its own."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="airsim_example_") as temporary:
        folder = Path(temporary)
        try:
            shown = UNSHOWN_SETTINGS.get(path.name) or settings_in(_source(path))
            simulator = Simulator(folder, {"CameraDefaults": AIRSIM_PICTURES, **shown}, clock_speed)
        except ExamplesError as error:
            return Result(path.stem, Verdict.FAILED, time.monotonic() - started, str(error))
        try:
            verdict, reason = judge(*_run(path.resolve(), python, simulator, folder, limit_s))
            if not simulator.running:
                verdict, reason = Verdict.FAILED, f"the simulator ended: {simulator.errors()}"
        finally:
            simulator.stop()
    return Result(path.stem, verdict, time.monotonic() - started, reason)


def _run(
    path: Path, python: Path, simulator: Simulator, folder: Path, limit_s: float
) -> tuple[int, bool, str, bool]:
    """Exit status, whether the limit ended it, the end of its output, whether the drone stood still at the limit."""
    tail = bytearray()

    def read(output: int) -> None:
        while data := os.read(output, TAIL_BYTES):
            tail.extend(data)
            del tail[:-TAIL_BYTES]

    with _keyboard() as (keys, terminal):
        process = popen(
            [str(python), "-u", "-c", _BOOTSTRAP, str(simulator.port), str(path)],
            stdin=terminal,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**_environment(), "TMPDIR": str(folder)},
            start_new_session=True,
        )
        assert process.stdout is not None
        reader = threading.Thread(target=read, args=(process.stdout.fileno(),), daemon=True)
        reader.start()
        stopped = standing = False
        try:
            if not _press_keys_until_end(process, keys, limit_s):
                stopped, standing = True, simulator.speed() < STILL_SPEED
                process.send_signal(signal.SIGINT)
                _press_keys_until_end(process, keys, GRACE_S)
        finally:
            process.kill()  # nothing happens when it has ended
            status = process.wait()
            reader.join(timeout=GRACE_S)
            process.stdout.close()
    return status, stopped, tail.decode("utf-8", errors="replace"), standing


def _environment() -> dict[str, str]:
    """Ours without what leads the client's interpreter to our packages, and without a display."""
    unwanted = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "DISPLAY", "WAYLAND_DISPLAY")
    return {key: value for key, value in os.environ.items() if key not in unwanted}


@contextlib.contextmanager
def _keyboard() -> Iterator[tuple[int, int]]:
    """A pseudo terminal: where keys are pressed, and the stdin on which they arrive."""
    import pty  # not on Windows

    keys, terminal = pty.openpty()
    os.set_blocking(keys, False)
    try:
        yield keys, terminal
    finally:
        os.close(keys)
        os.close(terminal)


def _press_keys_until_end(process: subprocess.Popen[bytes], keys: int, limit_s: float) -> bool:
    """Presses the enter key again and again; whether the process ended within the limit."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        try:
            process.wait(timeout=KEY_INTERVAL_S)
            return True
        except subprocess.TimeoutExpired:
            with contextlib.suppress(BlockingIOError):  # nobody reads: there are enough keys
                os.write(keys, b"\n")
    return False


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m airsim_sim.examples",
        description="Runs AirSim's multirotor examples against airsim_sim.",
    )
    result.add_argument("folder", type=Path, help="PythonClient/multirotor of an AirSim checkout")
    result.add_argument("names", nargs="*", help="only these examples, as hello_drone; default all")
    result.add_argument("--limit", type=float, default=60.0, help="seconds for each; default %(default)g")
    result.add_argument(
        "--clock-speed", type=float, default=4.0, help="simulated seconds a second; default %(default)g"
    )
    result.add_argument(
        "--python", type=Path, help="interpreter that has airsim; default .venv-conformance's"
    )
    return result


def main() -> int:
    """Runs the examples and prints the table; the exit status."""
    options = parser().parse_args()
    try:
        python = _client_python(options.python)
        examples = find_examples(options.folder, options.names)
    except ExamplesError as error:
        print(f"airsim_sim.examples: {error}", file=sys.stderr)
        return CONFIGURATION_ERROR
    results = []
    width = max(len(path.stem) for path in examples)
    try:
        for path in examples:
            result = run_example(path, python, options.limit, options.clock_speed)
            results.append(result)
            print(
                f"{result.name:{width}}  {result.verdict.value:7}  {result.seconds:4.0f} s  {result.reason[:200]}",
                flush=True,
            )
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    count = {verdict: sum(result.verdict is verdict for result in results) for verdict in Verdict}
    print(
        f"{len(results)} of {len(examples)} examples: "
        + ", ".join(f"{n} {v.value}" for v, n in count.items())
    )
    return 1 if count[Verdict.FAILED] or len(results) < len(examples) else 0


def _client_python(named: Path | None) -> Path:
    if os.name == "nt":
        raise ExamplesError("runs on Linux and macOS only: it presses keys on a pseudo terminal")
    python = named or conformance_python()
    if python is None:
        raise ExamplesError(
            "there is no .venv-conformance, the environment with AirSim's own client (numpy 1): `make setup` makes "
            "it, or name an interpreter that has the package airsim with --python"
        )
    try:
        tried = subprocess.run(
            [str(python), "-c", "import airsim, cv2"],
            capture_output=True,
            text=True,
            env=_environment(),
            check=False,
        )
    except OSError as error:
        raise ExamplesError(f"{python}: {error.strerror}") from error
    if tried.returncode:
        reason = (tried.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ExamplesError(
            f"{python} cannot import airsim and cv2 ({reason}): `make setup` makes .venv-conformance anew"
        )
    return python


if __name__ == "__main__":
    sys.exit(main())
