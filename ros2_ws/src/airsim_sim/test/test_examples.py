"""Running AirSim's examples: what becomes of a script, settings from its text, and the command itself."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from airsim_sim.examples import (
    ExamplesError,
    Verdict,
    conformance_python,
    find_examples,
    judge,
    run_example,
    settings_in,
)

CONNECT = "import airsim\nclient = airsim.MultirotorClient()\nclient.confirmConnection()\n"
SCRIPTS = {
    "waits_for_keys": CONNECT + "for _ in range(2):\n    airsim.wait_key('press')\nopen('left_behind', 'w').close()\n",
    "loops": CONNECT + "while True:\n    client.ping()\n",
    "waits_for_ever": CONNECT
    + "client.enableApiControl(True)\nclient.armDisarm(False)\nclient.moveToPositionAsync(0, 0, -5, 2).join()\n",
    "fails": CONNECT + "raise RuntimeError('on purpose')\n",
    "calls_what_is_not_there": CONNECT + "client.simLoadLevel('moon')\n",
    "swallows_its_errors": CONNECT
    + "try:\n    client.simLoadLevel('moon')\nexcept Exception as error:\n    print(error)\n",
    "needs_a_package": CONNECT + "import rospy\n",
    "needs_a_display": CONNECT + "import cv2, numpy\ncv2.imshow('x', numpy.zeros((9, 9)))\n",
    "counts_on_airsims_pictures": CONNECT
    + "answer = client.simGetImages([airsim.ImageRequest('0', airsim.ImageType.DepthVis)])[0]\n"
    + "assert (answer.width, answer.height) == (256, 144)\n",
    "needs_two_drones": CONNECT + "client.enableApiControl(True, 'Drone2')\n",
    "has_settings": CONNECT
    + '"""\n{"SettingsVersion": 1.2, "Vehicles": {"Mine": {"VehicleType": "SimpleFlight"}}}\n"""\n'
    + "assert client.listVehicles() == ['Mine'], client.listVehicles()\n",
    "takes_its_arguments_away": CONNECT + "import sys\nsys.argv.pop(0)\n",
    "no_example": "print('a module')\n",
}  # fmt: skip
VERDICTS = {
    "waits_for_keys": (Verdict.RAN, ""),
    "loops": (Verdict.RAN, "stopped at the time limit"),
    "waits_for_ever": (Verdict.FAILED, "while the drone stands still"),
    "fails": (Verdict.FAILED, "RuntimeError: on purpose"),
    "calls_what_is_not_there": (Verdict.FAILED, "could not find function 'simLoadLevel'"),
    "swallows_its_errors": (Verdict.FAILED, "could not find function 'simLoadLevel'"),
    "needs_a_package": (Verdict.REFUSED, "needs the package rospy"),
    "needs_a_display": (Verdict.REFUSED, "needs a display"),
    "counts_on_airsims_pictures": (Verdict.RAN, ""),
    "needs_two_drones": (Verdict.REFUSED, "needs a second drone, Drone2"),
    "has_settings": (Verdict.RAN, ""),
    "takes_its_arguments_away": (Verdict.RAN, ""),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in SCRIPTS.items():
        (tmp_path / f"{name}.py").write_text(text)
    return tmp_path


@pytest.fixture
def python() -> Path:
    found = conformance_python()
    if found is None:
        pytest.skip("no .venv-conformance at the repository's root (`make setup` makes it)")
    return found


@pytest.fixture
def background_job() -> Iterator[None]:
    """SIGINT is ignored, and by every child too: so a shell starts what runs in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("background_job")
@pytest.mark.parametrize("name", VERDICTS)
def test_what_becomes_of_a_script(folder: Path, python: Path, name: str) -> None:
    result = run_example(
        folder / f"{name}.py",
        python,
        limit_s=9.0 if name in ("loops", "waits_for_ever") else 60.0,
        clock_speed=4.0,
    )
    verdict, reason = VERDICTS[name]
    assert (result.name, result.verdict) == (name, verdict), result
    assert reason in result.reason
    assert not (folder / "left_behind").exists(), "it works in a folder of its own"


def test_the_command_prints_a_table_and_its_status_tells_of_failures(folder: Path, python: Path) -> None:
    command = [sys.executable, "-m", "airsim_sim.examples", str(folder)]
    done = subprocess.run(
        [*command, "has_settings", "fails"], capture_output=True, text=True, timeout=200, check=False
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 1
    assert [line.split()[:2] for line in lines[:2]] == [["fails", "failed"], ["has_settings", "ran"]]
    assert lines[2] == "2 of 2 examples: 1 ran, 0 refused, 1 failed"
    done = subprocess.run(
        [*command, "has_settings"], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0


def test_a_runner_that_is_killed_leaves_no_script_behind(folder: Path, python: Path) -> None:
    command = [sys.executable, "-m", "airsim_sim.examples", str(folder), "stays"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60.0)
        (folder / "stays.py").write_text(
            CONNECT + "import socket, time\n"
            f"held = socket.create_connection({server.getsockname()})\n"
            "time.sleep(600.0)\n"
        )
        runner = subprocess.Popen(command, env={**os.environ, "TMPDIR": str(folder)})
        try:
            script, _ = server.accept()
        finally:
            runner.kill()
            runner.wait()
    with script:
        script.settimeout(20.0)
        assert script.recv(1) == b"", "its connection is closed because it has ended"


def test_a_missing_client_environment_is_said(folder: Path) -> None:
    environment = {**os.environ, "AIRSIM_CONFORMANCE_PYTHON": sys.executable}
    command = [sys.executable, "-m", "airsim_sim.examples", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100, check=False)
    assert done.returncode == 2
    assert "cannot import airsim and cv2" in done.stderr
    assert "make setup" in done.stderr
    assert "Traceback" not in done.stderr


def test_only_scripts_that_make_a_client_are_examples(folder: Path) -> None:
    assert [path.stem for path in find_examples(folder)] == sorted(VERDICTS)
    with pytest.raises(ExamplesError, match="no example nothing"):
        find_examples(folder, ["fails", "nothing"])
    with pytest.raises(ExamplesError, match="no such folder"):
        find_examples(folder / "elsewhere")
    (folder / "empty").mkdir()
    with pytest.raises(ExamplesError, match="no script there makes a client"):
        find_examples(folder / "empty")


def test_settings_are_found_in_docstrings_and_comments() -> None:
    shown = {"SettingsVersion": 1.2, "Vehicles": {"A": {"VehicleType": "SimpleFlight", "Cameras": {}}}}
    text = json.dumps(shown, indent=2)
    comment = "".join(f"# {line}\n" for line in text.splitlines())
    for source in (
        f'"""\nUse {{this}}:\n{text}\n"""\n',
        f"import airsim\n# Please add {{\n\n{comment}\nx = {{}}\n",
    ):
        assert settings_in(source) == shown
    assert settings_in("x = {'a': 1}") == {}
    assert settings_in('# {"SettingsVersion": 1.2, broken') == {}


def test_a_script_that_hangs_after_an_error_has_failed() -> None:
    assert judge(-9, True, "Traceback\nValueError: broken\n") == (Verdict.FAILED, "ValueError: broken")
    assert judge(1, True, "Traceback\nKeyboardInterrupt\n")[0] is Verdict.RAN
