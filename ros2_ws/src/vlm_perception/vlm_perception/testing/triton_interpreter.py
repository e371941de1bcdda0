"""The engine's Triton kernel in Triton's interpreter, on a CPU, with the arithmetic that it has on a GPU.

python -m vlm_perception.testing.triton_interpreter prints its errors as JSON. It wants a process of its own, since the
interpreter must be chosen before anything imports Triton. As shipped (3.7) the interpreter keeps bfloat16 as bare bits,
multiplies these in `dot`, and cuts off instead of rounding when it casts.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import torch

from .operators import OFFSETS, make_case, relative_error

# (new, start, cached): shorter and longer than a split, one token, nothing cached, several blocks of rows
SIZES = (
    (1, 0, 5),
    (1, 77, 300),
    (3, 17, 100),
    (8, 5, 250),
    (20, 33, 111),
    (1, 3, 0),
    (4, 9, 0),
    (128, 2, 40),
)
SIZES_BF16 = ((1, 0, 300), (8, 5, 100), (20, 3, 60))
FEW_SPLITS = 8  # the interpreter works on one after the other
GROUPINGS = ((4, 4, 16), (4, 2, 16), (28, 4, 32))  # (query heads, KV heads, dim) beside the 3B's
MISSING = "triton is not installed (CUDA builds of torch bring it): pip install triton==3.7.1"


def run_interpreted() -> dict[str, Any] | None:
    """`measure` in a process with the interpreter; None where Triton is not installed."""
    if importlib.util.find_spec("triton") is None:
        return None
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", __name__],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    if done.returncode:
        raise RuntimeError(f"the interpreter failed: {done.stderr[-2000:]}")
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def measure() -> dict[str, Any]:
    """Largest difference to the eager path in float32, and errors against float64 in bfloat16, by case."""
    from vlm_perception.engine.attention import attend
    from vlm_perception.engine.triton_attention import attend_live

    differences = {}
    shapes = [(size, (16, 2, 128)) for size in SIZES] + [((5, 1, 70), grouping) for grouping in GROUPINGS]
    for (new, start, cached), (heads, kv_heads, dim) in shapes:
        case = make_case(new, cached, dtype=torch.float32, heads=heads, kv_heads=kv_heads, dim=dim)
        found = attend_live(case.query, *case.in_buffer(start, capacity=512), splits=FEW_SPLITS)
        key = f"{new} after {cached} from {start}, {heads}/{kv_heads} heads of {dim}"
        differences[key] = float((found - attend(case.query, case.key, case.value)).abs().max())
    errors = {}
    for new, start, cached in SIZES_BF16:
        for offset in OFFSETS:
            case = make_case(new, cached, offset)
            found = attend_live(case.query, *case.in_buffer(start), splits=FEW_SPLITS)
            errors[f"{new} after {cached}, offset {offset}"] = relative_error(found, case.exact())
    return {"float32_differences": differences, "bf16_errors": errors}


def mend_bfloat16() -> None:
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def dot(self: Any, a: Any, b: Any, d: Any, *precision: Any) -> Any:
        left, right = (_to_float32(x.data) if x.dtype.scalar == tl.bfloat16 else x.data for x in (a, b))
        return TensorHandle(np.matmul(left, right, dtype=d.data.dtype) + d.data, d.dtype.scalar)

    def cast(self: Any, source: Any, target: Any) -> Any:
        kinds = (source.dtype.scalar, target.scalar)
        if kinds == (tl.bfloat16, tl.float32):
            return TensorHandle(_to_float32(source.data), target.scalar)
        if kinds == (tl.float32, tl.bfloat16):
            return TensorHandle(_to_bfloat16(source.data), target.scalar)
        return shipped(self, source, target)

    shipped = InterpreterBuilder.cast_impl
    InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl = dot, cast


def _to_float32(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _to_bfloat16(values: np.ndarray) -> np.ndarray:
    rounded = torch.from_numpy(np.ascontiguousarray(values)).to(torch.bfloat16)
    return rounded.view(torch.int16).numpy().view(np.uint16)


if __name__ == "__main__":
    mend_bfloat16()
    print(json.dumps(measure()))
