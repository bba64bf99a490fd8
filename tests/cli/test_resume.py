"""Runs that were cut off go on: the same frames, whatever was lost on the way, or a reason why not."""

import json
import shutil
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from qvg_cli.config.load import Request
from qvg_cli.engine import engine
from qvg_cli.errors import QvgError
from qvg_cli.files import sha256
from qvg_cli.main import app
from qvg_cli.models.registry import load_config
from qvg_cli.runs.checkpoint import Checkpoint, ChunkRecord, StoredFile, read_identity
from qvg_cli.runs.identity import differences, identify, other_versions
from qvg_cli.runs.run import Run
from qvg_cli.video.io import read_frames

OLD_RUN = Path(__file__).parents[1] / "data" / "run-0.1"
CHUNKS, CUT_AFTER = 6, 4
# A window, spans of two chunks and a chunk that stays: every kind of entry is alive at the cut.
LENGTH = ["--frames", "69", "--set", "sampler.window=15", "--set", "sampler.sink=3"]
LENGTH += ["--set", "cache.span_tokens=48", "--set", "cache.keep_recent_chunks=1", "--cache", "int2-qvg"]


@pytest.fixture(scope="module", autouse=True)
def _load_once():
    """The model is the same for all runs here."""
    load = engine.load_pipeline
    loaded = {}

    def load_once(config, device):
        key = config.model_dump_json(exclude={"seed", "prompt", "video"})
        return loaded.setdefault(key, None) or loaded.update({key: load(config, device)}) or loaded[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "load_pipeline", load_once)
        yield


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """The folder of an uninterrupted run."""
    result = tiny("a red ball", *LENGTH, "--out", tmp_path_factory.mktemp("whole"), "--json")
    assert result.exit_code == 0, result.stderr
    return Path(json.loads(result.stdout)["folder"])


@pytest.fixture(scope="module")
def cut_off(tiny, tmp_path_factory):
    """The folder of the same run after four of its six chunks, as kill -9 leaves it."""
    add = Run.add

    def add_then_die(self, result):
        # What is in hand when the next chunk comes is whole then.
        add(self, result)
        if len(self.summary.records) == CUT_AFTER + 1:
            self._wait()
            shutil.copytree(self.folder.path, folder)
            for path in (folder / "state").glob(f"{CUT_AFTER:05}.*"):
                path.unlink()
            raise QvgError("cut off")

    folder = tmp_path_factory.mktemp("cut-off") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "add", add_then_die)
        assert tiny("a red ball", *LENGTH, "--out", folder.parent / "out").exit_code == 1
    (folder / "state" / "lock").unlink()
    return folder


@pytest.fixture
def run(cut_off, tmp_path):
    """A copy of that folder."""
    return Path(shutil.copytree(cut_off, tmp_path / "run"))


def resume(folder, *arguments):
    return CliRunner().invoke(app, ["generate", "--resume", str(folder), *map(str, arguments)])


def assert_same(folder, whole):
    latents = [load_file(run / "latents.safetensors")["latents"] for run in (folder, whole)]
    assert latents[0].equal(latents[1])
    for one, other in zip(*(read_frames(run / "video.mp4") for run in (folder, whole)), strict=True):
        assert np.array_equal(one, other)
    reports = [json.loads((run / "memory.json").read_text()) for run in (folder, whole)]
    for key in ("status", "peak", "end", "chunks", "pixel_frames"):
        assert reports[0][key] == reports[1][key]
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in whole.iterdir())


def test_a_run_goes_on_where_it_was_cut_off(run, whole):
    assert not (run / "video.mp4").exists()
    shown = CliRunner().invoke(app, ["show", str(run)])
    assert (shown.exit_code, f"qvg generate --resume {run}" in shown.output) == (0, True)
    result = resume(run)
    assert result.exit_code == 0, result.stderr
    assert f"resuming after chunk {CUT_AFTER} of {CHUNKS}\nchunk {CUT_AFTER + 1}/{CHUNKS}: " in result.stderr
    assert_same(run, whole)
    assert json.loads((run / "memory.json").read_text())["resumed_after"] == CUT_AFTER
    again = resume(run)
    assert (again.exit_code, again.stdout) == (0, f"{run}/video.mp4\n")
    assert again.stderr == f"the run in {run} is already complete; nothing to resume\n"


