"""Published checkpoints: the generator is found whatever it is wrapped in, code in a pickle never runs."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qvg_cli.errors import MissingModelError
from qvg_cli.models.wan.checkpoint import read_published

STATE = {"model.head.head.bias": torch.arange(4.0), "model.head.modulation": torch.ones(1, 2, 2)}


@pytest.mark.parametrize(
    "content",
    [
        {"generator_ema": STATE, "generator": {"x": torch.zeros(1)}, "critic": {}},
        {"generator": STATE},
        STATE,
    ],
    ids=["averaged", "raw", "bare"],
)
def test_the_generator_is_found(tmp_path, content):
    torch.save(content, tmp_path / "model.pt")
    found = read_published(tmp_path / "model.pt")
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[name], STATE[name]) for name in STATE)


def test_safetensors_are_read(tmp_path):
    save_file(STATE, tmp_path / "model.safetensors")
    assert read_published(tmp_path / "model.safetensors").keys() == STATE.keys()


class Payload:
    """Unpickling this would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_checkpoint_is_refused_and_never_runs(tmp_path):
    torch.save({"generator_ema": {"x": Payload(tmp_path / "ran")}}, tmp_path / "model.pt")
    with pytest.raises(MissingModelError, match="contains more than tensors"):
        read_published(tmp_path / "model.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_a_truncated_file_is_refused(tmp_path, name):
    whole = tmp_path / "whole"
    torch.save(STATE, whole) if name.endswith(".pt") else save_file(STATE, whole)
    (tmp_path / name).write_bytes(whole.read_bytes()[:-40])
    with pytest.raises(MissingModelError, match=f"cannot read .*{name}"):
        read_published(tmp_path / name)


def test_a_checkpoint_without_a_generator_names_what_it_has(tmp_path):
    torch.save({"critic": {"x": torch.zeros(1)}}, tmp_path / "model.pt")
    with pytest.raises(MissingModelError, match="no generator") as caught:
        read_published(tmp_path / "model.pt")
    assert "critic" in caught.value.hint
