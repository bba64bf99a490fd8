"""Parts of a video are joined in a folder of any name, and their frames are evenly spaced."""

from itertools import pairwise

import av
import numpy as np
import pytest

from qvg_cli.video.io import VideoWriter, count_frames, read_frames
from qvg_cli.video.parts import encode_part, join_parts

NAMES = [
    "#1 takes",
    "what?",
    "100%",
    "50%d off",
    "a:b",
    "it's",
    'say "a"',
    "[x] & {y}",
    "new\nline",
    "é ü 視頻",
    "-v",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("is_relative", [True, False])
def test_parts_are_joined_in_a_folder_of_any_name(tmp_path, monkeypatch, name, is_relative):
    monkeypatch.chdir(tmp_path)
    folder = type(tmp_path)(name) if is_relative else tmp_path / name
    (folder / "state").mkdir(parents=True)
    frames = np.random.default_rng(0).integers(0, 255, (6, 32, 48, 3), np.uint8)
    parts = [folder / "state" / f"{number}.mp4" for number in range(2)]
    for part, some in zip(parts, (frames[:2], frames[2:]), strict=True):
        encode_part(part, some, fps=16)
    join_parts(parts, folder / "video.mp4", num_frames=6)
    alone = [frame for part in parts for frame in read_frames(part)]
    for joined, own in zip(read_frames(folder / "video.mp4"), alone, strict=True):
        assert np.array_equal(joined, own)
    with VideoWriter(folder / "other.mp4", height=32, width=48, fps=16) as writer:
        writer.write(frames)
    assert count_frames(folder / "other.mp4") == 6
    assert sorted(path.name for path in folder.iterdir()) == ["other.mp4", "state", "video.mp4"]


def test_joined_frames_are_evenly_spaced_however_they_were_joined(tmp_path):
    parts = [tmp_path / f"{number}.mp4" for number in range(4)]
    # 16 frames last 533 1/3 ms; noise that moves is coded with B-frames.
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    frames = np.stack([np.roll(noise, shift, 0) for shift in range(16)])
    for part in parts:
        encode_part(part, frames, fps=30)
    join_parts(parts, tmp_path / "video.mp4", num_frames=64)
    join_parts(parts[:3], tmp_path / "early.mp4", num_frames=48)
    join_parts([tmp_path / "early.mp4", parts[3]], tmp_path / "later.mp4", num_frames=64)
    assert (tmp_path / "later.mp4").read_bytes() == (tmp_path / "video.mp4").read_bytes()
    with av.open(tmp_path / "video.mp4") as file:
        times = sorted(packet.pts for packet in file.demux(video=0) if packet.pts is not None)
    assert len({after - before for before, after in pairwise(times)}) == 1
