"""Adds up the test results that `colcon test` left, and prints them as one line, `N passed, N failed, N skipped`."""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree


def count(folder: Path) -> tuple[int, int, int]:
    """Tests passed, failed (errors too) and skipped in the xunit files under `folder`."""
    passed = failed = skipped = 0
    for path in sorted(folder.rglob("pytest.xml")):
        for suite in ElementTree.parse(path).getroot().iter("testsuite"):
            tests, bad, left_out = (
                int(suite.get("tests", 0)),
                int(suite.get("failures", 0)) + int(suite.get("errors", 0)),
                int(suite.get("skipped", 0)),
            )
            passed, failed, skipped = passed + tests - bad - left_out, failed + bad, skipped + left_out
    return passed, failed, skipped


def main() -> int:
    passed, failed, skipped = count(Path(sys.argv[1]))
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 0 if passed and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