def cut_in_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


def swap(path):
    """Another chunk's file of the same kind, whole in itself."""
    shutil.copy(path.with_name(path.name.replace("00003", "00002")), path)


KINDS = ["json", "latents.safetensors", "cache.safetensors", "mp4"]
BREAKAGES = [(damage, kind) for damage in (cut_in_half, Path.unlink) for kind in KINDS]
BREAKAGES += [(damage, kind) for damage in (flip_a_bit, swap) for kind in KINDS[:2]]


QUICK = {(flip_a_bit, "latents.safetensors"), (cut_in_half, "mp4"), (Path.unlink, "cache.safetensors")}
QUICK |= {(swap, "json"), (Path.unlink, "json")}


@pytest.mark.parametrize(
    ("damage", "kind"),
    [pytest.param(*each, marks=() if each in QUICK else pytest.mark.slow) for each in BREAKAGES],
    ids=[f"{damage.__name__}-{kind}" for damage, kind in BREAKAGES],
)
def test_what_is_damaged_is_made_again(run, whole, damage, kind):
    damage(run / "state" / f"00003.{kind}")
    result = resume(run)
    assert result.exit_code == 0, result.stderr
    is_history = kind == "cache.safetensors"
    if is_history:
        assert ": rebuilding the KV cache" in result.stderr
    elif (damage, kind) != (Path.unlink, "json"):
        assert ": chunk 4 " in result.stderr
    assert f"resuming after chunk {4 if is_history else 3} of 6" in result.stderr
    assert_same(run, whole)


def test_damage_further_back_costs_what_was_built_on_it(run, whole):
    flip_a_bit(run / "state" / "00000.latents.safetensors")
    result = resume(run)
    assert "00000.latents.safetensors has changed since it was written: chunk 1 and those" in result.stderr
    assert f"chunk 1/{CHUNKS}: " in result.stderr
    assert_same(run, whole)


def test_a_forged_history_is_not_read(run, whole):
    """Hashes that fit, tensors that do not: what a codec cannot read is made again."""
    path = run / "state" / "00003.cache.safetensors"
    tensors = {name: tensor.flatten()[:3].clone() for name, tensor in load_file(path).items()}
    save_file(tensors, path)
    record = run / "state" / "00003.json"
    text = json.loads(json.loads(record.read_text())["record"])
    forged = StoredFile(size=path.stat().st_size, sha256=sha256(path))
    text["files"]["cache.safetensors"] = forged.model_dump()
    state = Checkpoint.open(run / "state", read_identity(run / "state"), pytest.fail)
    state.commit(ChunkRecord.model_validate_json(json.dumps(text)))
    state.close()
    result = resume(run)
    assert "the KV cache of chunk 4 does not fit" in result.stderr
    assert_same(run, whole)


@pytest.mark.parametrize("damage", [cut_in_half, empty, Path.unlink], ids=lambda damage: damage.__name__)
def test_a_run_that_cannot_be_told_from_others_is_refused(run, damage):
    damage(run / "state" / "identity.json")
    before = sorted((run / "state").iterdir())
    result = resume(run)
    assert result.exit_code == 2
    assert "identity.json cannot be read, so the run cannot be resumed" in result.stderr
    assert f"generate it again with --config {run}/run.yaml" in result.stderr
    assert sorted({*(run / "state").iterdir()} - {run / "state" / "lock"}) == before


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--seed", "4"], "seed was 0 and is 4"),
        (["--cache", "int2"], "cache.preset was 'int2-qvg' and is 'int2'"),
        (["--frames", "81"], "video.frames was 18 and is 21"),
        (["a red red ball"], "prompt was 'a red ball' and is 'a red red ball'"),
    ],
)
def test_another_configuration_is_refused_with_the_reason(run, arguments, reason):
    result = resume(run, *arguments)
    assert result.exit_code == 2
    assert f"error: cannot resume the run in {run}: " in result.stderr
    assert reason in result.stderr


