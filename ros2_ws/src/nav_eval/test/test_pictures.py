"""Pictures and videos to recordings and back, and each bad input named."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nav_common.topics import FRONT_IMAGE
from nav_eval import pictures
from nav_eval.__main__ import main
from nav_eval.bags import Bag, BagError
from nav_eval.pictures import PictureError


def jpeg(value: int, size: tuple[int, int] = (64, 48)) -> bytes:
    picture = np.full((size[1], size[0], 3), value, np.uint8)
    picture[:, : size[0] // 2] //= 2
    return cv2.imencode(".jpg", picture)[1].tobytes()


def folder_of(path: Path, count: int = 6) -> Path:
    path.mkdir()
    for number in range(count):
        (path / f"{number:05d}.jpg").write_bytes(jpeg(40 * number))
    return path


def test_a_folder_becomes_a_recording_and_comes_back_byte_for_byte(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "flight_frames")
    assert pictures.folder_to_bag(source, tmp_path / "bag") == 6
    stamps = [stamp for stamp, _ in pictures.frames_of(tmp_path / "bag")]
    assert stamps == [1.0, 1.5, 2.0, 2.5, 3.0, 3.5]
    with Bag(tmp_path / "bag") as recording:
        assert [row.time_s for _, row in recording.rows([FRONT_IMAGE.resolve()])] == stamps
    assert pictures.bag_to_folder(tmp_path / "bag", tmp_path / "back") == 6
    for path in source.iterdir():
        assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes()


@settings(max_examples=10, deadline=None)
@given(gaps=st.lists(st.integers(1, 10**7), min_size=1, max_size=6))
def test_stamps_survive_the_way_there_and_back(
    tmp_path_factory: pytest.TempPathFactory, gaps: list[int]
) -> None:
    tmp_path = tmp_path_factory.mktemp("stamps")
    source = folder_of(tmp_path / "frames", len(gaps))
    times = [1_700_000_000 + microseconds * 1e-6 for microseconds in np.cumsum(gaps)]
    lines = [f"{n:05d}.jpg,{stamp:.6f}" for n, stamp in enumerate(times)]
    (source / "stamps.csv").write_text("\n".join(["file,stamp_s", *lines]))
    pictures.folder_to_bag(source, tmp_path / "bag")
    pictures.bag_to_folder(tmp_path / "bag", tmp_path / "back")
    assert (tmp_path / "back" / "stamps.csv").read_text().split() == (
        source / "stamps.csv"
    ).read_text().split()


def test_a_video_becomes_a_recording_and_comes_back(tmp_path: Path) -> None:
    pictures.folder_to_bag(folder_of(tmp_path / "frames"), tmp_path / "bag", interval_s=0.25)
    assert pictures.bag_to_video(tmp_path / "bag", tmp_path / "flight.mp4") == 6
    assert pictures.video_to_bag(tmp_path / "flight.mp4", tmp_path / "again") == 6
    stamps = [stamp for stamp, _ in pictures.frames_of(tmp_path / "again")]
    assert np.allclose(np.diff(stamps), 0.25, atol=1e-3)
    for (_, before), (_, after) in zip(
        pictures.frames_of(tmp_path / "bag"), pictures.frames_of(tmp_path / "again"), strict=True
    ):
        a, b = (
            np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR))
            for data in (before, after)
        )
        assert np.abs(a.astype(int) - b).mean() < 12
    assert pictures.video_to_bag(tmp_path / "flight.mp4", tmp_path / "thin", fps=2.0) == 3


def test_bad_folders_are_named(tmp_path: Path) -> None:
    def reason(folder: Path) -> str:
        with pytest.raises(PictureError) as caught:
            pictures.folder_to_bag(folder, tmp_path / "bag")
        assert not (tmp_path / "bag").exists()
        return str(caught.value)

    assert "is no folder" in reason(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert "holds no picture" in reason(tmp_path / "empty")
    source = folder_of(tmp_path / "frames")
    (source / "00003.jpg").write_bytes(b"not a picture")
    assert "00003.jpg (13 bytes) is no picture" in reason(source)
    (source / "00003.jpg").write_bytes(jpeg(3))
    (source / "stamps.csv").write_text("file,stamp_s\n00000.jpg,1.0\n")
    assert "no stamp for 00001.jpg" in reason(source)
    (source / "stamps.csv").write_text("file,stamp_s\n00000.jpg,1.0\n00001.jpg,soon\n")
    assert "line 3" in reason(source)
    lines = "\n".join(f"{n:05d}.jpg,{stamp}" for n, stamp in enumerate((3.0, 2.0, 4.0, 5.0, 6.0, 7.0)))
    (source / "stamps.csv").write_text("file,stamp_s\n" + lines)
    assert "00001.jpg has the stamp 2.0 after 3.0" in reason(source)


def test_bad_videos_and_recordings_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(PictureError, match="cannot be read as a video"):
        pictures.video_to_bag(tmp_path / "text.mp4", tmp_path / "bag")
    with pytest.raises(PictureError, match="does not exist"):
        pictures.video_to_bag(tmp_path / "nothing.mp4", tmp_path / "bag")
    with pytest.raises(BagError, match="no recording at"):
        pictures.bag_to_video(tmp_path / "nothing", tmp_path / "out.mp4")
    pictures.folder_to_bag(folder_of(tmp_path / "frames"), tmp_path / "bag")
    with pytest.raises(PictureError, match="is not empty"):
        pictures.bag_to_folder(tmp_path / "bag", tmp_path / "frames")
    assert main(["from-pictures", str(tmp_path / "frames"), str(tmp_path / "bag")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["to-video", str(tmp_path / "bag"), str(tmp_path / "flight.mp4")]) == 0
