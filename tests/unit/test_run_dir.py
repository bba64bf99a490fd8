"""Run folders: never written over, no path out of them, no half file."""

import pytest

from qvg_cli.errors import QvgError, UsageError
from qvg_cli.files import (
    IDENTITY,
    RunDir,
    drop_state,
    find_states,
    remove_folder,
    run_name,
    slug,
    write_whole,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A red ball bounces!", "a-red-ball-bounces"),
        ("../../etc/passwd", "etc-passwd"),
        ("C:\\x\0y|z", "c-x-y-z"),
        ("Über Ärger", "uber-arger"),
        ("-.-", ""),
        ("猫", ""),
        ("x" * 200, "x" * 48),
        (
            "one two three four five six seven eight nine ten eleven",
            "one-two-three-four-five-six-seven-eight-nine-ten",
        ),
    ],
)
def test_slug(text, expected):
    assert slug(text) == expected


def test_a_prompt_without_letters_still_gets_a_name():
    assert run_name("猫", 3) == "video-seed3"


def test_folders_are_numbered_and_never_reused(tmp_path):
    paths = [RunDir.create(tmp_path, "self-forcing", "a").path for _ in range(3)]
    assert paths == [tmp_path / "self-forcing" / name for name in ("a", "a-2", "a-3")]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UsageError, match=r"^cannot write to .*/file/self-forcing: Not a directory$"
    ) as caught:
        RunDir.create(tmp_path / "file", "self-forcing", "a")
    assert caught.value.hint == "use another folder with --out"


def test_a_state_whose_removal_is_cut_off_is_still_found(tmp_path, monkeypatch):
    state = tmp_path / "state"
    state.mkdir()
    for number in range(20):
        (state / f"{number:05}.json").write_text("")
    (state / IDENTITY).write_text("{}")
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda *arguments, **options: None)
        remove_folder(state)
    (found,) = find_states(tmp_path)
    assert [path.name for path in found.iterdir()] == [IDENTITY]
    drop_state(found)
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_the_old_file_and_no_part(tmp_path):
    path = tmp_path / "f"
    path.write_text("old")

    def write(part):
        part.write_text("ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(QvgError, match=f"^cannot write {path}: No space left on device$"):
        write_whole(path, write)
    assert [file.name for file in tmp_path.iterdir()] == ["f"]
    assert path.read_text() == "old"
