"""Clips of any kind as frames of one size and rate, and the joint to what comes after them."""

import numpy as np
import pytest
import torch

from qvg_cli.errors import UsageError
from qvg_cli.models.seam import FADE_FRAMES, Seam
from qvg_cli.video.clip import fitted_frames, open_clip, survey_clip
from qvg_cli.video.io import VideoWriter


def write(path, frames, fps):
    with VideoWriter(path, height=frames.shape[1], width=frames.shape[2], fps=fps) as writer:
        writer.write(frames)
    return path


def test_a_clip_that_fits_keeps_its_frames_and_tones(tmp_path):
    levels = np.arange(20, 220, 10)
    frames = np.broadcast_to(levels[:, None, None, None], (20, 32, 48, 3)).astype(np.uint8)
    clip = open_clip(write(tmp_path / "a.mp4", frames, 16))
    assert (clip.height, clip.width, clip.fps, clip.share_kept(32, 48)) == (32, 48, 16, 1)
    read = np.stack(list(fitted_frames(clip.path, height=32, width=48, fps=16)))
    assert len(read) == survey_clip(clip, 16).num_frames == 20
    # The usual conversion to RGB would be a level darker.
    assert abs((read.astype(float) - frames).mean()) < 0.5


@pytest.mark.parametrize(("fps", "count"), [(8, 10), (16, 20), (32, 40), (15, 19)])
def test_frames_are_left_out_or_shown_twice(tmp_path, fps, count):
    frames = np.zeros((20, 32, 32, 3), np.uint8)
    assert survey_clip(open_clip(write(tmp_path / "a.mp4", frames, 16)), fps).num_frames == count


def test_the_middle_is_kept(tmp_path):
    frames = np.zeros((4, 32, 96, 3), np.uint8)
    frames[:, :, 32:64] = 200
    clip = open_clip(write(tmp_path / "a.mp4", frames, 16))
    assert clip.share_kept(32, 32) == pytest.approx(1 / 3)
    (first, *_) = fitted_frames(clip.path, height=64, width=64, fps=16)
    assert first[:, 8:-8].min() > 180


def test_a_playlist_opens_no_connection(tmp_path):
    playlist = tmp_path / "list.m3u8"
    playlist.write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises(UsageError, match="is not a video that can be read"):
        open_clip(playlist)


def test_tones_fade_and_edges_stay_out():
    shown, rendered = torch.zeros(1, 3, 32, 32), torch.full((1, 3, 32, 32), 0.18)
    # An edge as fine as a pixel has no mean.
    shown[..., ::2] += 0.1
    shown[..., 1::2] -= 0.1
    faded = Seam(shown, rendered).fade(torch.zeros(1, 3, 12, 32, 32))
    expected = [-0.18 * (1 - place / (FADE_FRAMES + 1)) for place in range(1, FADE_FRAMES + 1)] + [0] * 4
    torch.testing.assert_close(faded[0, 0, :, 5, 7], torch.tensor(expected), atol=1e-6, rtol=0)
    parts = Seam(shown, rendered)
    pieces = [parts.fade(torch.zeros(1, 3, count, 32, 32)) for count in (5, 4, 3)]
    assert torch.equal(torch.cat(pieces, dim=2), faded)
