"""Command line: `python -m nav_eval check BAG`, `repair`, and the rest of what is done with recordings."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import sys
import tempfile
from pathlib import Path

import yaml

from nav_common.process import StopSignals, popen
from nav_common.topics import DEFAULT_VEHICLE_NAMESPACE
from nav_eval import bags, evaluation, fork, judge, pictures, profile, rehearse, xray

POLL_S = 0.2


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 success, 1 breaches found, 2 not possible (nothing to judge too)."""
    parser = argparse.ArgumentParser(prog="nav_eval", description="Record, judge and replay flights.")
    commands = parser.add_subparsers(dest="command", required=True)
    for add in (
        _add_record,
        _add_live,
        _add_check,
        _add_repair,
        _add_replay,
        _add_view,
        _add_demo,
        _add_pictures,
        _add_machine,
        evaluation.add_command,
        fork.add_command,
        rehearse.add_command,
        xray.add_command,
    ):
        add(commands)
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except (bags.BagError, pictures.PictureError) as error:
        print(f"nav_eval {options.command}: {error}", file=sys.stderr)
        return 2


def _add_record(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "record",
        help="record a flight, with `ros2 bag record` where it is installed, otherwise with our own recorder",
    )
    parser.add_argument("output", type=Path, help="directory to make")
    parser.add_argument(
        "--vehicle", default=DEFAULT_VEHICLE_NAMESPACE, help="namespace of the vehicle's topics"
    )
    parser.add_argument("--own", action="store_true", help="our own recorder, even where ROS's is installed")
    parser.set_defaults(run=_record)


def _record(options: argparse.Namespace) -> int:
    output = str(options.output.absolute())
    if importlib.util.find_spec("rosbag2_py") is not None and not options.own:
        return _record_with_ros2_bag(output, options.vehicle)
    return _become("record", output=output, vehicle_namespace=options.vehicle)


def _become(node: str, **parameters: str | int) -> int:
    """One of the nodes, in the place of this process: does not return."""
    arguments = [word for name, value in parameters.items() for word in ("-p", f"{name}:={value}")]
    program = f"from nav_eval.start import {node}; {node}()"
    os.execv(sys.executable, [sys.executable, "-c", program, "--ros-args", *arguments])


def _add_live(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("live", help="show a graph that runs in Foxglove, until a signal to stop")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; whoever reaches it can look"
    )
    parser.add_argument(
        "--port", type=int, default=profile.LIVE_PORT, help="default: %(default)s, Foxglove's own"
    )
    parser.add_argument(
        "--vehicle", default=DEFAULT_VEHICLE_NAMESPACE, help="namespace of the vehicle's topics"
    )
    parser.set_defaults(
        run=lambda options: _become(
            "live", host=options.host, port=options.port, vehicle_namespace=options.vehicle
        )
    )


def _record_with_ros2_bag(output: str, vehicle_namespace: str) -> int:
    """Until a signal to stop, which `ros2 bag record` gets once, as SIGINT; returns its exit status."""
    stop = StopSignals()
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", prefix="qos_") as file:
        yaml.safe_dump(profile.qos_overrides(vehicle_namespace), file)
        file.flush()
        # In a process group of its own: a terminal's Ctrl-C would reach it a second time.
        recorder = popen(profile.ros2_bag_command(output, file.name, vehicle_namespace), process_group=0)
        while recorder.poll() is None and not stop.wait(POLL_S):
            pass
        if recorder.poll() is None:
            recorder.send_signal(signal.SIGINT)
        return recorder.wait()


