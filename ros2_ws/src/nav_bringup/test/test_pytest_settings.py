"""pytest's settings: a sourced ROS 2 install does not end the runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[4]


@pytest.mark.parametrize("plugin", ["launch_testing", "launch_ros", "launch_pytest"])
def test_plugins_of_a_ros_install_are_not_loaded(tmp_path: Path, plugin: str) -> None:
    """Theirs have hooks that a newer pytest does not know, which ends it before the first test."""
    installed = tmp_path / "ros"
    information = installed / f"{plugin}-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {plugin}\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[pytest11]\n{plugin} = {plugin}_hooks\n")
    (installed / f"{plugin}_hooks.py").write_text("raise RuntimeError('loaded')\n")
    (tmp_path / "test_it.py").write_text("def test_it():\n    pass\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", str(REPOSITORY / "pyproject.toml"), "test_it.py"],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTEST_ADDOPTS": "",
            "PYTHONPATH": f"{installed}:{os.environ.get('PYTHONPATH', '')}",
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
