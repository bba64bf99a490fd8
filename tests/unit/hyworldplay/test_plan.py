"""Plans of the HY-WorldPlay family, as tables of frame ids, and refusals of requests that do not fit."""

import subprocess
import sys

import pytest
from PIL import Image

from qvg_cli.errors import UsageError
from qvg_cli.models.registry import plan_video


def ids(*chunks: int) -> tuple[int, ...]:
    return tuple(frame for chunk in chunks for frame in range(4 * chunk, 4 * chunk + 4))


def chunks_of(config):
    return plan_video(config).chunks


def test_append_passes_the_history_and_keeps_what_is_new(walk_config):
    chunks = chunks_of(walk_config("walk.pose=w-11"))
    assert [chunk.makes for chunk in chunks] == [ids(0), ids(1), ids(2)]
    assert [chunk.prefill for chunk in chunks] == [(), ids(0), ids(0, 1)]
    assert [chunk.reads for chunk in chunks] == [(), ids(0), ids(0, 1)]
    assert [chunk.prefill_commits for chunk in chunks] == [(), (ids(0),), (ids(1),)]
    assert not any(chunk.commits for chunk in chunks)
    assert not any(chunk.evicts for chunk in chunks)


def test_rebuild_replaces_what_it_read(walk_config):
    chunks = chunks_of(walk_config("walk.pose=w-11", "sampler.context=rebuild"))
    assert [chunk.kept for chunk in chunks] == [chunk.prefill for chunk in chunks]
    assert not any(chunk.commits for chunk in chunks)
    assert [chunk.evicts for chunk in chunks] == [(), (), ids(0)]


def test_incremental_passes_the_finished_chunk_alone(walk_config):
    chunks = chunks_of(walk_config("walk.pose=w-11", "sampler.context=incremental"))
    assert not any(chunk.prefill for chunk in chunks)
    assert [chunk.reads for chunk in chunks] == [(), ids(0), ids(0, 1)]
    assert [chunk.commits for chunk in chunks] == [ids(0), ids(1), ()]


@pytest.mark.parametrize("context", ["append", "incremental"])
def test_a_window_bounds_what_is_read_and_drops_what_no_chunk_reads_again(walk_config, context):
    chunks = chunks_of(walk_config("walk.pose=w-99", f"sampler.context={context}", "sampler.window=20"))
    assert max(len(chunk.reads) for chunk in chunks) == 16
    cached: set[int] = set()
    for chunk in chunks:
        cached -= set(chunk.evicts)
        assert set(chunk.reads) <= cached.union(*chunk.prefill_commits)
        assert set(chunk.prefill) in (set(), set(chunk.reads))
        cached |= set(chunk.kept)
    assert len(cached) < 40


def test_the_camera_coming_back_recalls_what_it_saw(walk_config):
    chunks = chunks_of(walk_config("walk.pose=right-20,left-20", "sampler.window=20"))
    assert chunks[-1].reads == ids(0, 6, 7, 8)


@pytest.mark.parametrize(("pose", "frames"), [("w-8,a-8", 16), ("w-7", 8), ("w-10", 8)], ids=str)
def test_the_pose_gives_the_length(walk_config, pose, frames):
    assert plan_video(walk_config(f"walk.pose={pose}")).num_frames == frames


def test_a_pose_can_be_held_to_the_end(walk_config):
    held = plan_video(walk_config("walk.pose=w-2", "walk.pad_pose=hold"))
    assert held.num_frames == 4
    assert held.notes == ("the camera path ends at latent frame 3; its last pose is held",)
    longer = plan_video(walk_config("walk.pose=w-7", "walk.pad_pose=hold", "video.frames=12"))
    assert longer.num_frames == 12


@pytest.mark.parametrize(
    ("pose", "note"),
    [
        ("w-9", "of the pose's latent frames 0 to 9, 8 to 9 are after the end of the video"),
        ("w-10", "of the pose's latent frames 0 to 10, 8 to 10 are after the end of the video"),
    ],
)
def test_unused_frames_are_named(walk_config, pose, note):
    assert plan_video(walk_config(f"walk.pose={pose}")).notes == (note,)


@pytest.mark.parametrize("pose", ["w-7", "w-8", "w-4,a-4"])
def test_a_plain_walk_needs_no_word(walk_config, pose):
    assert plan_video(walk_config(f"walk.pose={pose}")).notes == ()


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (
            ["walk.pose=w-7", "video.frames=12"],
            r"gives 8 camera poses .* 12 latent frames \(45 pixel frames\); it is",
        ),
        (
            ["walk.pose=w-7", "video.frames=13"],
            r"gives 8 camera poses .* 13 latent frames .* it is enough for 8",
        ),
        (["walk.pose=w-2"], "too short: it gives 3 camera poses with its start, .*; a chunk has 4"),
        (["video.frames=10"], r"10 latent frames .* do not fit chunks of 4; nearest: 8 .*, 12 latent frames"),
        (["video.height=40"], "height 40 is not a multiple of 16; nearest: 32, 48"),
        (["sampler.sink=3"], "unknown setting sampler.sink"),
        (["sampler.independent_first_frame=true"], "unknown setting sampler.independent_first_frame"),
        (["sampler.frames_per_chunk=3"], "this model makes chunks of 4"),
        (["sampler.recall=3"], "sampler.recall=3 is not a multiple of 4"),
        (["sampler.window=8"], "sampler.window=8 does not fit: with 4 recalled frames it is 12, 16, ..."),
        (["sampler.window=18"], "sampler.window=18 does not fit"),
        (
            ["sampler.context=rebuild", "cache.keep_sink=true"],
            "cache.keep_sink=True would leave a context that is rebuilt",
        ),
        (["sampler.context=rebuild", "cache.span_tokens=33"], "cache.span_tokens=33 .* largest: 32"),
        (["walk.pose=w-8,jmp-3"], "character 5: unknown move 'jmp'"),
        (["walk.image=/nowhere.png"], "cannot read the picture /nowhere.png"),
        (["sampler.context=all"], "sampler.context='all'"),
        (["walk.angle=3"], "unknown setting walk.angle"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_requests_that_do_not_fit_are_refused(walk_config, sets, message):
    with pytest.raises(UsageError, match=message):
        plan_video(walk_config(*sets))


def test_the_built_in_picture_is_named(walk_config):
    (note,) = plan_video(walk_config("walk.pose=w-7", "walk.image=park")).notes
    assert note.startswith("starting from the built-in picture 'park'; --image FILE uses another one")


def test_what_is_cut_off_a_picture_is_told(walk_config, tmp_path):
    Image.new("RGB", (90, 160)).save(tmp_path / "portrait.png")
    config = walk_config("walk.pose=w-7", f"walk.image={tmp_path / 'portrait.png'}")
    (note,) = plan_video(config).notes
    width, height = config.video.width, config.video.height
    cut = 1 - (90 / 160) / (width / height)
    assert note == (
        f"{tmp_path / 'portrait.png'}, 90 x 160, fills the first frame, {width} x {height}; "
        f"{cut:.0%} of it is cropped"
    )


def test_the_picture_is_checked_while_planning(walk_config, tmp_path):
    Image.new("RGB", (3, 3)).save(tmp_path / "picture.png")
    assert plan_video(walk_config(f"walk.image={tmp_path / 'picture.png'}")).num_frames == 16
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(UsageError, match="is not a picture"):
        plan_video(walk_config(f"walk.image={tmp_path / 'text.png'}"))


def test_planning_needs_no_torch():
    code = (
        "import qvg_cli.models.hyworldplay.plan, sys;"
        "print([name for name in ('torch', 'diffusers') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
