"""What a GPU is spared, checked without one: uploads, waits, memory given back, times of the launch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import make_frames
from torch import Tensor

from vlm_perception.engine import Image, QwenModel, Text, VideoStreamingInference
from vlm_perception.engine.device import FREE_MEMORY_FLOOR, Stopwatch, release_unused_memory

FRAMES = make_frames(4)


def test_everything_is_uploaded_before_the_vision_tower_starts(
    model: QwenModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def watched(name: str) -> None:
        original = getattr(QwenModel, name)

        def call(self: QwenModel, *given: Any) -> Tensor:
            done.append(name)
            result: Tensor = original(self, *given)
            return result

        monkeypatch.setattr(QwenModel, name, call)

    watched("embed")
    watched("encode_vision")
    stream = VideoStreamingInference(model)
    stream.model.prepare([Text("t=1"), Image(FRAMES[0]), Text("t=2"), Image(FRAMES[1]), Text("end")])
    assert done == ["embed", "encode_vision", "encode_vision"]


class FakeEvent:
    """A CUDA event: its time is known once the device has come to it."""

    clock_ms = iter([10.0, 13.0, 20.0])
    waits = 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at_ms = next(FakeEvent.clock_ms)

    def synchronize(self) -> None:
        FakeEvent.waits += 1

    def elapsed_time(self, later: FakeEvent) -> float:
        return later.at_ms - self.at_ms


def test_times_on_a_gpu_are_its_own_and_cost_one_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    watch = Stopwatch(torch.device("cuda"))
    watch.lap()
    watch.lap()
    assert FakeEvent.waits == 0
    assert watch.laps_s() == pytest.approx([0.003, 0.007])
    assert FakeEvent.waits == 1


def test_times_on_a_cpu_are_of_its_clock(model: QwenModel) -> None:
    done = VideoStreamingInference(model).append_frame(FRAMES[0])
    assert done.vision_s > 0
    assert done.prefill_s > 0


@pytest.mark.parametrize(
    ("free", "idle", "released"),
    [
        (FREE_MEMORY_FLOOR - 1, 2**30, True),
        (FREE_MEMORY_FLOOR, 2**30, False),
        (FREE_MEMORY_FLOOR - 1, 2**20, False),
    ],
)
def test_idle_memory_is_given_back_only_where_free_memory_runs_short(
    monkeypatch: pytest.MonkeyPatch, free: int, idle: int, released: bool
) -> None:
    calls: list[None] = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, 24 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 2**33)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 2**33 + idle)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append(None))
    release_unused_memory()
    assert bool(calls) == released
