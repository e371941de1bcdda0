"""The engine alone: play a video into the memory and ask about it.

python -m vlm_perception.engine --model DIR --video FILE --ask "What do you see?"
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from .qwen import ModelError, QwenModel
from .video_file import video_frames
from .video_stream_inference import VideoStreamingInference


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m vlm_perception.engine", description=__doc__)
    parser.add_argument(
        "--model", required=True, help="folder of a Qwen2.5-VL model in Hugging Face's layout"
    )
    parser.add_argument("--video", required=True, type=Path, help="video file")
    parser.add_argument("--ask", required=True, help="the question, asked after the last frame")
    parser.add_argument(
        "--every", type=int, default=0, metavar="CHUNKS", help="ask also every so many chunks"
    )
    parser.add_argument("--fps", type=float, default=2.0, help="frames taken per second of video (default 2)")
    parser.add_argument(
        "--chunk-frames", type=int, default=2, help="frames per chunk (default 2: a video pair)"
    )
    parser.add_argument(
        "--size", type=_size, default=None, metavar="WxH", help="resize frames, multiples of 28"
    )
    parser.add_argument(
        "--max-cache-tokens", type=int, default=None, help="cache budget (default 100000 where they fit)"
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default=None, help="default: a GPU if there is one"
    )
    parser.add_argument("--max-new-tokens", type=int, default=128, help="longest answer (default 128)")
    options = parser.parse_args(arguments)
    try:
        return _run(options)
    except (ModelError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace) -> int:
    model = QwenModel.load(options.model, size=options.size, device=options.device)
    stream = VideoStreamingInference(model, max_cache_tokens=options.max_cache_tokens)
    print(f"budget {stream.cache.config.max_cache_tokens:,} tokens: {stream.budget_reason}", file=sys.stderr)

    def ask() -> None:
        answer, metrics = stream.ask(options.ask, max_new_tokens=options.max_new_tokens)
        info = stream.get_cache_info()
        print(
            f"[{info['chunks_encoded']} chunks, {info['cache_seq_length']} tokens, "
            f"{info['total_evictions']} evictions, first token {1000 * metrics['ttft']:.0f} ms] {answer}"
        )

    frames: list[np.ndarray] = []
    stamps: list[float] = []
    for stamp, frame in video_frames(options.video, options.fps):
        frames.append(frame)
        stamps.append(stamp)
        if len(frames) == options.chunk_frames:
            stream.append_video_chunk(frames, options.fps, stamps=stamps)
            frames, stamps = [], []
            if options.every and stream.chunks_encoded % options.every == 0:
                ask()
    if frames:
        stream.append_video_chunk(frames, options.fps, stamps=stamps)
    if not stream.chunks_encoded:
        raise ValueError(f"{options.video} holds no frames")
    ask()
    return 0


def _size(text: str) -> tuple[int, int]:
    width, height = text.lower().split("x")
    return int(width), int(height)


if __name__ == "__main__":
    sys.exit(main())