def test_other_weights_are_refused(cut_off, tiny_weights, tmp_path):
    weights = shutil.copytree(tiny_weights, tmp_path / "weights")
    run = shutil.copytree(cut_off, tmp_path / "run")
    text = (run / "run.yaml").read_text()
    (run / "run.yaml").write_text(text.replace(str(tiny_weights), str(weights)))
    assert "model.weights was " in resume(run).stderr
    identity = run / "state" / "identity.json"
    identity.write_text(identity.read_text().replace(str(tiny_weights), str(weights)))
    # In the middle, where neither the size nor a header tells.
    path = next((weights / "transformer").glob("*.safetensors"))
    with path.open("r+b") as stream:
        stream.seek(path.stat().st_size // 2)
        stream.write(b"xxxx")
    result = resume(run)
    assert (result.exit_code, "the weights have changed" in result.stderr) == (2, True)


def test_other_versions_and_another_gpu_are_named(run):
    begun = read_identity(run / "state")
    assert {"qvg", "python", "torch", "diffusers"} < begun.versions.keys()
    begun = begun.model_copy(update={"versions": {"torch": "2.8", "numpy": "2.0", "gpu": "NVIDIA L4"}})
    now = begun.model_copy(update={"versions": {"torch": "2.9", "numpy": "2.0", "gpu": "NVIDIA H200"}})
    assert other_versions(begun, now) == ["torch 2.8 then, 2.9 now", "gpu NVIDIA L4 then, NVIDIA H200 now"]
    assert differences(begun, now) == []


def test_only_one_process_works_on_a_run(run):
    state = Checkpoint.open(run / "state", read_identity(run / "state"), print)
    result = resume(run)
    assert (result.exit_code, result.stderr.splitlines()[0]) == (
        1,
        f"error: another qvg process is working on {run}",
    )
    state.close()


def test_what_is_no_unfinished_run_is_refused(whole, tmp_path):
    result = resume(tmp_path)
    assert (result.exit_code, "it has no run.yaml" in result.stderr) == (2, True)
    bare = shutil.copytree(whole, tmp_path / "bare")
    (bare / "memory.json").unlink()
    assert "has no checkpoint to resume from" in resume(bare).stderr
    assert "--prompts and --resume were both given" in resume(bare, "--prompts", "p.txt").stderr


def test_a_video_that_cannot_be_joined_is_joined_later(tiny, whole, tmp_path, monkeypatch):
    # A limit on the file's size, above that of a part, stands for a full disk.
    limit = max(path.stat().st_size for path in whole.glob("video.mp4")) // 2048
    program = tmp_path / "ffmpeg"
    encoder = imageio_ffmpeg.get_ffmpeg_exe()
    program.write_text(f"#!/bin/bash\ntrap '' XFSZ; ulimit -f {limit}\nexec {encoder} \"$@\"\n")
    program.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("IMAGEIO_FFMPEG_EXE", str(program))
        result = tiny("a red ball", *LENGTH, "--out", tmp_path / "out", "--json")
    assert result.exit_code == 1
    made = json.loads(result.stdout)
    folder = Path(made["folder"])
    assert made["status"] == "failed"
    assert f"cannot write {folder}/video.mp4: ffmpeg failed" in result.stderr
    assert f"resume with: qvg generate --resume {folder}" in result.stderr
    # Nothing reads the history any more.
    assert not list((folder / "state").glob("*.cache.safetensors"))
    assert resume(folder).exit_code == 0
    assert_same(folder, whole)


def test_a_run_of_version_0_1_goes_on(tmp_path):
    """Two chunks of three, as commit 5abd6e7 left them, and the latents that it made without a cut."""
    run = Path(shutil.copytree(OLD_RUN, tmp_path / "run"))
    result = resume(run)
    assert result.exit_code == 0, result.stderr
    assert "resuming after chunk 2 of 3" in result.stderr
    latents = load_file(run / "latents.safetensors")["latents"].float()
    expected = load_file(run / "whole.safetensors")["latents"].float()
    assert latents[:, :, :6].equal(expected[:, :, :6])
    assert (latents - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize(
    ("setting", "reasons"),
    [
        ("memory.vae=parked", []),
        ("memory.transformer=streamed", []),
        ("memory.weights=fp8", ["memory.weights was 'model' and is 'fp8'"]),
    ],
)
def test_a_run_may_go_on_with_its_parts_held_elsewhere(run, setting, reasons):
    config = load_config(Request(file=run / "run.yaml", sets=[setting])).config
    assert differences(read_identity(run / "state"), identify(config, "cpu")) == reasons
