"""MP4: every frame arrives, nothing is resized, and a file that was cut off still plays."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import imageio_ffmpeg
import numpy as np
import pytest

from qvg_cli.errors import MissingModelError, QvgError, UsageError
from qvg_cli.video.io import VideoWriter, check_encoder, count_frames, read_frames


def some_frames(count, height=48, width=80):
    """A gradient that moves, so that frames differ and the codec keeps them well."""
    base = np.linspace(0, 255, width, dtype=np.uint8)
    row = np.stack([np.stack([np.roll(base, 4 * index)] * height) for index in range(count)])
    return np.repeat(row[..., None], 3, axis=-1)


@pytest.mark.parametrize(("height", "width"), [(48, 80), (50, 34), (16, 16)])
def test_frames_come_back_in_number_size_and_order(tmp_path, height, width):
    frames = some_frames(20, height, width)
    with VideoWriter(tmp_path / "v.mp4", height=height, width=width, fps=16) as writer:
        writer.write(frames[:7])
        writer.write(frames[7:])
    back = list(read_frames(tmp_path / "v.mp4"))
    assert len(back) == count_frames(tmp_path / "v.mp4") == 20
    assert back[0].shape == (height, width, 3)
    for written, read in zip(frames, back, strict=True):
        assert np.abs(written.astype(int) - read).mean() < 6
    assert [path.name for path in tmp_path.iterdir()] == ["v.mp4"]


def test_colors_come_back_as_bright_as_they_were_written(tmp_path):
    levels = np.arange(20, 220, 10)
    frames = np.broadcast_to(levels[:, None, None, None], (20, 32, 48, 3)).astype(np.uint8)
    with VideoWriter(tmp_path / "v.mp4", height=32, width=48, fps=16) as writer:
        writer.write(frames)
    back = np.stack(list(read_frames(tmp_path / "v.mp4")))
    # The usual conversion to RGB would be a level darker.
    assert abs((back.astype(float) - frames).mean()) < 0.5


@pytest.mark.parametrize(
    ("height", "width", "message"),
    [
        (33, 64, "height 33 is odd, MP4 needs it even; nearest: 32, 34"),
        (32, 51, "width 51 is odd.*; nearest: 50, 52"),
    ],
)
def test_odd_sizes_are_refused(tmp_path, height, width, message):
    with pytest.raises(UsageError, match=message):
        VideoWriter(tmp_path / "v.mp4", height=height, width=width, fps=16)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "frames",
    [some_frames(2, 48, 64), some_frames(2).astype(np.float32), some_frames(2)[..., :1], some_frames(2)[0]],
    ids=["size", "dtype", "channels", "dimensions"],
)
def test_frames_that_do_not_fit_are_refused_before_they_are_sent(tmp_path, frames):
    with VideoWriter(tmp_path / "v.mp4", height=48, width=80, fps=16) as writer:
        writer.write(some_frames(3))
        with pytest.raises(ValueError, match="do not fit a video of"):
            writer.write(frames)
    assert count_frames(tmp_path / "v.mp4") == 3


def test_no_frames_leave_no_file(tmp_path):
    with VideoWriter(tmp_path / "v.mp4", height=48, width=80, fps=16):
        pass
    assert not list(tmp_path.iterdir())


def test_an_error_in_between_leaves_a_part_that_plays(tmp_path):
    with (
        pytest.raises(ValueError, match="do not fit"),
        VideoWriter(tmp_path / "v.mp4", height=48, width=80, fps=16) as writer,
    ):
        write_all(writer, some_frames(5), some_frames(1, 8, 8))
    assert [path.name for path in tmp_path.iterdir()] == ["v.mp4.part"]
    assert count_frames(tmp_path / "v.mp4.part") == 5


def test_a_part_plays_when_the_program_is_killed(tmp_path):
    script = textwrap.dedent("""
        import sys, time, numpy as np
        from pathlib import Path
        from qvg_cli.video.io import VideoWriter
        writer = VideoWriter(Path(sys.argv[1]), height=48, width=80, fps=16)
        writer.write(np.zeros((40, 48, 80, 3), np.uint8))
        print("written", flush=True)
        time.sleep(60)
    """)
    program = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "v.mp4")], stdout=subprocess.PIPE
    )
    assert program.stdout.readline() == b"written\n"
    program.send_signal(signal.SIGKILL)
    program.wait()
    part = tmp_path / "v.mp4.part"
    wait_until(lambda: count_frames(part) == 40)


def test_the_whole_groups_play_when_ffmpeg_is_killed(tmp_path, monkeypatch):
    wrap_ffmpeg(tmp_path, monkeypatch, f"[ $1 = -y ] && echo $$ > {tmp_path}/pid")
    writer = VideoWriter(tmp_path / "v.mp4", height=48, width=80, fps=16)
    writer.write(some_frames(150))
    wait_until(lambda: count_frames(tmp_path / "v.mp4.part") >= 32)
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    with pytest.raises(QvgError, match=r"^ffmpeg stopped after \d+ frames$"):
        write_all(writer, *[some_frames(20)] * 50)
    num_written = writer.num_frames
    writer.finish()
    assert 32 <= count_frames(tmp_path / "v.mp4") == writer.num_frames < num_written


def test_a_disk_that_fills_up_keeps_what_was_written(tmp_path, monkeypatch, capfd):
    # A limit on the file's size stands for the disk's end.
    wrap_ffmpeg(tmp_path, monkeypatch, "trap '' XFSZ; ulimit -f 40")
    writer = VideoWriter(tmp_path / "v.mp4", height=128, width=128, fps=16)
    noise = np.random.default_rng(0).integers(0, 255, (100, 128, 128, 3), np.uint8)
    with pytest.raises(QvgError, match="ffmpeg stopped after"):
        write_all(writer, *[noise] * 10)
    writer.finish()
    assert count_frames(tmp_path / "v.mp4") == writer.num_frames
    assert "File too large" in capfd.readouterr().err


def write_all(writer, *parts):
    for frames in parts:
        writer.write(frames)


def wrap_ffmpeg(folder, monkeypatch, command):
    program = folder / "ffmpeg"
    program.write_text(f'#!/bin/bash\n{command}\nexec {imageio_ffmpeg.get_ffmpeg_exe()} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))


def wait_until(is_true, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_missing_ffmpeg_is_found_before_anything_is_made(monkeypatch):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/nowhere/ffmpeg")
    with pytest.raises(MissingModelError, match=r"^no ffmpeg at /nowhere/ffmpeg$") as caught:
        check_encoder()
    assert caught.value.exit_code == 3
    assert "imageio-ffmpeg" in caught.value.hint


def test_an_ffmpeg_that_is_too_old_is_refused(tmp_path, monkeypatch):
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\necho ffmpeg version 6.0 Copyright\n")
    program.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))
    with pytest.raises(MissingModelError, match=r"^ffmpeg 6\.0 at .* is too old; 7\.1 is needed$"):
        check_encoder()
