"""Flies one mission from nothing (`make fly`): `python -m nav_bringup.fly --mission "fly to the red beacon"`.

See `nav_bringup.mission`. A Ctrl-C while its imports run, which takes seconds, ends it quietly.
"""

from __future__ import annotations

import sys

from nav_common.process import exit_on_signals


def main() -> int:
    exit_on_signals()
    from nav_bringup.mission import main as fly

    return fly()


if __name__ == "__main__":
    sys.exit(main())
