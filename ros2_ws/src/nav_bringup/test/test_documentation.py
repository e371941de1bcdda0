"""The documents are true: their commands run, their links lead somewhere, their tables are those of the code."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from airsim_bridge.gate import RefusalKind
from nav_common import cdr
from nav_common.contract import COMMAND_MAX_AGE_S
from nav_common.data import GenerateStatus, Outcome
from nav_common.testing import unique_domain_id
from nav_common.topics import ODOM_FRAME
from nav_eval.profile import PROFILE

ROOT = Path(__file__).resolve().parents[4]
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("ros2_ws/src/*/README.md"),
    ]
)
# Commands that are not run here, by how they begin, and why.
NOT_RUN = {
    "make setup": "installs the whole environment",
    "python scripts/notices.py": "its result is compared with the requirements",
    "make test": "is what runs this",
    "make lint": "is what runs beside this",
    "make fly": "test_fly.py flies it",
    "make accept": "test_accept.py; the whole of it takes minutes",
    "make eval": "nav_eval's tests evaluate; the command in the README takes minutes",
    "make replay": "nav_eval's tests replay",
    "make train": "takes an hour",
    "make experiments": "vlm_perception's tests run each experiment; all of them take minutes",
    "make bench-": "benchmarks judge by time, and want a quiet machine",
    "make rehearse": "takes a probe of a real way to a server; nav_eval's tests rehearse",
    "make serve": "serves until somebody ends it; nav_server's tests serve",
    "make two-machines": "zenoh_link's tests fly across the link",
    "pip install": "installs",
    "modelscope download": "downloads 7.5 GB",
    "apt install": "installs",
    "apt-get install": "installs",
    "make screenshots": "flies and evaluates for a minute; its parts are tested",
    "export STREAMPILOT_TOKEN": "names a token for a container",
    "docker compose": "needs an engine; test_docker.py checks the files",
    "SERVER=gpu.example.org docker compose": "needs an engine; test_docker.py checks the files",
    "export QWEN_MODEL_PATH": "names a model that is not here",
    "source scripts/env.sh": "every test runs in it",
    "ros2 ": "needs a ROS install",
    "python -m nav_bringup.runner": "test_runner.py starts deployments",
    "python -m airsim_bridge.edge": "test_edge.py flies by keyboard; it runs until somebody ends it",
    "python -m airsim_bridge.record_flight": "test_edge.py records",
    "python -m airsim_sim": "runs until somebody ends it; airsim_sim's tests start it",
    "python -m nav_eval demo": "nav_eval's tests write a video",
    "python -m nav_eval live": "serves until somebody ends it; test_live.py looks",
    "python -m nav_eval fork": "nav_eval's tests fork a flight",
    "python -m nav_eval xray": "nav_eval's tests examine a flight",
    "python -m vlm_perception.engine": "test_commands.py plays a video",
    "python -m zenoh_link": "zenoh_link's tests run its commands",
    "python -m nav_server": "nav_server's tests run its commands",
    "python examples/fly_from_python.py": "needs a graph that flies; test_graph.py of nav_agent flies by the Navigator",
    "py -3.12": "Windows",
    "edge-env": "Windows",
    "New-NetFirewallRule": "Windows",
    "conda ": "installs",
    "curl ": "installs",
}
# Run as they stand, but for a word in capitals that stands for a file.
RUN = (
    "make help",
    "python -m nav_eval check",
    "python -m nav_pilot.evaluate --help",
    "python examples/ask_a_video.py",
    "python examples/own_policy.py",
    "python scripts/parameter_reference.py",
)


def commands(document: Path) -> list[str]:
    """Lines of shell in a document's fenced blocks, and commands in its running text."""
    text = document.read_text(encoding="utf-8")
    found, fence = [], ""
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip().startswith("```"):
            fence = "" if fence else line.strip()
        elif fence == "```":
            found += re.split(r"\s&&\s", re.sub(r"\s+#.*", "", line).strip())
        elif not fence:
            found += re.findall(r"`((?:make|python|ros2|pip|apt|apt-get|source) [^`]+)`", line)
    return [command for command in found if command]


EVERY = sorted({command for document in DOCUMENTS for command in commands(document)})


def test_every_command_of_the_documents_is_run_or_listed_with_the_reason() -> None:
    unknown = [command for command in EVERY if not command.startswith((*RUN, *NOT_RUN))]
    assert not unknown, f"say in RUN or NOT_RUN what becomes of {unknown}"
    assert len(EVERY) > 30, "the documents were read"


def test_nothing_is_listed_that_no_document_has() -> None:
    text = "\n".join(document.read_text(encoding="utf-8") for document in DOCUMENTS)
    text += (ROOT / "scripts/setup.sh").read_text() + "".join(
        p.read_text() for p in (ROOT / "examples").glob("*.py")
    )
    assert not [start for start in (*RUN, *NOT_RUN) if start not in text and start != "make help"]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "ROS_DOMAIN_ID": str(unique_domain_id()), "TMPDIR": str(tmp_path)}


