"""Memory X-ray: it names the picture that caused a decision, and nothing where no picture did."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import nav_pilot
from airsim_sim.world import load_world
from nav_agent import toolset
from nav_agent.prompts import load_prompt
from nav_common.data import PrimeRequest
from nav_eval.__main__ import main
from nav_eval.episodes import mission_of
from nav_eval.leave_one_out import (
    CAUSE_NATS,
    Influence,
    LeaveOneOut,
    LeaveOneOutError,
    Moment,
    MomentRecorder,
    XRay,
)
from nav_eval.lockstep import LockStepSettings, Pilot, fly, load_model
from nav_eval.policies import RandomPolicy
from nav_eval.xray import as_dict, text_of
from vlm_perception.admission import FrameGroup
from vlm_perception.serving_form import ServingForm
from vlm_perception.testing.tiny_model import make_tiny_model

RED_PIXELS = 12
"""Of a 112 x 84 picture: a beacon 15 m away has more."""


@pytest.fixture(scope="module")
def shipped() -> Pilot:
    torch.set_num_threads(1)
    return load_model(nav_pilot.model_folder())


def request_of(pilot: Pilot) -> PrimeRequest:
    return PrimeRequest(pilot.form.system_prompt or load_prompt(), toolset.tools_json())


def moments_of(pilot: Pilot, seed: int, most: int) -> list[Moment]:
    mission, recorder = mission_of(load_world("field", seed)), MomentRecorder()
    settings = LockStepSettings(max_decisions=most, time_limit_s=90.0)
    fly(mission.world, mission.instructions, pilot, settings, moments=recorder)
    return recorder.moments


def shows_the_beacon(chunk: FrameGroup) -> bool:
    red, green, blue = (chunk.frames[-1].pixels[:, :, i].astype(int) for i in range(3))
    scale = red.size / (112 * 84)
    return bool(((red > 2 * green) & (red > 2 * blue) & (red > 80)).sum() >= RED_PIXELS * scale)


@pytest.fixture(scope="module")
def found(shipped: Pilot) -> list[tuple[Moment, FrameGroup]]:
    """Three decisions of real flights with one picture of the beacon in memory, the one that each was made on: it does
    not go on searching."""
    moments = (moment for seed in range(1, 61) for moment in moments_of(shipped, seed, 5))
    resting = ((moment, moment.chunks[-1]) for moment in moments if rests_on_its_newest_picture(moment))
    three = list(itertools.islice(resting, 3))
    assert len(three) == 3, "the pilot turned to the beacon less than three times in sixty flights"
    return three


def rests_on_its_newest_picture(moment: Moment) -> bool:
    *earlier, newest = moment.chunks
    found_it = shows_the_beacon(newest) and moment.call != "turn_right(angle_deg=90)"
    return len(earlier) >= 3 and found_it and not any(map(shows_the_beacon, earlier))


def blanked(chunk: FrameGroup) -> FrameGroup:
    grey = [replace(frame, pixels=np.full_like(frame.pixels, 128)) for frame in chunk.frames]
    return replace(chunk, frames=tuple(grey))


@pytest.mark.timeout(240)
def test_the_only_picture_of_the_beacon_is_named_as_the_cause(
    shipped: Pilot, found: list[tuple[Moment, FrameGroup]]
) -> None:
    """Of most decisions: towards what it already heads for, a pilot may go whether it sees it or not."""
    examiner = LeaveOneOut(shipped.model, shipped.form, request_of(shipped))
    named = 0
    for moment, shown in found:
        looked = examiner.examine(moment)
        assert looked.chosen == looked.call == moment.call
        if looked.cause is None or looked.cause.stamp_s != shown.stamps_s[-1]:
            continue
        named += 1
        assert looked.cause.chosen != looked.chosen
        assert f"caused by the picture of {shown.stamps_s[-1]:.1f} s" in text_of(4, looked, 0.0)
    assert named >= 2


@pytest.mark.timeout(240)
def test_control_blanked_pictures_are_named_as_no_cause(
    shipped: Pilot, found: list[tuple[Moment, FrameGroup]]
) -> None:
    examiner = LeaveOneOut(shipped.model, shipped.form, request_of(shipped))
    for moment, _ in found:
        looked = examiner.examine(replace(moment, chunks=tuple(map(blanked, moment.chunks))))
        assert looked.cause is None
        assert {one.chosen for one in looked.influences} == {looked.chosen}
        assert "caused by no single chunk" in text_of(4, looked, 0.0)


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_tiny_model(tmp_path_factory.mktemp("tiny"), scale=4.0)
    ServingForm(width=112, height=84, max_cache_tokens=4096, tag="t={elapsed_s:.1f}s\n").save(folder)
    return folder


@pytest.mark.timeout(180)
@pytest.mark.parametrize("recompute_frames", [0, 2])
def test_with_every_chunk_the_choice_is_the_flights(tiny_folder: Path, recompute_frames: int) -> None:
    """The memory encoded anew is the flight's own, where nothing had left it; and without a chunk it is another one."""
    pilot = load_model(tiny_folder)
    pilot = pilot._replace(form=replace(pilot.form, recompute_frames=recompute_frames))
    moments = moments_of(pilot, 7, 4)
    assert len(moments) == 4
    assert all(len(moment.chunks) == 2 for moment in moments) == bool(recompute_frames)
    examiner = LeaveOneOut(pilot.model, pilot.form, request_of(pilot))
    for moment in moments:
        looked = examiner.examine(moment)
        assert looked.chosen == looked.call
        assert [one.stamp_s for one in looked.influences] == [c.stamps_s[-1] for c in moment.chunks]
        assert all(one.log_probability != looked.log_probability for one in looked.influences)
        assert examiner.examine(moment) == looked  # looking changes nothing


