"""Comparisons that are not fair, or make no sense, are refused with the reason before anything is loaded."""

import json
import shutil
from pathlib import Path

import pytest


def assert_refused(result, message, hint=None):
    expected = f"error: {message}\n" + (f"\nhint: {hint}\n" if hint else "")
    assert (result.exit_code, result.stderr, result.stdout) == (2, expected, "")


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["bf16"], "give at least two presets or runs to compare", "e.g. qvg compare bf16 int2"),
        (
            ["bf16", "int2qvg-pro"],
            "unknown cache preset 'int2qvg-pro'",
            ...,
        ),
        (["bf16", "results/x"], "no folder results/x", "use folders of runs, or presets"),
        (["bf16", "."], "bf16 is a preset and . a folder", "use presets only, or folders only"),
        (
            [".", ".", "--seconds", "3"],
            "--seconds has no effect on finished runs",
            "omit it, or compare presets instead of folders",
        ),
        (
            [".", "."],
            ". is not the folder of a run: it has no memory.json",
            "use the folder that contains video.mp4, e.g. results/self-forcing/NAME",
        ),
        (
            ["bf16", "int2", "--prompt", "a ball", "--prompts", "p.txt"],
            "--prompt and --prompts were both given",
            "put the prompt in the file",
        ),
        (["bf16", "int2", "--seeds", "0"], "--seeds 0 is not a number of videos", "use 1 or more"),
        (
            ["bf16", "int2", "--set", "cache.preset=int4"],
            "--set cache.preset=int4 cannot change the cache in a comparison",
            "list the preset as an argument instead",
        ),
        (
            ["bf16", "int2", "--seconds", "1", "--frames", "9"],
            "--seconds and --frames were both given",
            "use one of them",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_usage(qvg, tmp_path, monkeypatch, arguments, message, hint):
    monkeypatch.chdir(tmp_path)
    result = qvg("compare", *arguments)
    if hint is ...:
        hint = result.stderr.partition("hint: ")[2].removesuffix("\n")
        assert hint.startswith("nearest: int2-qvg-pro; known: bf16, ")
    assert_refused(result, message, hint)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def copy_run(finished, tmp_path):
    """A function that copies the finished run and changes texts in one of its files."""

    def copy(name, file=None, old="", new=""):
        folder = tmp_path / name
        shutil.copytree(Path(finished[1]["folder"]), folder)
        if file is not None:
            text = (folder / file).read_text()
            assert old in text
            (folder / file).write_text(text.replace(old, new))
        return folder

    return copy


@pytest.mark.parametrize(
    ("old", "new", "difference"),
    [
        ("seed: 5", "seed: 6", "seed: 5 in {first}, 6 in {second}"),
        ("prompt: a red", "prompt: a big", "prompt: 'a red ball' in {first}, 'a big ball' in {second}"),
        ("height: 32", "height: 64", "video.height: 32 in {first}, 64 in {second}"),
        ("frames: 9", "frames: 12", "video.frames: 9 in {first}, 12 in {second}"),
        ("shift: 5.0", "shift: 4.0", "sampler.shift: 5.0 in {first}, 4.0 in {second}"),
    ],
)  # fmt: skip
def test_runs_that_differ_in_more_than_the_cache(qvg, copy_run, tmp_path, old, new, difference):
    first, second = copy_run("first"), copy_run("second", "run.yaml", old, new)
    result = qvg("compare", first, second, "--out", tmp_path / "out")
    told = difference.format(first=first, second=second)
    assert_refused(
        result,
        f"the runs differ in {told}",
        "runs can be compared if they differ in the cache only",
    )
    assert not (tmp_path / "out").exists()


def test_a_run_that_was_stopped(qvg, copy_run):
    stopped = copy_run("stopped", "memory.json", '"status": "complete"', '"status": "interrupted"')
    assert_refused(
        qvg("compare", copy_run("whole"), stopped),
        f"the run in {stopped} is interrupted",
        "generate it again",
    )


def test_a_run_without_latents(qvg, copy_run):
    bare = copy_run("bare")
    (bare / "latents.safetensors").unlink()
    assert_refused(
        qvg("compare", bare, bare), f"{bare} has no latents.safetensors, from which its frames are decoded"
    )


def test_broken_latents(qvg, copy_run, tmp_path):
    broken = copy_run("broken")
    (broken / "latents.safetensors").write_bytes(b"x" * 100)
    result = qvg("compare", copy_run("whole"), broken, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert f"error: cannot read {broken}/latents.safetensors: " in result.stderr
    assert not list((tmp_path / "out" / "compare").iterdir())


def test_a_comparison_is_not_a_run(qvg, copy_run, tmp_path):
    figures = json.loads((copy_run("run") / "memory.json").read_text())
    (tmp_path / "compare.json").write_text(json.dumps({**figures, "compared": "", "arms": [], "videos": []}))
    assert_refused(
        qvg("compare", tmp_path, tmp_path), f"{tmp_path} is a comparison", "use the folders of its runs"
    )
