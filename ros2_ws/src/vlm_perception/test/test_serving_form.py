"""The serving form: read whole or refused with the field named, and the difference shown."""

import dataclasses
import json
from pathlib import Path

import pytest

from vlm_perception.serving_form import FILE_NAME, ServingForm, ServingFormError
from vlm_perception.testing.drone_tools import DRONE_TOOLS


def test_what_is_saved_is_read_again(tmp_path: Path) -> None:
    form = ServingForm(
        system_prompt="You fly.", tools=DRONE_TOOLS, tag="", width=112, height=84, max_cache_tokens=600
    )
    form.save(tmp_path)
    assert ServingForm.load(tmp_path) == form


def test_a_folder_without_the_file_takes_the_defaults_and_any_prompt(tmp_path: Path) -> None:
    form = ServingForm.load(tmp_path)
    assert form == ServingForm()
    assert form.difference("anything", DRONE_TOOLS) == ""


def test_the_difference_shows_what_was_trained_and_what_was_asked() -> None:
    form = ServingForm(system_prompt="You fly.\nBe careful.", tools=DRONE_TOOLS)
    assert form.difference("You fly.\nBe careful.\n", DRONE_TOOLS) == ""
    difference = form.difference("You fly.\nBe quick.", DRONE_TOOLS[:-1])
    assert "-Be careful." in difference
    assert "+Be quick." in difference
    assert '"finish"' in difference
    assert "You fly." not in difference


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", 3),
        ("system_prompt", None),
        ("tools", "all"),
        ("tag", "t={x}"),
        ("tag", "{elapsed_s.__class__}"),
        ("tag", "{elapsed_s:q}"),
        ("tag", "{"),
        ("frames_per_chunk", 0),
        ("frames_per_chunk", True),
        ("as_video", 1),
        ("width", 100),
        ("height", 0),
        ("frame_interval_s", -1),
        ("frame_interval_s", float("nan")),
        ("max_cache_tokens", 0),
        ("sink_size", 100_000),
        ("recent_calls", -1),
        ("max_new_tokens", 1.5),
        ("recompute_frames", -1),
        ("sampled_tokens", 100_000),
        ("close_gap", 1),
    ],
)
def test_a_value_out_of_range_is_named(field: str, value: object) -> None:
    with pytest.raises(ServingFormError, match=f"^{field} is "):
        dataclasses.replace(ServingForm(), **{field: value})  # type: ignore[arg-type]


def test_pairs_of_frames_must_be_pairs() -> None:
    with pytest.raises(ServingFormError, match="even number"):
        ServingForm(as_video=True)
    assert ServingForm(as_video=True, frames_per_chunk=4).frames_per_chunk == 4


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"version": 0}, "version is 0, this program reads version 2"),
        ({"colour": "red"}, "unknown field colour"),
        ({"tag": None}, "tag is None"),
    ],
)
def test_a_file_of_another_form_is_refused_with_its_path(tmp_path: Path, change: dict, problem: str) -> None:
    path = tmp_path / FILE_NAME
    path.write_text(json.dumps(dataclasses.asdict(ServingForm()) | change))
    with pytest.raises(ServingFormError, match=problem) as refusal:
        ServingForm.load(tmp_path)
    assert str(path) in str(refusal.value)


def test_a_file_that_lacks_a_field_or_is_no_json_is_refused(tmp_path: Path) -> None:
    values = dataclasses.asdict(ServingForm())
    del values["width"]
    for content, problem in (
        (json.dumps(values), "missing field width"),
        ("{", "not JSON"),
        ("[]", "JSON object"),
    ):
        (tmp_path / FILE_NAME).write_text(content)
        with pytest.raises(ServingFormError, match=problem):
            ServingForm.load(tmp_path)


def test_a_form_of_version_1_goes_on_serving(tmp_path: Path) -> None:
    form = ServingForm(system_prompt="You fly.", tools=DRONE_TOOLS, recent_calls=3, max_cache_tokens=600)
    values = dataclasses.asdict(form)
    for name in ("recompute_frames", "sampled_tokens", "close_gap"):
        del values[name]
    values |= {"version": 1, "recent_turns": values.pop("recent_calls")}
    (tmp_path / FILE_NAME).write_text(json.dumps(values))
    assert ServingForm.load(tmp_path) == form