def run(environment: dict[str, str], *command: str) -> str:
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_make_lists_its_targets(environment: dict[str, str]) -> None:
    listed = run(environment, "make", "help")
    for target in ("fly", "accept", "replay", "eval", "test"):
        assert re.search(rf"^{target}\b", listed, re.MULTILINE)


def test_the_pilot_s_evaluation_says_how_it_is_called(environment: dict[str, str]) -> None:
    assert "--seeds" in run(environment, sys.executable, *shlex.split("-m nav_pilot.evaluate --help"))


def test_a_video_is_asked(environment: dict[str, str], tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter.fourcc(*"mp4v"), 10, (160, 120))
    for i in range(100):
        writer.write(np.full((120, 160, 3), 2 * i, np.uint8))
    writer.release()
    said = run(environment, sys.executable, "examples/ask_a_video.py", str(film), "What is in sight?")
    assert "chunks_encoded 10" in said


def test_a_policy_of_one_s_own_flies_and_is_judged(environment: dict[str, str]) -> None:
    said = run(environment, sys.executable, "examples/own_policy.py").splitlines()
    assert said[-1] == "FINISHED: reached, 0 contacts, 0 breaches of the safety rules"


def test_the_parameter_reference_is_that_of_the_nodes(environment: dict[str, str], tmp_path: Path) -> None:
    run(environment, sys.executable, "scripts/parameter_reference.py", str(tmp_path / "made.md"))
    made = (tmp_path / "made.md").read_text(encoding="utf-8")
    shipped = (ROOT / "docs/parameters.md").read_text(encoding="utf-8")
    assert made == shipped, "run: python scripts/parameter_reference.py"


def test_each_test_that_the_safety_case_names_exists() -> None:
    named = re.findall(r"`(test_\w+)`", (ROOT / "docs/safety.md").read_text(encoding="utf-8"))
    there = set()
    for path in ROOT.glob("ros2_ws/src/*/test/**/*.py"):
        there |= set(re.findall(r"def (test_\w+)\(", path.read_text(encoding="utf-8")))
    assert len(named) > 25
    assert not set(named) - there


def test_links_between_the_documents_lead_somewhere() -> None:
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
            if not target.startswith(("http://", "https://")):
                assert (document.parent / target).exists(), f"{document.relative_to(ROOT)} links to {target}"


def test_each_package_has_a_readme() -> None:
    for package in (ROOT / "ros2_ws/src").iterdir():
        if (package / "package.xml").is_file():
            first = (package / "README.md").read_text(encoding="utf-8").splitlines()[0]
            assert first.startswith(f"# {package.name}: ")


def test_each_direct_dependency_is_in_the_notices() -> None:
    requirements = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    names = re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==", requirements, re.MULTILINE)
    notices = (ROOT / "NOTICES.md").read_text(encoding="utf-8")
    missing = [n for n in names if not n.startswith("ros-jazzy") and f"| {n} |" not in notices]
    assert not missing, "run: python scripts/notices.py"


def fields(kind: str) -> dict[str, str]:
    """Name and type of each field of a message."""
    package, _, name = kind.partition("/")
    definition = cdr.DEFINITIONS[f"{package}/msg/{name.removeprefix('msg/')}"]
    return {part.split()[1]: part.split()[0] for part in definition.split(", ")}


def test_the_foxglove_layout_shows_recorded_topics_and_their_fields() -> None:
    layout = json.loads((ROOT / "docs/foxglove.json").read_text(encoding="utf-8"))
    types = {recorded.topic.resolve(): recorded.topic.type for recorded in PROFILE}
    paths = re.findall(r'"(/[a-z][^"]*)"', json.dumps(layout))
    assert len(paths) > 12
    for path in paths:
        topic, *names = path.split(".")
        kind = types[topic]
        for name in names:
            kind = fields(kind)[name]
    shown = re.findall(r'"(\w+![a-z]+)"', json.dumps(layout["layout"]))
    assert sorted(shown) == sorted(layout["configById"])
    scene = layout["configById"]["3D!flight"]
    assert scene["followTf"] == ODOM_FRAME
    # A type that the panel does not draw would leave it empty without a word.
    assert [types[topic] for topic, drawn in scene["topics"].items() if drawn["visible"]] == [
        "visualization_msgs/msg/MarkerArray"
    ]


def test_every_way_to_fail_is_explained() -> None:
    text = (ROOT / "docs/errors.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"`([A-Z_]+)`", text))
    for kinds in (Outcome, GenerateStatus, RefusalKind):
        assert set(kinds.__members__) <= explained
    assert f"; older than {COMMAND_MAX_AGE_S} s;" in text
