"""Fly by hand and keep the flight: a JPEG file each half second, and a bag. `python -m airsim_bridge.record_flight`."""

from __future__ import annotations

from nav_common.process import exit_on_signals

if __name__ == "__main__":
    exit_on_signals()  # before the imports, which take a second

import argparse
import contextlib
import csv
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from airsim_bridge.edge import Edge, add_arguments, make_edge, say
from airsim_bridge.keyboard import HELP
from airsim_bridge.wire import NoTransport, Transport
from nav_common import conversions, topics
from nav_common.bag_writer import BagError, BagWriter
from nav_common.data import CameraInfo, CompressedImage, DepthImage, DroneState, Imu, Odometry
from nav_common.process import CONFIGURATION_ERROR

# A frame each half second, as the pilot's memory takes them, for five minutes (chosen).
INTERVAL_S = 0.5
DURATION_S = 300.0


class FlightRecorder:
    """Outputs that keep one frame each `interval_s`, and all odometry from the first to the last of `frames`.

    When the disk refuses, the method raises OSError or BagWriteError, and the recording is over: `error` says why.
    """

    def __init__(self, folder: Path, bag: BagWriter, interval_s: float, frames: int) -> None:
        self.kept = 0
        self.frames = frames
        self.connected = False
        """Whether the vehicle has ever answered."""
        self.error: Exception | None = None
        self._folder = folder
        self._interval_s = interval_s
        self._bag = bag
        for topic in (topics.FRONT_IMAGE, topics.FRONT_INFO, topics.ODOM):
            bag.add_topic(topic.resolve(), topic.type, topic.qos)
        self._table = (folder / "frames.csv").open("w", newline="", buffering=1)
        self._rows = csv.writer(self._table)
        self._rows.writerow(["file", "stamp_s", "x_m", "y_m", "z_m", "qw", "qx", "qy", "qz"])
        self._odometry: Odometry | None = None
        self._airborne = False
        self._due_s = 0.0
        self._lock = threading.Lock()  # pictures and odometry come from two threads

    def on_image(self, camera: str, image: CompressedImage, info: CameraInfo) -> None:
        odometry = self._odometry
        if odometry is None or not self._airborne or self.error is not None:
            return  # a flight begins in the air
        if image.stamp_s < self._due_s or self.kept >= self.frames:
            return
        # On a grid, so that the camera's own period does not add up; after a gap the grid starts anew.
        self._due_s = max(self._due_s + self._interval_s, image.stamp_s + 0.5 * self._interval_s)
        with self._writing():
            name = f"frame_{self.kept:06d}.jpg"
            (self._folder / name).write_bytes(image.data)
            self._rows.writerow([name, f"{image.stamp_s:.6f}", *odometry.position, *odometry.orientation])
            self._put(topics.FRONT_IMAGE, image.stamp_s, image)
            self._put(topics.FRONT_INFO, image.stamp_s, info)
            self.kept += 1

    def on_odometry(self, odometry: Odometry) -> None:
        self._odometry = odometry
        if self.error is not None:
            return
        with self._writing():
            if 0 < self.kept < self.frames:
                self._put(topics.ODOM, odometry.stamp_s, odometry)
            else:
                self._bag.checkpoint_if_due()

    def on_state(self, state: DroneState) -> None:
        self.connected |= state.connected
        self._airborne = state.connected and not state.landed

    def on_depth(self, camera: str, depth: DepthImage) -> None:
        pass

    def on_imu(self, imu: Imu) -> None:
        pass

    def log(self, text: str) -> None:
        pass

    def close(self) -> None:
        self._table.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except (OSError, BagError) as error:
                self.error = error
                raise

    def _put(self, topic: topics.Topic, stamp_s: float, value: object) -> None:
        """With the time that it is about as its log time."""
        self._bag.put(topic.resolve(), round(stamp_s * 1e9), conversions.encode(value))


@contextlib.contextmanager
def recording(folder: Path, interval_s: float, duration_s: float) -> Iterator[FlightRecorder]:
    """A FlightRecorder into `folder`: frame_000000.jpg and so on, frames.csv, and the bag in `flight/`.

    Raises:
        ValueError: the folder holds a recording already or cannot be made, or a time that makes no sense.
        OSError, BagError: at the end: the disk refuses the last second of it.
    """
    if not 0.0 < interval_s <= duration_s:
        raise ValueError(
            f"interval is {interval_s} s and duration {duration_s} s: must be 0 < interval <= duration"
        )
    if (folder / "flight").exists() or (folder / "frames.csv").exists():
        raise ValueError(f"{folder} holds a recording already: give another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        bag = BagWriter(folder / "flight")
        bag.open()
    except (OSError, BagError) as error:
        raise ValueError(f"cannot record into {folder}: {error}") from error
    try:
        recorder = FlightRecorder(folder, bag, interval_s, round(duration_s / interval_s))
        try:
            yield recorder
        finally:
            recorder.close()
    finally:
        bag.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 2 for wrong arguments, 1 when there is nothing, or not everything, on the disk."""
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
        return _failed(CONFIGURATION_ERROR, str(error))
    except (OSError, BagError) as error:
        return _failed(1, f"the end of the recording could not be written: {error}")
    say(f"{recorder.kept} frames in {options.folder}")
    problem = ""
    if not recorder.connected:
        problem = f"never connected: {edge.bridge.state().fault}"
    elif not recorder.kept:
        problem = (
            "nothing recorded: the drone was never in the air (t takes off), or its camera gave no picture"
        )
    elif recorder.error is not None:
        problem = f"the recording ends before the flight: {recorder.error}"
    return _failed(1, problem) if problem else 0


def _failed(status: int, text: str) -> int:
    with contextlib.suppress(OSError):  # the terminal is closed
        print(f"record_flight: {text}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