@pytest.mark.timeout(180)
def test_what_has_left_the_memory_is_left_out_of_no_memory(tiny_folder: Path) -> None:
    pilot = load_model(tiny_folder)
    empty = LeaveOneOut(pilot.model, pilot.form, request_of(pilot))._memory.cached_tokens
    small = pilot._replace(form=replace(pilot.form, max_cache_tokens=empty + 100))
    moments = moments_of(small, 7, 6)
    sizes = [len(moment.chunks) for moment in moments]
    assert max(sizes) == sizes[-1] < len({c.stamps_s[-1] for moment in moments for c in moment.chunks})
    looked = LeaveOneOut(small.model, small.form, request_of(small)).examine(moments[-1])
    assert len(looked.influences) == sizes[-1]


def test_the_cause_is_where_the_call_becomes_less_than_half_as_likely() -> None:
    weak, strong = -1.0 - 0.9 * CAUSE_NATS, -1.0 - 1.1 * CAUSE_NATS
    influences = (Influence(10.0, -0.5, "a"), Influence(12.0, weak, "a"))
    assert XRay("a", "a", -1.0, influences).cause is None
    assert XRay("a", "a", -1.0, ()).cause is None
    looked = XRay("b", "a", -1.0, (*influences, Influence(14.0, strong, "a"), Influence(16.0, -1.2, "b")))
    assert looked.cause == Influence(14.0, strong, "a")
    found = as_dict(looked, 10.0)
    assert found["cause_s"] == 4.0
    assert [one["t"] for one in found["without"]] == [0.0, 2.0, 4.0, 6.0]
    assert found["without"][0]["drop"] == -0.5
    assert "in flight, with what had left the memory by then: b" in text_of(1, looked, 10.0)


def test_a_prompt_that_the_model_refuses_is_said(shipped: Pilot) -> None:
    with pytest.raises(LeaveOneOutError, match="the model refuses the agent's prompt"):
        LeaveOneOut(shipped.model, shipped.form, PrimeRequest("Sing.", toolset.tools_json()))


def test_policies_have_no_memory_to_look_into() -> None:
    mission = mission_of(load_world("field", 7))
    with pytest.raises(ValueError, match="a policy has no memory"):
        fly(mission.world, mission.instructions, [RandomPolicy(7)], moments=MomentRecorder())


@pytest.mark.timeout(180)
def test_the_command_leaves_the_flight_viewer_with_the_xray_and_adds_to_it(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "xray",
        "field",
        "7",
        "--model",
        str(tiny_folder),
        "--max-decisions",
        "3",
        "--out",
        str(tmp_path),
    ]
    assert main([*arguments, "--at", "2"]) == 0
    assert "decision 2, " in capsys.readouterr().out
    assert main([*arguments, "--at", "3", "1"]) == 0
    found = json.loads((tmp_path / "xray.json").read_text())
    assert sorted(found["decisions"]) == ["1", "2", "3"]
    page = (tmp_path / "flight.html").read_text()
    view = json.loads(page.split('id="view">')[1].split("</script>")[0])
    assert [bool(decision.get("xray")) for decision in view["decisions"]] == [True] * 3
    times = [picture["t"] for picture in view["pictures"]]
    assert times == sorted(times)
    for decision in view["decisions"]:
        assert {one["t"] for one in decision["xray"]["without"]} <= set(times)
    assert main([*arguments, "--at", "4"]) == 2
    assert "has 3 decisions: give one from 1 to 3" in capsys.readouterr().err
    assert main([*arguments, "--blank"]) == 2  # the control is another flight
    assert "holds another run" in capsys.readouterr().err