def _add_check(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("check", help="report each breach of the safety invariants in a recording")
    parser.add_argument("bag", type=Path, help="rosbag2 directory, .mcap or .db3 file")
    parser.add_argument(
        "--vehicle", help="namespace of the vehicle's topics (default: the only one recorded)"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(run=_check)


def _check(options: argparse.Namespace) -> int:
    report = judge.check(options.bag, options.vehicle)
    print(json.dumps(report.as_dict(), indent=2) if options.json else report.text())
    if report.breaches:
        return 1
    return 2 if report.nothing_judged else 0


def _add_repair(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("repair", help="save what is whole of an MCAP recording that was cut off")
    parser.add_argument("bag", type=Path, help="rosbag2 directory or .mcap file")
    parser.add_argument("output", type=Path, help="directory to make for what is saved")
    parser.set_defaults(run=_repair)


def _repair(options: argparse.Namespace) -> int:
    print(f"{bags.repair(options.bag, options.output)} messages saved in {options.output}")
    return 0


def _add_replay(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "replay", help="feed a recording to the memory and see what the pilot would do"
    )
    parser.add_argument("bag", type=Path)
    parser.add_argument(
        "--every", type=int, default=10, help="ask at each so many frames; 0: where the flight did"
    )
    parser.add_argument("--question", default="", help="ask this in words instead of asking for decisions")
    parser.add_argument(
        "--instruction", default="", help="what the pilot is asked to do; default: as in the flight"
    )
    parser.add_argument(
        "--model",
        type=Path,
        help="model folder; default: QWEN_MODEL_PATH, else the pilot shipped in nav_pilot",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    parser.add_argument("--output", type=Path, help="folder for the results; default: beside the recording")
    parser.add_argument(
        "--vehicle", help="namespace of the vehicle's topics (default: the only one recorded)"
    )
    parser.set_defaults(run=_replay)


def _replay(options: argparse.Namespace) -> int:
    # Torch and transformers: only here.
    import torch

    import nav_pilot
    from nav_eval.flight_view import view_of_recording
    from nav_eval.html_pages import flight_page
    from nav_eval.replay import ReplayError, Row, replay
    from nav_eval.report import page
    from vlm_perception.engine.qwen import ModelError, QwenModel
    from vlm_perception.serving_form import ServingForm, ServingFormError

    torch.set_num_threads(1)
    bags.Bag(options.bag).close()  # before a large model is loaded for nothing
    folder = options.output or options.bag.resolve().parent
    folder.mkdir(parents=True, exist_ok=True)
    try:
        model_folder = nav_pilot.chosen_folder(options.model)
        form = ServingForm.load(model_folder)
        model = QwenModel.load(model_folder, size=(form.width, form.height), device=options.device)
        with (folder / "decisions.jsonl").open("w") as lines:

            def write(row: Row) -> None:
                lines.write(json.dumps(row.as_dict()) + "\n")
                lines.flush()

            result = replay(
                options.bag,
                model,
                form,
                every=options.every,
                question=options.question,
                instruction=options.instruction,
                vehicle_namespace=options.vehicle,
                on_row=write,
            )
    except (ReplayError, ModelError, ServingFormError) as error:
        print(f"nav_eval replay: {error}", file=sys.stderr)
        return 2
    (folder / "replay.html").write_text(page(result))
    summary = result.summary()
    (folder / "replay.json").write_text(json.dumps(summary, indent=2) + "\n")
    viewer = folder / "flight.html"
    if not viewer.exists():  # make fly's own has the map too
        view = view_of_recording(options.bag, vehicle_namespace=options.vehicle)
        viewer.write_text(flight_page(view, f"Flight {options.bag.resolve().name}", {}), encoding="utf-8")
    for name, value in summary.items():
        if value not in ("", None):
            print(f"{name:16} {value}")
    print(folder / "replay.html")
    if result.error:
        print(f"nav_eval replay: {result.error}", file=sys.stderr)
        return 2
    return 0


def _add_view(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "view", help="write the flight viewer of a recording: pictures, decisions, path and cache on one page"
    )
    parser.add_argument("bag", type=Path)
    parser.add_argument(
        "output", type=Path, nargs="?", help="HTML file; default: flight.html beside the recording"
    )
    parser.add_argument(
        "--scene", default="", help="scene of the embedded simulator that was flown, for the map"
    )
    parser.add_argument("--seed", type=int, default=1, help="its seed")
    parser.add_argument(
        "--vehicle", help="namespace of the vehicle's topics (default: the only one recorded)"
    )
    parser.set_defaults(run=_view)


def _view(options: argparse.Namespace) -> int:
    from airsim_sim.world import WorldError, load_world
    from nav_eval.flight_view import view_of_recording
    from nav_eval.html_pages import flight_page

    try:
        world = load_world(options.scene, options.seed) if options.scene else None
    except WorldError as error:
        print(f"nav_eval view: {error}", file=sys.stderr)
        return 2
    output = options.output or options.bag.resolve().parent / "flight.html"
    view = view_of_recording(options.bag, world, options.vehicle)
    output.write_text(flight_page(view, f"Flight {options.bag.resolve().name}", {}), encoding="utf-8")
    print(output)
    return 0


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "demo", help="write the demonstration video of a recording: the drone's picture beside its decisions"
    )
    parser.add_argument("bag", type=Path)
    parser.add_argument("video", type=Path, help="a name ending in .mp4")
    parser.add_argument(
        "--vehicle", help="namespace of the vehicle's topics (default: the only one recorded)"
    )
    parser.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> int:
    from nav_eval.demo_video import write_demo

    return _say(write_demo(options.bag, options.video, options.vehicle), options.video)


def _add_pictures(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("from-pictures", help="make a recording of a folder of pictures")
    parser.add_argument("folder", type=Path, help="00000.jpg ... and perhaps stamps.csv")
    parser.add_argument("bag", type=Path)
    parser.add_argument("--interval", type=float, default=0.5, help="s between pictures without stamps.csv")
    parser.set_defaults(
        run=lambda o: _say(pictures.folder_to_bag(o.folder, o.bag, interval_s=o.interval), o.bag)
    )
    parser = commands.add_parser("from-video", help="make a recording of a video")
    parser.add_argument("video", type=Path)
    parser.add_argument("bag", type=Path)
    parser.add_argument("--fps", type=float, default=0.0, help="at most so many frames a second; 0: all")
    parser.set_defaults(run=lambda o: _say(pictures.video_to_bag(o.video, o.bag, fps=o.fps), o.bag))
    parser = commands.add_parser(
        "to-pictures", help="write a recording's pictures into a folder, with stamps.csv"
    )
    parser.add_argument("bag", type=Path)
    parser.add_argument("folder", type=Path)
    parser.set_defaults(run=lambda o: _say(pictures.bag_to_folder(o.bag, o.folder), o.folder))
    parser = commands.add_parser("to-video", help="write a recording's pictures as a video (.mp4)")
    parser.add_argument("bag", type=Path)
    parser.add_argument("video", type=Path)
    parser.set_defaults(run=lambda o: _say(pictures.bag_to_video(o.bag, o.video), o.video))


def _add_machine(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("machine", help="print what machine figures are measured on, as JSON")
    parser.set_defaults(run=_machine)


def _machine(options: argparse.Namespace) -> int:
    from nav_eval import machine

    print(json.dumps(machine.describe(), indent=2))
    return 0


def _say(count: int, where: Path) -> int:
    print(f"{count} pictures: {where}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
