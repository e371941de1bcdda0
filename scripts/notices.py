"""Writes NOTICES.md: the direct dependencies with their licences, as their own metadata has them.

source scripts/env.sh && python scripts/notices.py
"""

import re
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HEAD = """# Notices

StreamPilot is under the Apache License 2.0. It installs these libraries, each under its own licence. What each is for:
`requirements.txt`; what they pull in: `requirements.lock`. Made by `python scripts/notices.py`.

| library | licence |
|---|---|
"""
# Whose metadata name none; from their LICENSE files.
KNOWN = {
    "axe-playwright-python": "MIT (axe-core in it: MPL-2.0)",
    "setuptools": "MIT",
    "smolagents": "Apache-2.0",
}


def licence(name: str) -> str:
    found: Any = metadata.metadata(name)  # an email.message.Message
    classifiers = [
        c.rsplit(" :: ", 1)[-1] for c in found.get_all("Classifier", []) if c.startswith("License ::")
    ]
    given = (found.get("License") or "").strip().splitlines()
    return found.get("License-Expression") or ", ".join(classifiers) or (given[0] if given else KNOWN[name])


def main() -> None:
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    names = sorted(re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==", text, re.MULTILINE), key=str.lower)
    rows = [f"| {name} | {licence(name)} |" for name in names if not name.startswith("ros-jazzy")]
    ros = "| packages of ROS 2 Jazzy | Apache-2.0, BSD-3-Clause |"
    (ROOT / "NOTICES.md").write_text(HEAD + "\n".join([*rows, ros]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
