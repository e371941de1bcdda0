"""Fly by hand and keep the flight: a JPEG file each half second, and a bag. `python -m airsim_bridge.record_flight`."""

from __future__ import annotations

import argparse
import contextlib
import csv
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airsim_bridge.bridge import BridgeState, CameraSettings, Depth, Frame
from airsim_bridge.edge import Edge, add_arguments, make_edge, say
from airsim_bridge.keyboard import HELP
from airsim_bridge.vehicle import Imu, Telemetry
from airsim_bridge.wire import NoTransport, Transport, Wire
from nav_common import topics
from nav_common.topics import Topic

if TYPE_CHECKING:
    from rosbags.rosbag2 import Writer

# 300 s at a frame each half second: specified by the user.
INTERVAL_S = 0.5
DURATION_S = 300.0


class BagTransport:
    """Writes messages into a rosbag2 file (MCAP), stamped with the time they are about; hands nothing out."""

    def __init__(self, writer: Writer, vehicle_namespace: str) -> None:
        from rosbags.typesys import Stores, get_typestore

        self._writer = writer
        self._types = get_typestore(Stores.ROS2_JAZZY)
        self._namespace = vehicle_namespace
        self._connections: dict[str, Any] = {}
        self.stamp_ns = 0

    def publish(self, topic: Topic, data: bytes) -> None:
        connection = self._connections.get(topic.name)
        if connection is None:
            name = topic.resolve(self._namespace)
            connection = self._writer.add_connection(name, topic.type, typestore=self._types)
            self._connections[topic.name] = connection
        self._writer.write(connection, self.stamp_ns, data)

    def subscribe(self, topic: Topic, callback: Callable[[bytes], None]) -> None:
        pass


class FlightRecorder:
    """Outputs that keep one frame each `interval_s`, and all odometry from the first to the last of `frames`."""

    def __init__(self, folder: Path, writer: Writer, interval_s: float, frames: int) -> None:
        self.kept = 0
        self.frames = frames
        self._folder = folder
        self._interval_s = interval_s
        self._bag = BagTransport(writer, topics.DEFAULT_VEHICLE_NAMESPACE)
        self._wire = Wire(self._bag, [CameraSettings()], log=say)
        self._table = (folder / "frames.csv").open("w", newline="")
        self._rows = csv.writer(self._table)
        self._rows.writerow(["file", "stamp_s", "x_m", "y_m", "z_m", "qw", "qx", "qy", "qz"])
        self._telemetry: Telemetry | None = None
        self._due = 0.0
        self._lock = threading.Lock()  # pictures and odometry come from two threads

    def on_frame(self, frame: Frame) -> None:
        telemetry = self._telemetry
        if telemetry is None or telemetry.landed or frame.stamp < self._due or self.kept >= self.frames:
            return  # a flight begins in the air
        # On a grid, so that the camera's own period does not add up; after a gap the grid starts anew.
        self._due = max(self._due + self._interval_s, frame.stamp + 0.5 * self._interval_s)
        name = f"frame_{self.kept:06d}.jpg"
        (self._folder / name).write_bytes(frame.jpeg)
        self._rows.writerow([name, f"{frame.stamp:.6f}", *telemetry.position, *telemetry.orientation])
        with self._lock:
            self._bag.stamp_ns = round(frame.stamp * 1e9)
            self._wire.on_frame(frame)
        self.kept += 1

    def on_odometry(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        if 0 < self.kept < self.frames:
            with self._lock:
                self._bag.stamp_ns = round(telemetry.stamp * 1e9)
                self._wire.on_odometry(telemetry)

    def on_state(self, state: BridgeState) -> None:
        pass

    def on_depth(self, depth: Depth) -> None:
        pass

    def on_imu(self, imu: Imu) -> None:
        pass

    def log(self, text: str) -> None:
        pass

    def close(self) -> None:
        self._table.close()


@contextlib.contextmanager
def recording(folder: Path, interval_s: float, duration_s: float) -> Iterator[FlightRecorder]:
    """A FlightRecorder into `folder`: frame_000000.jpg and so on, frames.csv, and the bag in `flight/`.

    Raises:
        ValueError: the folder holds a recording already, or a time that makes no sense.
    """
    from rosbags.rosbag2 import StoragePlugin, Writer

    if not 0.0 < interval_s <= duration_s:
        raise ValueError(
            f"interval is {interval_s} s and duration {duration_s} s: must be 0 < interval <= duration"
        )
    if (folder / "flight").exists() or (folder / "frames.csv").exists():
        raise ValueError(f"{folder} holds a recording already: give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    with Writer(folder / "flight", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        recorder = FlightRecorder(folder, writer, interval_s, round(duration_s / interval_s))
        try:
            yield recorder
        finally:
            recorder.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 2 for wrong arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m airsim_bridge.record_flight",
        description=f"Fly by keyboard, or with --ros by cmd_vel, and record. Keys: {HELP}.",
    )
    parser.add_argument("folder", type=Path, help="where the recording goes; must not hold one")
    parser.add_argument("--interval", type=float, default=INTERVAL_S, metavar="S", help="default %(default)s")
    parser.add_argument("--duration", type=float, default=DURATION_S, metavar="S", help="default %(default)s")
    parser.add_argument(
        "--ros", action="store_true", help="also take cmd_vel (m arms it) and publish the topics; needs ROS"
    )
    add_arguments(parser)
    options = parser.parse_args(arguments)
    try:
        with contextlib.ExitStack() as stack:
            transport: Transport = NoTransport()
            if options.ros:
                from airsim_bridge.node import ros_transport

                transport = stack.enter_context(ros_transport("record_flight"))
            recorder = stack.enter_context(recording(options.folder, options.interval, options.duration))
            edge: Edge = make_edge(options, transport, recorder)
            edge.fly_by_keyboard(until=lambda: recorder.kept >= recorder.frames)
    except ValueError as error:
        print(f"record_flight: {error}", file=sys.stderr)
        return 2
    print(f"{recorder.kept} frames in {options.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
