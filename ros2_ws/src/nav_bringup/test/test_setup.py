"""Setup: which torch the driver can run, which Python is taken, and what `make test` drops of the environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from nav_common.testing import load_script

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture(scope="module")
def torch_build() -> ModuleType:
    return load_script(ROOT / "scripts/torch_build.py")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.90.07  Fri May 31 09:35:42 UTC 2024", 550),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build", 580),
        ("535.183.01\n535.183.01\n", 535),
        ("", None),
    ],
)
def test_the_driver_s_version_is_read(torch_build: ModuleType, text: str, found: int | None) -> None:
    assert torch_build.major(text) == found


@pytest.mark.parametrize(
    ("driver", "index"),
    [(None, ""), (580, ""), (595, ""), (575, "/cu126"), (550, "/cu126"), (525, "/cu126")],
)
def test_torch_is_built_for_the_driver(torch_build: ModuleType, driver: int | None, index: str) -> None:
    assert torch_build.index(driver).endswith(index)
    assert bool(torch_build.index(driver)) == bool(index)


def test_a_driver_that_no_build_runs_with_is_refused_with_the_remedy(torch_build: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"the NVIDIA driver is 470.*update the driver"):
        torch_build.index(470)


def test_another_index_can_be_named() -> None:
    environment = {**os.environ, "TORCH_INDEX": "https://somewhere/cpu"}
    command = [sys.executable, str(ROOT / "scripts/torch_build.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "https://somewhere/cpu"


def find_python(path: Path, *names: str) -> str:
    """What setup's own function finds where only these programs are."""
    text = (ROOT / "scripts/setup.sh").read_text()
    function = text[text.index("find_python() {") :]
    function = function[: function.index("\n}\n") + 3].replace("/usr/bin/python3", "")
    environment = {"PATH": str(path)}
    done = subprocess.run(
        ["/bin/bash", "-c", f"{function}\nfind_python"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip()


def program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


def test_a_python_of_uv_is_taken_where_the_system_s_is_too_old(tmp_path: Path) -> None:
    program(tmp_path / "python3", "exit 1")  # as an old one answers the check
    assert find_python(tmp_path) == ""
    program(tmp_path / "managed", "exit 0")
    program(tmp_path / "uv", f'[ "$1 $2" = "python find" ] && echo {tmp_path}/managed')
    assert find_python(tmp_path) == f"{tmp_path}/managed"
    program(tmp_path / "python3", "exit 0")  # as in an active environment of conda
    assert find_python(tmp_path) == "python3"


def test_make_test_has_ros_where_a_program_of_the_environment_starts_it() -> None:
    """As `make bench-tests` does."""
    script = ROOT / "scripts/test.sh"
    prepared = script.read_text().partition("status=0")[0]
    command = ["bash", "-c", f"{prepared}\npython -c 'import rclpy'", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
