"""A folder's hash is over every byte; what is remembered of a large file goes with the file."""

import os

import pytest

from qvg_cli.runs import identity
from qvg_cli.runs.identity import hash_folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two files, of which the second counts as large."""
    monkeypatch.setenv("QVG_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(identity, "_REMEMBERED_BYTES", 100)
    folder = tmp_path / "weights"
    (folder / "vae").mkdir(parents=True)
    (folder / "config.json").write_bytes(b"{}")
    (folder / "vae" / "model.safetensors").write_bytes(bytes(1000))
    return folder


@pytest.fixture
def hashes(tmp_path):
    return lambda: sorted((tmp_path / "home" / "hashes").glob("*"))


def test_a_changed_byte_a_name_and_a_new_file_change_it(folder):
    seen = [hash_folder(folder)]
    assert hash_folder(folder) == seen[0]
    large = folder / "vae" / "model.safetensors"
    with large.open("r+b") as stream:
        stream.seek(500)
        stream.write(b"x")
    seen.append(hash_folder(folder))
    large.rename(folder / "vae" / "other.safetensors")
    seen.append(hash_folder(folder))
    (folder / "empty").touch()
    seen.append(hash_folder(folder))
    assert len(set(seen)) == 4


def test_it_does_not_depend_on_the_place(folder, tmp_path):
    linked = tmp_path / "linked"
    (linked / "vae").mkdir(parents=True)
    for name in ("config.json", "vae/model.safetensors"):
        (linked / name).symlink_to(folder / name)
    assert hash_folder(linked) == hash_folder(folder)


def test_large_files_are_read_once(folder, hashes, monkeypatch):
    expected = hash_folder(folder)
    assert len(hashes()) == 1
    (folder / "config.json").unlink()
    small = hash_folder(folder)
    monkeypatch.setattr(identity, "sha256", lambda path: pytest.fail(f"{path} was read again"))
    assert hash_folder(folder) == small != expected


def test_a_change_of_the_same_size_and_time_is_seen(folder):
    large = folder / "vae" / "model.safetensors"
    before, facts = hash_folder(folder), large.stat()
    large.write_bytes(b"x" * 1000)
    os.utime(large, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert hash_folder(folder) != before


@pytest.mark.parametrize("content", [b"", b"abc", b"\xff" * 64])
def test_what_is_remembered_wrongly_is_read_again(folder, hashes, content):
    expected = hash_folder(folder)
    [remembered] = hashes()
    remembered.write_bytes(content)
    assert hash_folder(folder) == expected
    assert len(remembered.read_text()) == 64


def test_a_home_that_cannot_be_written_does_no_harm(folder, tmp_path):
    (tmp_path / "home").write_text("a file")
    assert hash_folder(folder) == hash_folder(folder)
