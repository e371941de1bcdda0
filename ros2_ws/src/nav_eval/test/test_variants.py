"""Each variant changes the form as it says; what is unknown or impossible is refused."""

import dataclasses

import pytest

import nav_pilot
from nav_eval import variants
from vlm_perception.serving_form import ServingForm

FORM = ServingForm(max_cache_tokens=1000)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("streaming", {}),
        ("last-4", {"recompute_frames": 4}),
        ("last-1", {"recompute_frames": 1}),
        ("level-2", {"sampled_tokens": 250}),
        ("gap-open", {"close_gap": False}),
        ("no-eviction", {"max_cache_tokens": 20_000}),
        ("unlimited", {"max_cache_tokens": 20_000}),
        ("budget-1.3", {"max_cache_tokens": 1300}),
        ("chunk-4", {"frames_per_chunk": 4, "as_video": True}),
        ("fps-4", {"frame_interval_s": 0.25}),
        ("seed-3", {}),
    ],
)
def test_a_variant_changes_the_form_as_it_says(name, changed):
    assert variants.apply(name, FORM) == dataclasses.replace(FORM, **changed)


def test_a_variant_that_a_form_does_not_allow_is_refused():
    with pytest.raises(variants.VariantError, match="variant budget-0: this model's form does not allow it"):
        variants.apply("budget-0", FORM)


def test_an_unknown_variant_is_refused_with_those_there_are():
    with pytest.raises(variants.VariantError, match=r"unknown variant 'last-5'; there are streaming, last-4"):
        variants.apply("last-5", FORM)


def test_a_variant_that_is_not_the_form_of_the_training_is_marked():
    form = ServingForm(system_prompt="You fly.", frame_interval_s=2.0)
    assert variants.unlike_training("streaming", form) == ""
    assert variants.unlike_training("last-4", form) == "recompute_frames 4, trained with 0"
    assert variants.unlike_training("fps-2", form) == "frame_interval_s 0.5, trained with 2.0"
    assert variants.unlike_training("last-4", dataclasses.replace(form, recompute_frames=4)) == ""
    assert variants.unlike_training("last-4", ServingForm()) == ""  # trained for no form of ours


def test_a_pilot_that_was_trained_for_a_variant_lies_beside_the_model_and_is_taken(tmp_path):
    for name, form in (("model", FORM), ("model-last-4", dataclasses.replace(FORM, recompute_frames=4))):
        (tmp_path / name).mkdir()
        form.save(tmp_path / name)
    (tmp_path / "model-last-1").mkdir()  # half written: no form
    model = tmp_path / "model"
    assert variants.trained_folder("last-4", model) == tmp_path / "model-last-4"
    assert [variants.trained_folder(name, model) for name in ("streaming", "last-1")] == [model, model]
    assert [nav_pilot.model_folder(mode).name for mode in ("streaming", "last-4")] == [
        "model",
        "model-last-4",
    ]


def test_another_training_is_never_compared_with_itself(tmp_path):
    model = tmp_path / "model"
    with pytest.raises(
        variants.VariantError, match=r"variant seed-1: there is no model in .*model-seed-1: train"
    ):
        variants.trained_folder("seed-1", model)
    (tmp_path / "model-seed-1").mkdir()
    FORM.save(tmp_path / "model-seed-1")
    assert variants.trained_folder("seed-1", model) == tmp_path / "model-seed-1"
