"""Prompt embeddings on disk: read without the encoder, never those of another prompt, encoder or dtype."""

import os
import shutil

import pytest
import torch

from qvg_cli.config.load import Request
from qvg_cli.errors import MissingModelError
from qvg_cli.models.hyworldplay.model import WalkTransformer
from qvg_cli.models.registry import load_config, load_pipeline
from qvg_cli.models.text import PromptEncoder, PromptWarning
from scripts.random_models import TINY

CPU = torch.device("cpu")
LONG = "red ball " * 20


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("QVG_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def weights(tiny_weights, tmp_path):
    for part in ("tokenizer", "text_encoder"):
        shutil.copytree(tiny_weights / part, tmp_path / "weights" / part)
    return tmp_path / "weights"


def kept(home):
    return sorted(path.name for path in (home / "text").iterdir())


def break_encoder(weights):
    """The file keeps its size and time, so that only who reads it sees that it is broken."""
    file = weights / "text_encoder" / "model.safetensors"
    facts = file.stat()
    file.write_bytes(bytes(facts.st_size))
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def test_a_known_prompt_needs_no_encoder(weights, home):
    first = PromptEncoder(weights, 8, CPU, torch.float32)
    states = first.encode("red ball")
    break_encoder(weights)
    again = PromptEncoder(weights, 8, CPU, torch.float32)
    assert torch.equal(again.encode(" red  ball "), states)
    assert states.shape[1] == 8
    with pytest.raises(MissingModelError, match="cannot load the text encoder"):
        again.encode("a ball")
    assert len(kept(home)) == 1


def test_what_decides_the_states_decides_the_file(weights, home):
    for num_tokens, dtype in ((8, torch.float32), (12, torch.float32), (8, torch.bfloat16)):
        encoder = PromptEncoder(weights, num_tokens, CPU, dtype)
        encoder.prepare(["red ball", "ball", "red ball"])
        assert encoder.encode("ball").dtype == dtype
    assert len(kept(home)) == 6
    os.utime(weights / "text_encoder" / "model.safetensors")
    PromptEncoder(weights, 8, CPU, torch.float32).prepare(["ball"])
    assert len(kept(home)) == 7


def test_a_prompt_that_was_cut_is_said_to_be_again(weights, home):
    for _ in range(2):
        with pytest.warns(PromptWarning, match="the model reads only 8: the rest is ignored"):
            PromptEncoder(weights, 8, CPU, torch.float32).encode(LONG)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-3], lambda data: data[:-1] + b"\xff", lambda data: b""]
)
def test_a_broken_file_is_made_again(weights, home, damage):
    states = PromptEncoder(weights, 8, CPU, torch.float32).encode("red ball")
    (file,) = (home / "text").iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert torch.equal(PromptEncoder(weights, 8, CPU, torch.float32).encode("red ball"), states)
    break_encoder(weights)
    assert torch.equal(PromptEncoder(weights, 8, CPU, torch.float32).encode("red ball"), states)


def test_a_home_that_cannot_be_written_costs_a_warning(weights, home):
    home.write_text("a file where the folder would be")
    with pytest.warns(PromptWarning, match="the encoder is loaded again next time"):
        PromptEncoder(weights, 8, CPU, torch.float32).encode("red ball")


def test_every_backend_keeps_the_text_of_its_prompts(tiny_weights, home, tmp_path):
    walk_weights = shutil.copytree(tiny_weights, tmp_path / "walk")
    WalkTransformer(**TINY["hyworldplay"].transformer).save_pretrained(walk_weights / "transformer")
    for backend, folder in (("self-forcing", tiny_weights), ("hyworldplay", walk_weights)):
        shutil.rmtree(home, ignore_errors=True)
        sets = [f"model.weights={folder}", "model.text_tokens=8"]
        config = load_config(Request(backend=backend, sets=sets)).config
        load_pipeline(config, CPU).encode_prompt("red ball")
        assert len(kept(home)) == 1
    shutil.rmtree(home)
    # Reading its encoder takes little, but importing what it needs does not.
    load_pipeline(load_config(Request()).config, CPU).encode_prompt("a red ball")
    assert len(kept(home)) == 1
