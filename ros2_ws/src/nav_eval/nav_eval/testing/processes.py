"""Starting nodes as processes of their own, in a ROS domain of their own, and waiting for what they say."""

from __future__ import annotations

import os
import subprocess
import sys

from nav_common.testing import unique_domain_id


def ros_environment() -> dict[str, str]:
    return {
        **os.environ,
        "ROS_DOMAIN_ID": str(unique_domain_id()),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "ROS_PYTHON_CHECK_FIELDS": "1",
    }


def start_node(
    executable: str, environment: dict[str, str], *parameters: str, module: str = "nav_eval.node"
) -> subprocess.Popen[str]:
    """Run `executable()` of `module` with parameters such as "bag:=path"."""
    arguments = [argument for parameter in parameters for argument in ("-p", parameter)]
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"from {module} import {executable}; {executable}()",
            "--ros-args",
            *arguments,
        ],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process: subprocess.Popen[str], words: str) -> str:
    """The first line with these words; fails with all that was said when the process ends before."""
    assert process.stderr
    lines = []
    for line in process.stderr:
        lines.append(line)
        if words in line:
            return line
    raise AssertionError("".join(lines))
