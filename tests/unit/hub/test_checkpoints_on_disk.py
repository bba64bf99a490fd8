"""Checkpoints that a user has already: taken by path, whatever wraps them and whosever names they use."""

import shutil

import pytest
import torch
from diffusers import WanTransformer3DModel
from published import saved
from safetensors.torch import save_file
from typer.testing import CliRunner

from qvg_cli.config.load import Request
from qvg_cli.errors import MissingModelError
from qvg_cli.main import app
from qvg_cli.models.registry import load_config, load_pipeline

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tiny_weights, tmp_path):
    """A weights folder whose transformer is another than that of `generator`."""
    folder = shutil.copytree(tiny_weights, tmp_path / "weights")
    other = WanTransformer3DModel.from_pretrained(folder / "transformer").state_dict()
    save_file({name: tensor + 1 for name, tensor in other.items()}, folder / WEIGHTS)
    return folder


def load(folder, *sets):
    config = load_config(Request(backend="self-forcing", sets=[f"model.weights={folder}", *sets])).config
    return load_pipeline(config, torch.device("cpu"))._models.transformer.state_dict()


def assert_is_the_tiny_one(found, tiny_weights):
    expected = WanTransformer3DModel.from_pretrained(tiny_weights / "transformer").state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "prefix", ["", "model.", "model._fsdp_wrapped_module.", "_orig_mod.model._checkpoint_wrapped_module."]
)
def test_a_pickle_under_published_names(generator, folder, tiny_weights, tmp_path, prefix):
    state = {prefix + name.removeprefix("model."): tensor for name, tensor in generator.items()}
    (tmp_path / "mine.pt").write_bytes(saved({"generator_ema": state, "critic": {}}))
    assert_is_the_tiny_one(load(folder, f"model.checkpoint={tmp_path / 'mine.pt'}"), tiny_weights)


def test_a_file_under_diffusers_names(folder, tiny_weights):
    assert_is_the_tiny_one(load(folder, f"model.checkpoint={tiny_weights / WEIGHTS}"), tiny_weights)


def test_a_pickle_beside_the_parts_of_diffusers(generator, folder, tiny_weights):
    mine = folder / "self_forcing_dmd.pt"
    mine.write_bytes(saved({"generator": generator}))
    # The base model's own transformer is not taken in silence.
    with pytest.raises(MissingModelError, match="more than one transformer: self_forcing_dmd"):
        load(folder)
    assert_is_the_tiny_one(load(folder, f"model.checkpoint={mine}"), tiny_weights)
    (folder / WEIGHTS).unlink()
    assert_is_the_tiny_one(load(folder), tiny_weights)


def test_a_run_says_what_is_wrong_with_it(generator, folder, tmp_path):
    def run(checkpoint):
        sets = ["--set", f"model.weights={folder}", "--set", f"model.checkpoint={checkpoint}"]
        arguments = ["generate", "a", "--backend", "self-forcing", *sets, "--frames", "9", "--device", "cpu"]
        result = CliRunner().invoke(app, [*arguments, "--quiet", "--out", str(tmp_path / "out")])
        assert result.exit_code == 3
        return result.stderr

    assert run("none.pt") == "error: model.checkpoint=none.pt does not exist\n"
    cut = {name: tensor for name, tensor in generator.items() if not name.endswith("head.head.bias")}
    (tmp_path / "cut.pt").write_bytes(saved(cut))
    assert run(tmp_path / "cut.pt") == f"error: tensor proj_out.bias is missing from {tmp_path / 'cut.pt'}\n"
