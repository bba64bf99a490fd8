"""Broken and hostile files: one message that names them, nothing executed, nothing left, no long wait."""

import json
import os
import pickle
import random
import re
import shutil
import struct
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qvg_cli.cache.kv_cache import open_cache
from qvg_cli.cache.snapshot import block_tensors, read_blocks
from qvg_cli.config.load import Request
from qvg_cli.config.yaml_text import parse_yaml
from qvg_cli.errors import QvgError, UsageError
from qvg_cli.models.hyworldplay.trajectory import camera_path
from qvg_cli.models.registry import load_config
from qvg_cli.planning.cache_forecast import CacheShape
from qvg_cli.planning.chunks import ChunkPlan, Geometry
from qvg_cli.planning.prompts import read_jobs, read_schedule

BOMB = "a0: &a0 [x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "expands to more than 200000 values"),
        ("a: &a\n  b: *a\n", "expands to more than 200000 values"),
        ("[" * 20_000, "brackets are nested too deeply"),
        ("{a: " * 20_000, "brackets are nested too deeply"),
        ("seed: " + "9" * 6000, "Exceeds the limit"),
        ("x" * 1_000_001, "the limit is 1000000"),
        ("prompt: \x1b[31m", r"character 9 is U\+001B, a control character"),
        ('prompt: !!python/object/apply:os.system ["touch owned"]', "could not determine a constructor"),
        ("prompt: !!python/name:os.system", "could not determine a constructor"),
        ("? [1, 2]\n: x", "the name of a setting must be text"),
    ],
    ids=lambda value: value[:16],
)
def test_yaml_that_is_more_than_settings(text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        parse_yaml(text, "a.yaml")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_prompt_of_100_000_characters_makes_a_video_and_short_titles(tiny, qvg, tmp_path):
    file = tmp_path / "p.txt"
    file.write_text("red ball " * 11_112)
    result = tiny("--prompts", file, "--frames", 9, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert "the rest is ignored" in result.stderr
    folder = Path(result.stdout.strip()).parent
    assert max(map(len, qvg("show", folder).stdout.splitlines())) < 400
    [heading] = re.findall("<h1>(.*)</h1>", (folder / "report.html").read_text())
    assert len(heading) < 400


class Code:
    """Unpickled, it makes a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def claim_much(path):
    """A header of 2**60 bytes."""
    path.write_bytes(struct.pack("<Q", 2**60) + path.read_bytes()[8:])


def fill_with_nan(path):
    tensors = {name: torch.full_like(tensor, float("nan")) for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
@pytest.mark.parametrize(
    ("damage", "code"), [(cut, 3), (claim_much, 3), (fill_with_nan, 1)], ids=["cut", "claim_much", "nan"]
)
def test_damaged_weights(tiny, tiny_weights, tmp_path, part, damage, code):
    weights = shutil.copytree(tiny_weights, tmp_path / "weights")
    damage(next((weights / part).glob("*.safetensors")))
    out = tmp_path / "out"
    result = tiny("a red ball", "--set", f"model.weights={weights}", "--frames", 21, "--out", out)
    assert result.exit_code == code, result.output
    assert "defect" not in result.stderr
    is_named = re.search(f"cannot (load|read) .*{re.escape(str(weights))}", result.stderr) is not None
    assert is_named == (code == 3)
    assert ("NaN" in result.stderr) == (code == 1)
    assert not list(out.rglob("*.*"))


@pytest.mark.parametrize("name", ["tokenizer/tokenizer.json", "text_encoder/config.json", "vae/config.json"])
@pytest.mark.parametrize("content", ["{", "{}", "[]"])
def test_broken_json_of_weights(tiny, tiny_weights, tmp_path, name, content):
    weights = shutil.copytree(tiny_weights, tmp_path / "weights")
    (weights / name).write_text(content)
    result = tiny("a red ball", "--set", f"model.weights={weights}", "--frames", 9, "--out", tmp_path / "out")
    assert result.exit_code == 3, result.output
    assert "cannot load" in result.stderr


@pytest.mark.parametrize("name", ["x.pt", "transformer/diffusion_pytorch_model.bin", "x.safetensors"])
@pytest.mark.parametrize("is_zip", [True, False])
def test_code_in_a_pickle_is_never_executed(tiny, tiny_weights, tmp_path, name, is_zip):
    weights = shutil.copytree(tiny_weights, tmp_path / "weights")
    next((weights / "transformer").glob("*.safetensors")).unlink()
    owned = tmp_path / "owned"
    content = {"generator": Code(owned)}
    if is_zip:
        torch.save(content, weights / name)
    else:
        (weights / name).write_bytes(pickle.dumps(content))
    result = tiny("a red ball", "--set", f"model.weights={weights}", "--frames", 9, "--out", tmp_path / "out")
    assert result.exit_code == 3, result.output
    assert not owned.exists()


def png_of(height, width):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


@pytest.mark.parametrize(
    "content", [b"", png_of(0, 0), png_of(2**31 - 1, 2**31 - 1), b"PK\x03\x04" * 100, b"GIF89a" + b"\0" * 40]
)
def test_pictures_that_are_none(qvg, tmp_path, content):
    image = tmp_path / "x.png"
    image.write_bytes(content)
    arguments = ("--backend", "hyworldplay", "--image", image, "--out", tmp_path / "out")
    result = qvg("generate", "a", *arguments)
    assert (result.exit_code, "picture" in result.stderr) == (2, True)


def test_a_zip_is_no_video(qvg, tmp_path):
    clip = tmp_path / "x.mp4"
    clip.write_bytes(b"PK\x03\x04" + b"\0" * 1000)
    result = qvg("extend", clip, "a red ball", "--frames", 12, "--out", tmp_path / "out")
    assert (result.exit_code, f"{clip} is not a video that can be read" in result.stderr) == (2, True)


@pytest.mark.parametrize("backend", ["self-forcing", "longcat", "hyworldplay"])
@pytest.mark.parametrize(
    "length", [("--frames", 10**9), ("--seconds", 10**12), ("--set", "video.frames=999999")]
)
def test_endless_videos_are_refused_at_once(qvg, tmp_path, backend, length):
    result = qvg("generate", "a", "--backend", backend, *length, "--out", tmp_path / "out")
    assert (result.exit_code, "defect" in result.stderr) == (2, False), result.stderr


def test_control_characters_of_names_do_not_reach_the_terminal(qvg, tmp_path):
    name = "a\x1b[2J\x07\r.yaml"
    result = qvg("generate", "--config", tmp_path / name)
    assert r"a\x1b[2J\x07\r.yaml: No such file" in result.stderr
    assert not {"\x1b", "\x07", "\r"} & set(result.stderr)
    undecodable = os.fsdecode(b"x\xff.txt")
    assert r"x\udcff.txt: No such file" in qvg("generate", "--prompts", undecodable).stderr


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "..", "a\0b", "\x1b[31m", "con", "x" * 5000])
def test_names_of_jobs_stay_in_the_folder(tiny, tmp_path, name):
    file = tmp_path / "jobs.jsonl"
    file.write_text(json.dumps({"prompt": "a red ball", "name": name}))
    result = tiny("--prompts", file, "--frames", 9, "--out", tmp_path / "out", "--quiet")
    assert result.exit_code == 0, result.stderr
    folder = Path(result.stdout.strip()).parent
    assert folder.resolve().parent == (tmp_path / "out" / "self-forcing").resolve()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["jobs.jsonl", "out"]


FUZZ_ROUNDS = 1500
SEEDS = {
    "yaml": b"backend: self-forcing\nprompt: a ball\nvideo: {height: 128, frames: 21}\n"
    b"cache:\n  preset: int2\n  k: {scheme: fitted, grid: e8}\nsampler:\n  steps: [1000]\n  shift: 5.0\n",
    "jobs": b'{"prompt": "a ball", "seed": 7, "name": "x"}\n{"prompt": "b"}\n',
    "schedule": b'{"prompt": "a", "frame": 0}\n{"prompt": "b", "seconds": 2.5}\n',
    "pose": b"w-8,left-4,a-2.5",
    "path": b'{"0": {"extrinsic": [[1,0,0,0],[0,1,0,0],[0,0,1,0],[0,0,0,1]],'
    b' "K": [[1,0,0],[0,1,0],[0,0,1]]}}',
}


def mutated(chance, content):
    """`content` with bytes changed, taken out, doubled and put in."""
    for _ in range(chance.randint(1, 6)):
        start = chance.randrange(len(content) + 1)
        end = min(len(content), start + chance.randint(0, 12))
        put = chance.choice(
            [
                b"",
                bytes([chance.randrange(256)]),
                content[start:end] * 3,
                b"\xff\xfe",
                b"[",
                b"{",
                b"&a *a",
                b"1e999",
            ]
        )
        content = content[:start] + put + content[end:]
    return content


@pytest.mark.slow
@pytest.mark.parametrize("kind", SEEDS)
def test_fuzzed_files_are_read_or_refused(kind, tmp_path):
    chance = random.Random(kind)
    suffix = {"yaml": ".yaml", "path": ".json"}.get(kind, ".jsonl")
    file = tmp_path / f"fuzz{suffix}"
    num_read = 0
    for _ in range(FUZZ_ROUNDS):
        content = mutated(chance, SEEDS[kind])
        file.write_bytes(content)
        try:
            if kind == "yaml":
                load_config(Request(file=file))
            elif kind == "jobs":
                read_jobs(file)
            elif kind == "schedule":
                read_schedule(file)
            else:
                camera_path(content.decode(errors="replace") if kind == "pose" else str(file))
            num_read += 1
        except QvgError:
            continue
    assert num_read < FUZZ_ROUNDS


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["int2", "int2-qvg", "kivi-int2", "turboquant-int2", "bf16"])
def test_fuzzed_blocks_are_read_or_refused(preset):
    """Bytes of a block whose hash was forged: what cannot be one is refused, no read leaves its tensors."""
    chance = random.Random(preset)
    config = load_config(Request(sets=[f"cache.preset={preset}"])).config.cache
    geometry = Geometry(tokens_per_frame=24, latent_shape=(16, 8, 12), height=64, width=96)

    def cache():
        return open_cache(config, geometry, CacheShape(num_layers=1, heads=2, head_dim=64), seed=1)

    made = cache()
    step = made.begin(ChunkPlan(0, (0, 1), commits=(0, 1)))
    keys = torch.randn(1, 2, 48, 64)
    made.layers[0].commit(keys, -keys, (0, 1), step.commit)
    tensors, about = block_tensors(made, made.plan.blocks)
    num_refused = 0
    for _ in range(FUZZ_ROUNDS // 5):
        name = chance.choice(sorted(tensors))
        changed = dict(tensors)
        tensor = tensors[name].clone()
        how = chance.randrange(4)
        if how == 0:
            raw = tensor.reshape(-1).view(torch.uint8)
            raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
        elif how == 1:
            tensor = tensor.flatten()[: chance.randrange(tensor.numel())].clone()
        elif how == 2:
            tensor = tensor.to(torch.float32)
        else:
            changed.pop(name)
        if how != 3:
            changed[name] = tensor
        try:
            read = read_blocks(changed, about, 0, cache(), [{}], torch.device("cpu"))
        except ValueError:
            num_refused += 1
        else:
            [(block, entries)] = read.items()
            assert block.frames == (0, 1)
            assert len(entries) == 1
    assert num_refused > FUZZ_ROUNDS // 20
