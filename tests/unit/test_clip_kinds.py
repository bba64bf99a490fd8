"""Clips as people have them: every container, shape, turn, tone and fault comes out as it is meant."""

import itertools
import os
import re
import subprocess
import time

import imageio_ffmpeg
import numpy as np
import pytest

from qvg_cli.errors import UsageError
from qvg_cli.video.clip import fitted_frames, open_clip, survey_clip
from qvg_cli.video.io import count_frames, read_frames

PICTURES = "testsrc2=s=64x48:r=16:d=1.5"
SOUND = ["-f", "lavfi", "-i", "sine=d=1.5"]


def ffmpeg(*arguments):
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-v", "error", "-y", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True).stdout


def make(path, *arguments, source=PICTURES):
    """A clip of 24 frames, 64 x 48 at 16 a second, unless it is of another source."""
    ffmpeg("-f", "lavfi", "-i", source, *arguments, path)
    return path


def frames_of(path, height=48, width=64, fps=16):
    """All frames as they go to the model; the survey has told their number."""
    frames = np.stack(list(fitted_frames(path, height=height, width=width, fps=fps)))
    assert survey_clip(open_clip(path), fps).num_frames == len(frames)
    return frames


def notes_of(path):
    return survey_clip(open_clip(path), 16).notes


H264 = ("-c:v", "libx264", "-pix_fmt", "yuv420p")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("b-frames.avi", H264),
        ("packed.avi", ("-c:v", "mpeg4", "-bf", "2")),
        ("camera.h264", H264),
        ("camera.hevc", ("-c:v", "libx265", "-x265-params", "log-level=error")),
        ("camera.m2v", ("-c:v", "mpeg2video")),
        ("clip.ogv", ("-c:v", "libtheora")),
        ("clip.webm", ("-c:v", "libvpx-vp9")),
        ("clip.ivf", ("-c:v", "libvpx")),
        ("clip.mkv", H264),
        ("clip.ts", H264),
        ("clip.mpg", ("-c:v", "mpeg2video", "-r", "25")),
        ("clip.wmv", ("-c:v", "wmv2")),
        ("clip.apng", ("-f", "apng")),
        ("clip.y4m", ("-pix_fmt", "yuv420p")),
        ("deep.mp4", ("-c:v", "libx265", "-x265-params", "log-level=error", "-pix_fmt", "yuv420p10le")),
        ("full.mp4", ("-c:v", "libx264", "-pix_fmt", "yuv444p")),
        ("grey.mp4", ("-c:v", "libx264", "-pix_fmt", "gray")),
        ("palette.mov", ("-c:v", "png", "-pix_fmt", "pal8")),
        ("float.mov", ("-c:v", "prores_ks", "-pix_fmt", "yuv422p10le")),
        ("100%d #1 what?.mp4", H264),
        ("concat:a|b.mp4", H264),
        ('it\'s "one".mp4', H264),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_container_gives_all_frames_in_their_order(tmp_path, name, arguments):
    # A bar goes two pixels to the right with every frame.
    bar = "255*between(X,2*N,2*N+8)"
    moving = f"color=black:s=64x48:r=16:d=1.5,format=rgb24,geq=r='{bar}':g='{bar}':b='{bar}'"
    path = make(tmp_path / "source.mkv", "-c:v", "ffv1", source=moving)
    target = tmp_path / name
    ffmpeg("-i", path, *arguments, f"file:{target}")
    frames = frames_of(target)
    assert len(frames) == 24
    assert not notes_of(target)
    places = [int(np.argmax(frame[24, :, 0] > 128)) for frame in frames]
    assert all(after >= before for before, after in itertools.pairwise(places))
    assert places[0] <= 2
    assert 43 <= places[-1] <= 48


def test_a_clip_of_1000_frames_a_second_is_thinned(tmp_path):
    path = make(tmp_path / "fast.mp4", *H264, source="testsrc2=s=64x48:r=1000:d=1")
    assert open_clip(path).fps == 1000
    assert len(frames_of(path)) == 16


@pytest.mark.parametrize("name", ["gaps.mp4", "gaps.mkv", "gaps.ts"])
def test_frames_of_any_length_keep_their_time(tmp_path, name):
    source = "testsrc2=s=64x48:r=30:d=3,select='not(between(n,20,50)+eq(mod(n,7),3))'"
    path = make(tmp_path / name, "-fps_mode", "vfr", *H264, source=source)
    frames = frames_of(path)
    assert 47 <= len(frames) <= 48
    # The gap shows the frame before it.
    assert (frames[12:26] == frames[12]).all()


