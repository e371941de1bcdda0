"""Model folders: what cannot be served is refused in one line that names file, key, value and remedy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlm_perception.engine import ModelError, QwenModel
from vlm_perception.engine import device as device_module


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(folder, tmp_path / "copy")


def refusal(folder: Path) -> str:
    """The one line with which a folder is refused."""
    with pytest.raises(ModelError) as refused:
        QwenModel.load(folder, device="cpu")
    message = str(refused.value)
    assert "\n" not in message
    return message


def edit_json(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """change: edits the object, or returns what replaces it."""
    values = json.loads(file.read_text())
    replaced = change(values)
    file.write_text(json.dumps(values if replaced is None else replaced))


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_missing_folder_says_what_one_holds(tmp_path: Path) -> None:
    assert "no config.json" in refusal(tmp_path / "nowhere")


@pytest.mark.parametrize("missing", ["tokenizer.json", "model.safetensors"])
def test_a_folder_with_a_file_missing_says_which(copy: Path, missing: str) -> None:
    (copy / missing).unlink()
    assert missing.split(".")[-1] in refusal(copy)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "generation_config.json"])
@pytest.mark.parametrize(("content", "problem"), [("{", "is not JSON"), ("[1, 2]", "JSON list instead of")])
def test_a_file_that_is_no_json_object_is_named(copy: Path, name: str, content: str, problem: str) -> None:
    (copy / name).write_text(content)
    message = refusal(copy)
    assert f"{copy / name}" in message
    assert problem in message
    assert "anew" in message, "the remedy"


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors"])
def test_a_damaged_file_is_one_line(copy: Path, name: str) -> None:
    (copy / name).write_bytes(b"12345678 garbage")
    assert str(copy) in refusal(copy)


def text(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: config["text_config"].update(changes)


YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6, "mrope_section": [4, 2, 2]}
CONFIGS: dict[str, tuple[Callable[[dict[str, Any]], None], list[str]]] = {
    "another type": (lambda c: c.update(model_type="llama"), ["model_type", "'llama'", "'qwen2_5_vl'"]),
    "no M-RoPE": (text(rope_parameters={"rope_type": "default", "rope_theta": 1e6}), ["mrope_section"]),
    "two sections": (
        text(rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 4]}),
        ["mrope_section", "[4, 4]"],
    ),
    "a text for a list": (lambda c: c.update(text_config=[1]), ["text_config"]),
    "size in words": (text(hidden_size="many"), ["hidden_size", "'many'"]),
    "no layers": (text(num_hidden_layers=0), ["num_hidden_layers", "0"]),
    "more layers": (text(num_hidden_layers=3, layer_types=["full_attention"] * 3), ["layers.2.", "missing"]),
    "fewer layers": (
        text(num_hidden_layers=1, layer_types=["full_attention"]),
        ["layers.1.", "not in config.json"],
    ),
    "layers that disagree": (text(num_hidden_layers=3), ["layer_types"]),
    "fewer vision blocks": (lambda c: c["vision_config"].update(depth=1), ["visual.blocks.1."]),
    "odd heads": (text(num_attention_heads=5), ["hidden_size 64", "num_attention_heads 5"]),
    "odd KV heads": (text(num_key_value_heads=3), ["num_attention_heads 4", "num_key_value_heads 3"]),
    "no token id": (lambda c: c.update(image_token_id=None), ["image_token_id", "None"]),
    "a token beyond the vocabulary": (
        lambda c: c.update(vision_end_token_id=c["text_config"]["vocab_size"]),
        ["config.json: vision_end_token_id", "below vocab_size"],
    ),
    "a token below 0": (lambda c: c.update(video_token_id=-1), ["video_token_id", "-1", "below vocab_size"]),
    "layer types in number": (text(layer_types=2), ["config.json: layer_types is 2", "a list of names"]),
    "YaRN": (text(rope_parameters=YARN), ["rope type 'yarn'", "mrope"]),
    "a sliding window": (text(use_sliding_window=True), ["use_sliding_window", "max_cache_tokens"]),
    "sliding layers": (text(layer_types=["full_attention", "sliding_attention"]), ["use_sliding_window"]),
    "quantized": (
        lambda c: c.update(quantization_config={"quant_method": "awq"}),
        ["'awq'", "not quantized"],
    ),
}


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("image_mean", ["a", 0.5, 0.5], "three finite numbers"),
        ("image_mean", [0.5, 0.5], "three finite numbers"),
        ("image_mean", 0.5, "three finite numbers"),
        ("image_mean", [0.5, float("inf"), 0.5], "three finite numbers"),
        ("image_std", [0, 0, 0], "three finite numbers above 0"),
        ("image_std", [0.3, float("nan"), 0.3], "three finite numbers above 0"),
        ("min_pixels", "many", "a positive whole number"),
        ("max_pixels", -1, "a positive whole number"),
    ],
)
def test_a_picture_format_that_cannot_be_used_is_refused(
    copy: Path, key: str, value: Any, wanted: str
) -> None:
    edit_json(copy / "preprocessor_config.json", lambda c: c.update({key: value}))
    message = refusal(copy)
    assert f"{copy / 'preprocessor_config.json'}: {key} is {value!r}, must be {wanted}: " in message
    assert "anew" in message, "the remedy"


@pytest.mark.parametrize("case", CONFIGS)
def test_a_configuration_that_cannot_be_served_is_refused(copy: Path, case: str) -> None:
    change, parts = CONFIGS[case]
    edit_json(copy / "config.json", change)
    message = refusal(copy)
    assert str(copy) in message
    for part in parts:
        assert part in message


def test_missing_weights_are_named(copy: Path) -> None:
    edit_weights(copy, lambda w: w.pop("model.layers.1.mlp.down_proj.weight"))
    message = refusal(copy)
    assert "layers.1.mlp.down_proj.weight is missing" in message
    assert "model.safetensors" in message


def test_weights_of_another_shape_are_named_with_both_shapes(copy: Path) -> None:
    key = "model.layers.0.mlp.down_proj.weight"
    edit_weights(copy, lambda w: w.update({key: w[key][:, :10].contiguous()}))
    message = refusal(copy)
    assert "model.safetensors" in message
    assert "layers.0.mlp.down_proj.weight has shape [64, 10], config.json asks for [64, 96]" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["model.layers.1.self_attn.k_proj.bias", "visual.merger.mlp.2.weight"])
def test_weights_that_are_not_finite_are_named(copy: Path, key: str, value: float) -> None:
    edit_weights(copy, lambda w: w[key].view(-1)[3:4].fill_(value))
    message = refusal(copy)
    assert key.removeprefix("model.") in message
    assert "not finite" in message


def test_the_shard_that_holds_the_bad_weight_is_named(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    names = sorted(weights)
    index: dict[str, str] = {}
    for number, part in enumerate((names[:20], names[20:]), 1):
        shard = f"model-0000{number}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, copy / shard, metadata={"format": "pt"})
        index |= dict.fromkeys(part, shard)
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    QwenModel.load(copy, device="cpu")
    bad = load_file(copy / index[names[-1]])
    bad[names[-1]].fill_(float("nan"))
    save_file(bad, copy / index[names[-1]], metadata={"format": "pt"})
    assert index[names[-1]] in refusal(copy)


def test_stop_tokens_of_generation_config_end_an_answer(copy: Path, model: QwenModel) -> None:
    stop = model.tokenize("a")[0]
    edit_json(copy / "generation_config.json", lambda c: c.update(eos_token_id=[model.end_of_turn, stop]))
    assert QwenModel.load(copy, device="cpu").stop_tokens == {model.end_of_turn, stop}
    edit_json(copy / "generation_config.json", lambda c: c.update(eos_token_id="stop"))
    assert "eos_token_id is 'stop'" in refusal(copy)


def test_a_stop_token_beyond_the_vocabulary_is_refused(copy: Path) -> None:
    edit_json(copy / "generation_config.json", lambda c: c.update(eos_token_id=[2, 151645]))
    message = refusal(copy)
    for part in ("token 151645", "eos_token_id of generation_config.json", "all files of one model"):
        assert part in message


# -- where it is served ------------------------------------------------------------------------------------------
def test_a_large_model_is_not_silently_served_by_a_cpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert QwenModel.load(folder).device.type == "cpu", "a small one is"
    monkeypatch.setattr(device_module, "LARGE_MODEL_BYTES", 1000)
    with pytest.raises(ModelError, match=r'no CUDA.*minutes.*"cpu"'):
        QwenModel.load(folder)
    assert QwenModel.load(folder, device="cpu").device.type == "cpu", "as it was asked for"


def test_a_gpu_that_torch_cannot_use_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(device_module, "has_nvidia_gpu", lambda: True)
    with pytest.raises(
        ModelError, match=r"a GPU is there, but this build of torch is for CPUs only; install one with"
    ):
        QwenModel.load(folder, device="cuda")


@pytest.mark.parametrize(
    ("dtype", "capability", "message"),
    [(torch.float32, (8, 9), r"float32 on a GPU"), (None, (7, 5), r"capability 7.5.*8.0 \(Ampere")],
)
def test_a_gpu_that_cannot_compute_bfloat16_is_refused(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype | None, capability: tuple[int, int], message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    with pytest.raises(ModelError, match=message):
        device_module.check_cuda(dtype)
