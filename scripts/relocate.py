"""Points the ROS wheels' CMake files at this Python: they carry the paths of the machine that built them."""

from __future__ import annotations

import re
import sys
import sysconfig
from pathlib import Path

import numpy


def relocate(text: str, include: str, numpy_include: str) -> str:
    """CMake `text` with the build machine's Python and numpy include directories replaced by ours."""
    python_home = r"/opt/python/cp\d+-cp\d+"
    text = re.sub(
        rf"{python_home}/lib/python\d\.\d+/site-packages/numpy/_core/include", lambda _: numpy_include, text
    )
    return re.sub(rf"{python_home}/include/python\d\.\d+", lambda _: include, text)


def main() -> None:
    changed = 0
    include, numpy_include = sysconfig.get_path("include"), numpy.get_include()
    for path in sorted(Path(sys.prefix, "share").rglob("*.cmake")):
        before = path.read_text(encoding="utf-8", errors="surrogateescape")
        after = relocate(before, include, numpy_include)
        if after != before:
            path.write_text(after, encoding="utf-8", errors="surrogateescape")
            changed += 1
    print(f"setup: {changed} CMake files of the ROS wheels now name {include}")


if __name__ == "__main__":
    main()