def test_a_clip_whose_sound_begins_first_begins_with_its_first_frame(tmp_path):
    path = tmp_path / "late.mp4"
    ffmpeg("-itsoffset", "0.5", "-f", "lavfi", "-i", PICTURES, *SOUND, *H264, "-c:a", "aac", path)
    assert len(frames_of(path)) == 24
    assert notes_of(path) == ("its audio is dropped: videos have no sound",)


def test_a_broadcast_whose_clock_is_set_anew_goes_on(tmp_path):
    for number, offset in enumerate((0, 500, 3)):
        make(tmp_path / f"{number}.ts", *H264, "-output_ts_offset", offset)
    path = tmp_path / "all.ts"
    path.write_bytes(b"".join((tmp_path / f"{number}.ts").read_bytes() for number in range(3)))
    assert 70 <= len(frames_of(path)) <= 73


def test_frames_that_change_their_size_are_fitted_each(tmp_path):
    make(tmp_path / "a.ts", "-c:v", "mpeg2video", "-r", "25")
    make(tmp_path / "b.ts", "-c:v", "mpeg2video", "-r", "25", "-output_ts_offset", 1.5, "-s", "128x96")
    path = tmp_path / "all.ts"
    path.write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    assert frames_of(path).shape == (48, 48, 64, 3)


@pytest.mark.parametrize("matrix", ["bt709", "smpte170m"])
def test_ordinary_frames_are_those_that_ffmpeg_gives(tmp_path, matrix):
    tags = f"setparams=color_primaries={matrix}:color_trc={matrix}:colorspace={matrix}:range=tv"
    path = make(tmp_path / "a.mp4", "-vf", f"scale=out_color_matrix={matrix},{tags}", *H264)
    scale = "scale=46:46:force_original_aspect_ratio=increase:flags=lanczos+accurate_rnd+full_chroma_int"
    for fps in (16, 10, 24):
        filters = f"fps={fps},{scale},crop=46:46,format=rgb24"
        raw = ffmpeg("-i", path, "-vf", filters, "-fps_mode", "passthrough", "-f", "rawvideo", "-")
        expected = np.frombuffer(raw, np.uint8).reshape(-1, 46, 46, 3)
        found = frames_of(path, 46, 46, fps)
        assert found.shape == expected.shape
        assert np.abs(found.astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    "pix_fmt", ["yuv420p", "yuvj420p", "yuv444p", "yuv420p10le", "gray", "gbrp", "rgb48le"]
)
def test_a_grey_stays_as_bright(tmp_path, pix_fmt):
    path = make(
        tmp_path / "a.mkv", "-c:v", "ffv1", "-pix_fmt", pix_fmt, source="color=0xB4B4B4:s=64x48:r=16:d=1"
    )
    assert np.abs(frames_of(path).astype(int) - 0xB4).max() <= 1


@pytest.mark.parametrize(
    ("size", "aspect", "shown"),
    [
        ("32x48", "2/1", (48, 64)),
        ("64x24", "1/2", (48, 64)),
        ("720x576", "64/45", (576, 1024)),
        pytest.param("720x480", "8/9", (540, 720), marks=pytest.mark.slow),
        ("64x48", "1/1", (48, 64)),
        ("64x48", "0/1", (48, 64)),
    ],
)
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_circle_stays_a_circle(tmp_path, size, aspect, shown, suffix):
    height, width = shown
    circle = f"geq=lum='if(lte(hypot(X-{width}/2,Y-{height}/2),{height}/4),235,16)':cb=128:cr=128"
    source = (
        f"color=black:s={width}x{height}:r=16:d=0.6,format=yuv444p,{circle},scale={size.replace('x', ':')}"
    )
    path = make(tmp_path / f"a.{suffix}", "-vf", f"setsar={aspect}", *H264, source=source)
    clip = open_clip(path)
    assert (clip.height, clip.width) == shown
    frame = frames_of(path, height, width)[4]
    ys, xs = np.where(frame[..., 0] > 128)
    assert abs(np.ptp(xs) - np.ptp(ys)) <= 2
    assert abs(np.ptp(ys) + 1 - height / 2) <= 2
    said = [note for note in notes_of(path) if "square" in note]
    stretch = aspect.replace("/", ":")
    told = f"pixels of {stretch} made square: {width} x {height}"
    assert said == ([] if aspect in ("1/1", "0/1") else [told])


