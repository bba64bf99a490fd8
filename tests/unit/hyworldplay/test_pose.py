"""Pose texts and trajectory files: what is wrong is named, with its place."""

import json

import numpy as np
import pytest

from qvg_cli.errors import UsageError
from qvg_cli.models.hyworldplay.pose import Command, parse_pose
from qvg_cli.models.hyworldplay.trajectory import camera_path


def test_spaces_and_a_last_comma_are_ignored():
    assert parse_pose(" w - 8 ,, right-4, ").commands == (Command("w", 8), Command("right", 4))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("w-8,jump-3", "character 5: unknown move 'jump'"),
        ("w-8, W-3", "character 6: unknown move 'W'"),
        ("w-8,a", "character 5: 'a' has no length"),
        ("w-8,a-", "character 7: 'a-' has no length"),
        ("w-8,a- x", "character 8: 'x' is not a number of latent frames"),
        ("w--3", "character 3: '-3' is not a number"),
        ("w-3-4", "character 3: '3-4' is not a number"),
        ("w-1_0", "character 3: '1_0' is not a number"),
        ("w-٣", "character 3: '٣' is not a number"),
        ("w-inf", "character 3: 'inf' is not a number"),
        (" , ", "holds no move"),
        ("w-99999999999999999999", "latent frames, the longest path has"),
    ],
)
def test_mistakes_are_named_with_their_place(text, message):
    with pytest.raises(UsageError, match=message):
        parse_pose(text)


def test_the_nearest_move_is_offered():
    with pytest.raises(UsageError) as caught:
        parse_pose("rihgt-4")
    assert caught.value.hint.startswith("nearest: right;")


@pytest.mark.parametrize(
    ("text", "frames", "note"),
    [
        ("right-2.7", 2, "'right-2.7' in the pose is taken as 2 whole latent frames"),
        ("right-0.5", 0, "'right-0.5' in the pose moves nothing: it lasts less than a latent frame"),
        ("w-0", 0, "'w-0' in the pose moves nothing: it lasts less than a latent frame"),
    ],
)
def test_what_the_original_drops_silently_is_noted(text, frames, note):
    pose = parse_pose(text)
    assert pose.commands[0].frames == frames
    assert pose.notes == (note,)
    assert camera_path(text).notes == (note,)


def entry(**changes):
    return {
        "extrinsic": np.eye(4).tolist(),
        "K": [[900.0, 0, 960], [0, 900.0, 540], [0, 0, 1]],
        **changes,
    }


def test_trajectory_entries_are_taken_by_number_not_by_their_order(tmp_path):
    forward = np.eye(4)
    forward[2, 3] = 0.08
    file = tmp_path / "path.json"
    file.write_text(json.dumps({"1": entry(extrinsic=forward.tolist()), "0": entry()}))
    assert camera_path(str(file)).actions == (0, 9)


MIRROR = np.diag([-1.0, 1, 1, 1]).tolist()
SHEAR = [[1, 0.1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
TRANSPOSED = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0.5, 1]]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "has no entries"),
        ({}, "has no entries"),
        ({"0": entry(), "2": entry()}, "has 2 entries but none named '1'"),
        ({"0": {"K": entry()["K"]}}, "entry '0': extrinsic is missing"),
        ({"0": entry(extrinsic=[[1.0]])}, "entry '0': extrinsic is not a 4x4 matrix"),
        ({"0": entry(extrinsic=MIRROR)}, "entry '0': extrinsic mirrors the picture"),
        (
            {"0": entry(extrinsic=SHEAR)},
            "entry '0': the rotation of extrinsic is off by 0.1 from orthonormal",
        ),
        (
            {"0": entry(extrinsic=TRANSPOSED)},
            r"entry '0': the last row of extrinsic is \[0.0, 0.0, 0.5, 1.0\]",
        ),
        ({"0": entry(K=[[0, 0, 1], [0, 1, 1], [0, 0, 1]])}, "entry '0': fx=0 of K is not positive"),
    ],
)
def test_wrong_trajectory_files_are_refused_by_entry(tmp_path, entries, message):
    file = tmp_path / "path.json"
    file.write_text(json.dumps(entries))
    with pytest.raises(UsageError, match=message):
        camera_path(str(file))


def test_files_that_are_no_trajectory(tmp_path):
    with pytest.raises(UsageError, match="cannot read the trajectory"):
        camera_path(str(tmp_path / "none.json"))
    file = tmp_path / "broken.json"
    file.write_text("{")
    with pytest.raises(UsageError, match="is not JSON"):
        camera_path(str(file))


def test_the_camera_stands_still_after_the_end_of_its_path():
    path = camera_path("w-2").take(5)
    assert path.actions == (0, 9, 9, 0, 0)
    assert (path.viewmats[2:] == path.viewmats[2]).all()


@pytest.mark.parametrize("name", ["path.json", "PATH.JSON"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_trajectory_is_read_whatever_editor_wrote_it(tmp_path, name, mark):
    lens = [[970, 0, 960], [0, 970, 540], [0, 0, 1]]
    step = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0.08], [0, 0, 0, 1]]
    file = tmp_path / name
    file.write_bytes(mark + json.dumps({"0": {"extrinsic": step, "K": lens}}).encode())
    assert camera_path(str(file)).viewmats[0, 2, 3] == pytest.approx(-0.08)


def test_a_trajectory_in_another_encoding_is_told(tmp_path):
    file = tmp_path / "path.json"
    file.write_bytes("{}".encode("utf-16"))
    with pytest.raises(UsageError, match=r"cannot read the trajectory .*: it is not UTF-8 text"):
        camera_path(str(file))
