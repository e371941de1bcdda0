"""rqt with the windows of a perspective file: `ros2 run nav_bringup monitor FILE NAMESPACE`, as monitor.launch.py does.

rqt fills plots, sliders and node graph once, from what its node has heard of when it opens them: of a graph, nothing in
the first tenths of a second. So the graph is waited for here first; rqt's node then shares this one's DDS participant.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import rclpy

from nav_common.topics import DEFAULT_VEHICLE_NAMESPACE

WAIT_S = 20.0
"""Then the windows open whether or not a graph is there."""
_PERIOD_S = 0.1


def perspective_of(text: str, namespace: str) -> str:
    """A perspective's text, with the vehicle's topics below another namespace."""
    return text.replace(f"{DEFAULT_VEHICLE_NAMESPACE}/", f"/{namespace.strip('/')}/".replace("//", "/"))


def names_of(perspective: str) -> set[str]:
    """What a perspective's windows need: topics, and the nodes that have sliders, with the services for those."""
    named: set[str] = set()

    def collect(value: object) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                if key not in ("topic", "topics", "selected_nodes"):
                    collect(inner)
                    continue
                for name in re.findall(r"'(/[^']+)'", inner["repr"]):
                    named.add(name.rpartition("/")[0] if key == "topics" else name)  # plots name fields
                    if key == "selected_nodes":
                        named.add(f"{name}/set_parameters")

    collect(json.loads(perspective))
    return named


def wait_for(names: set[str], limit_s: float) -> set[str]:
    """Until each of these names_of is there, or limit_s have passed; those that are not."""
    # Never destroyed: with its last node, the participant and all that it has heard would go.
    node = rclpy.create_node("monitor_waits")
    until_s = time.monotonic() + limit_s
    while True:
        heard = {name for name, _ in node.get_topic_names_and_types() + node.get_service_names_and_types()}
        heard |= {f"{space.rstrip('/')}/{name}" for name, space in node.get_node_names_and_namespaces()}
        if heard >= names or time.monotonic() >= until_s:
            return names - heard
        time.sleep(_PERIOD_S)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns rqt's exit status."""
    file, namespace = sys.argv[1:3] if arguments is None else arguments
    from rqt_gui.main import Main  # of a ROS install; nav_bringup.preflight asks for it

    text = perspective_of(Path(file).read_text(encoding="utf-8"), namespace)
    rclpy.init(args=[])
    if missing := wait_for(names_of(text), WAIT_S):
        print(
            f"monitor: not found: {', '.join(sorted(missing))}; their windows stay empty. Start the graph (the same "
            "ROS_DOMAIN_ID), then this again",
            file=sys.stderr,
            flush=True,
        )
    with tempfile.TemporaryDirectory(prefix="streampilot-") as folder:
        perspective = Path(folder) / Path(file).name
        perspective.write_text(text, encoding="utf-8")
        return int(Main(filename=__file__).main(["rqt", "--perspective-file", str(perspective)]) or 0)


if __name__ == "__main__":
    sys.exit(main())