@pytest.mark.parametrize(
    ("turn", "corner", "shown"),
    [
        ([], (0, 0), (48, 64)),
        (["-display_rotation", "90"], (1, 0), (64, 48)),
        (["-display_rotation", "180"], (1, 1), (48, 64)),
        (["-display_rotation", "270"], (0, 1), (64, 48)),
        (["-display_hflip"], (0, 1), (48, 64)),
        (["-display_vflip"], (1, 0), (48, 64)),
        (["-display_rotation", "90", "-display_hflip"], None, (64, 48)),
        (["-display_rotation", "270", "-display_hflip"], None, (64, 48)),
    ],
)
def test_a_turned_clip_is_upright(tmp_path, turn, corner, shown):
    """The corner that was above on the left is white."""
    source = "color=black:s=64x48:r=16:d=0.6,drawbox=w=16:h=12:c=white:t=fill"
    plain = make(tmp_path / "plain.mp4", *H264, source=source)
    path = tmp_path / "turned.mp4"
    ffmpeg(*turn, "-i", plain, "-c", "copy", path)
    clip = open_clip(path)
    assert (clip.height, clip.width) == shown
    height, width = shown
    frame = frames_of(path, height, width)[0][..., 0]
    (top, left) = np.unravel_index(int(np.argmax(frame[:: height - 1, :: width - 1])), (2, 2))
    if corner is not None:
        assert (top, left) == corner
    # ffmpeg turns a clip upright by itself.
    raw = ffmpeg("-i", path, "-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "gray", "-")
    expected = np.frombuffer(raw, np.uint8).reshape(shown)
    assert np.abs(frame.astype(int) - expected).mean() < 8


def bars(path, transfer):
    """Bars of 75 % with white at 203 cd/m²; ffmpeg's zscale makes them HDR."""
    linear = (
        "scale=out_color_matrix=bt709,setparams=color_primaries=bt709:color_trc=bt709:colorspace=bt709:range=tv,"
        "zscale=t=linear:npl=203,format=gbrpf32le"
    )
    deep = f"zscale=p=bt2020:t={transfer}:m=bt2020nc:r=tv:npl=203,format=yuv444p10le"
    tags = f"log-level=error:lossless=1:colorprim=bt2020:transfer={transfer}:colormatrix=bt2020nc"
    options = ("-vf", f"{linear},{deep}", "-c:v", "libx265", "-x265-params", tags)
    return make(path, *options, source="smptebars=s=224x128:r=16:d=0.6")


def test_pq_comes_out_in_the_colours_of_sdr(tmp_path):
    path = bars(tmp_path / "pq.mp4", "smpte2084")
    frame = frames_of(path, 128, 224)[2]
    expected = [
        (188, 188, 188),
        (190, 188, 0),
        (0, 188, 188),
        (0, 188, 0),
        (188, 0, 188),
        (188, 0, 0),
        (0, 0, 188),
    ]
    found = [frame[20, 16 + 32 * number] for number in range(7)]
    assert np.abs(np.array(found, int) - expected).max() <= 25
    assert np.abs(np.array(found, int) - expected).mean() <= 6
    (note,) = notes_of(path)
    assert note.startswith("HDR (PQ)")
    assert "BT.2390" in note


def test_hlg_keeps_greys_and_hues(tmp_path):
    """zscale has a gamma for each colour where BT.2100 has one for all: only greys are equal."""
    path = bars(tmp_path / "hlg.mp4", "arib-std-b67")
    frame = frames_of(path, 128, 224)[2].astype(int)
    assert np.abs(frame[20, 16] - 188).max() <= 3
    red, green, blue = frame[20, 112]
    assert green > 170
    assert max(red, blue) < 90
    (note,) = notes_of(path)
    assert note.startswith("HDR (HLG)")


def test_wide_colours_of_sdr_are_converted(tmp_path):
    convert = (
        "scale=out_color_matrix=bt709,zscale=min=709:tin=709:pin=709:rin=tv:p=2020:t=2020_10:m=2020_ncl:r=tv"
    )
    tags = "setparams=color_primaries=bt2020:color_trc=bt2020-10:colorspace=bt2020nc:range=tv"
    options = ("-vf", f"{convert},format=yuv444p10le,{tags}", "-c:v", "ffv1")
    path = make(tmp_path / "wide.mkv", *options, source="color=0x20C040:s=64x48:r=16:d=0.6")
    assert np.abs(frames_of(path)[2].astype(int) - (0x20, 0xC0, 0x40)).max() <= 6
    assert notes_of(path) == ("colours of BT2020: converted to BT.709",)


@pytest.mark.parametrize(("first", "is_top"), [("top", 1), ("bottom", 0)])
@pytest.mark.parametrize("suffix", ["mp4", "avi"])
def test_fields_are_not_woven(tmp_path, first, is_top, suffix):
    bar = "if(between(X,mod(N*3,56),mod(N*3,56)+10),255,90)"
    moving = (
        f"color=gray:s=64x48:r=50:d=2,format=rgb24,geq=r='{bar}':g='{bar}':b='{bar}',"
        f"format=yuv444p,tinterlace=interleave_{first}"
    )
    field = "tff" if is_top else "bff"
    codec = ("-c:v", "libx264", "-crf", "8", "-flags", "+ilme+ildct", "-x264opts", f"{field}=1")
    path = make(tmp_path / f"fields.{suffix}", *codec, source=moving)
    frames = frames_of(path, fps=25).astype(int)
    assert len(frames) == 50
    assert np.abs(np.diff(frames[5:45], axis=1)).max(axis=(2, 3)).mean() < 12
    assert notes_of(path) == ("interlaced: deinterlaced",)


ALPHA = {
    "qtrle.mov": ("-c:v", "qtrle"),
    "png.mov": ("-c:v", "png", "-pix_fmt", "rgba"),
    "prores.mov": ("-c:v", "prores_ks", "-pix_fmt", "yuva444p10le"),
    "vp8.webm": ("-c:v", "libvpx", "-pix_fmt", "yuva420p", "-auto-alt-ref", "0"),
    "vp9.webm": ("-c:v", "libvpx-vp9", "-pix_fmt", "yuva420p"),
    "ffv1.mkv": ("-c:v", "ffv1", "-pix_fmt", "yuva420p"),
    "deep.mkv": ("-c:v", "ffv1", "-pix_fmt", "gbrap16le"),
    "picture.apng": ("-f", "apng", "-pix_fmt", "rgba"),
}


@pytest.mark.parametrize("name", ALPHA)
def test_transparent_parts_are_white(tmp_path, name):
    """Red lies under the alpha, and must not come in at the edges of the blue box."""
    inside = "255*between(X,20,43)"
    source = f"color=red:s=64x48:r=16:d=0.6,format=rgba,geq=r='255-{inside}':g=0:b='{inside}':a='{inside}'"
    path = make(tmp_path / name, *ALPHA[name], source=source)
    frame = frames_of(path, 24, 32)[2].astype(int)
    assert np.abs(frame[:, :8] - 255).max() <= 3
    assert np.abs(frame[:, 14:18] - (0, 0, 255)).max() <= 12
    # Between white and blue, red is never more than green by much.
    assert (frame[..., 0] - frame[..., 1]).max() <= (90 if "vp" in name or "yuva420p" in ALPHA[name] else 12)
    assert notes_of(path) == ("its transparent parts are shown on white",)


def test_an_opaque_clip_with_an_alpha_is_told_of_nothing(tmp_path):
    path = make(tmp_path / "opaque.mov", "-c:v", "png", "-pix_fmt", "rgba")
    assert notes_of(path) == ()
    assert notes_of(make(tmp_path / "a.gif")) == ()


def test_the_default_stream_is_taken_and_a_cover_never(tmp_path):
    clip = make(tmp_path / "clip.mp4", *H264, source="color=0x00FF00:s=64x48:r=16:d=1")
    cover = make(tmp_path / "cover.png", "-frames:v", "1", source="color=red:s=640x480")
    with_cover = tmp_path / "with.mp4"
    streams = ("-map", "0", "-map", "1", "-c", "copy", "-disposition:v:0", "attached_pic")
    ffmpeg("-i", cover, "-i", clip, *streams, with_cover)
    assert (open_clip(with_cover).height, open_clip(with_cover).width) == (48, 64)
    assert frames_of(with_cover)[0][20, 20].argmax() == 1
    large = make(tmp_path / "large.mp4", *H264, source="color=blue:s=128x96:r=16:d=1")
    both = tmp_path / "both.mkv"
    streams = ("-map", "0", "-map", "1", "-c", "copy", "-disposition:v:0", "0", "-disposition:v:1", "default")
    ffmpeg("-i", large, "-i", clip, *streams, both)
    assert (open_clip(both).height, open_clip(both).width) == (48, 64)


def test_a_long_header_takes_no_time(tmp_path):
    clip = make(tmp_path / "clip.mp4", *H264)
    chapters = "".join(
        f"[CHAPTER]\nTIMEBASE=1/1000\nSTART={number}\nEND={number + 1}\ntitle=Chapter {number}\n"
        for number in range(5000)
    )
    (tmp_path / "chapters.txt").write_text(f";FFMETADATA1\n{chapters}")
    path = tmp_path / "chapters.mkv"
    ffmpeg("-i", clip, "-i", tmp_path / "chapters.txt", "-map_metadata", 1, "-map", "0:v", "-c", "copy", path)
    start = time.monotonic()
    assert len(frames_of(path)) == 24
    assert time.monotonic() - start < 5


def cut(path, share, name):
    target = path.with_name(name)
    target.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return target


@pytest.mark.parametrize("suffix", ["mkv", "webm", "ts", "avi", "mp4"])
def test_what_is_there_of_a_cut_off_clip_is_used(tmp_path, suffix):
    codec = ("-c:v", "libvpx-vp9") if suffix == "webm" else (*H264, "-g", "16")
    whole = make(
        tmp_path / f"whole.{suffix}", *codec, "-movflags", "+faststart", source="testsrc2=s=64x48:r=16:d=6"
    )
    path = cut(whole, 0.6, f"cut.{suffix}")
    frames, expected = frames_of(path), frames_of(whole)
    assert 24 <= len(frames) <= 75
    assert np.array_equal(frames[:24], expected[:24])
    if suffix != "ts":
        (note,) = notes_of(path)
        assert re.fullmatch(r"truncated: \d\.\d of its \d\.\d seconds can be decoded", note)


def test_damage_in_the_middle_is_told(tmp_path):
    path = make(tmp_path / "a.mp4", *H264, "-g", "8", source="testsrc2=s=64x48:r=16:d=3")
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 2000
    data[start : start + 600] = bytes(600)
    path.write_bytes(data)
    assert len(frames_of(path)) >= 40
    assert notes_of(path) == ("damaged: using what can be decoded",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "cut.mp4",
            "mp4",
            "lacks the index of an MP4 or MOV file, which usually is at its end: it is truncated",
        ),
        ("empty.mp4", b"", "is empty: it has 0 bytes"),
        ("text.mp4", b"no video", "is not a video that can be read"),
        ("moving.webp", "webp", "an animated WebP cannot be decoded"),
        ("sound.mp3", "sound", "it holds no pictures, only audio or text"),
        ("album.mp3", "album", "it holds only audio and a cover picture"),
    ],
)
def test_what_is_no_video_is_told_why(tmp_path, name, content, message):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "mp4":
        cut(make(tmp_path / "whole.mp4", *H264), 0.6, name)
    elif content == "webp":
        make(path, "-loop", "0")
    else:
        ffmpeg(*SOUND, tmp_path / "plain.mp3")
        cover = make(tmp_path / "cover.png", "-frames:v", "1")
        album = ("-i", cover, "-map", "0", "-map", "1", "-disposition:v", "attached_pic")
        ffmpeg("-i", tmp_path / "plain.mp3", *(album if content == "album" else ()), "-c", "copy", path)
    with pytest.raises(UsageError, match=message) as caught:
        open_clip(path)
    assert str(path) in str(caught.value)
    assert "MP4 can be" not in str(caught.value.hint)
    assert count_frames(path) == 0 or content in ("webp",)


def test_a_name_that_is_not_utf_8_is_a_name(tmp_path):
    path = make(tmp_path / "plain.mp4", *H264).rename(tmp_path / os.fsdecode(b"caf\xe9.mp4"))
    assert len(frames_of(path)) == 24


def test_a_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(UsageError, match="is not a file, and a clip is read more than once"):
        open_clip(tmp_path / "pipe.mp4")


def test_reading_may_begin_in_the_middle(tmp_path):
    path = make(tmp_path / "a.mp4", *H264, "-g", "10")
    whole = list(read_frames(path))
    rest = list(read_frames(path, start_seconds=1.0))
    assert len(whole) == 24
    assert len(rest) == 8
    assert np.array_equal(rest[0], whole[16])
