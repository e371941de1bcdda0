"""Ask a video: frames into the streaming memory, a question now and then. The engine alone: no ROS, no drone.

    source scripts/env.sh
    python examples/ask_a_video.py film.mp4 "What is in sight?" --model ~/Qwen2.5-VL-3B-Instruct

Without --model the shipped pilot answers, which has learnt to fly and no words: it shows the calls, not the answers.
"""

import argparse

from nav_pilot import chosen_folder
from vlm_perception.engine import VideoStreamingInference
from vlm_perception.engine.video_file import video_frames


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("video")
    parser.add_argument("question")
    parser.add_argument("--model", help="default: QWEN_MODEL_PATH, else the shipped pilot")
    parser.add_argument("--every", type=int, default=20, help="chunks between two questions")
    options = parser.parse_args()

    # 1. A stream. The budget bounds the memory for good; what falls out of the window is forgotten.
    stream = VideoStreamingInference(chosen_folder(options.model), max_cache_tokens=2_000)

    # 2. Two frames a second, in pairs, with the film's own times. 3. An ask changes nothing in the memory.
    frames = video_frames(options.video, 2.0)
    for (first_s, first), (second_s, second) in zip(frames, frames, strict=False):
        stream.append_video_chunk([first, second], stamps=[first_s, second_s])
        if stream.chunks_encoded % options.every == 0:
            answer, metrics = stream.ask(options.question, max_new_tokens=32)
            print(f"{second_s:6.1f} s  {1000 * metrics['ttft']:5.0f} ms  {answer!r}")

    answer, _ = stream.ask(options.question, max_new_tokens=32)
    info = stream.get_cache_info()
    kept = ("cache_seq_length", "chunks_encoded", "total_evictions")
    print(f"at the end: {answer!r}; " + ", ".join(f"{name} {info[name]}" for name in kept))


if __name__ == "__main__":
    main()
