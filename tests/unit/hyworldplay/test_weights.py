"""Published names load strictly, and the converted files hold the same numbers."""

import json

import pytest
import torch

from qvg_cli.errors import MissingModelError
from qvg_cli.models.hyworldplay.model import WalkTransformer
from qvg_cli.models.wan.checkpoint import (
    INDEX_FILE,
    Checkpoint,
    convert_checkpoint,
    model_name,
    open_wan,
    read_folder,
)
from scripts.random_models import FULL

CONFIG = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 8,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 2,
    "rope_max_seq_len": 32,
}


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return WalkTransformer(**CONFIG).state_dict()


def test_the_published_model_has_the_known_size():
    with torch.device("meta"):
        tensors = WalkTransformer(**FULL["hyworldplay"].transformer).state_dict()
    assert len(tensors) == 889
    assert sum(tensor.numel() for tensor in tensors.values()) == 5_293_225_152


@pytest.mark.parametrize(
    "prefix", ["", "model.", "_fsdp_wrapped_module.", "model._orig_mod._checkpoint_wrapped_module."]
)
def test_names_load_with_the_prefixes_of_training(state, prefix):
    inner = {name.replace("blocks.1.", "blocks.1._fsdp_wrapped_module."): name for name in state}
    assert all(model_name(prefix + published, state) == name for published, name in inner.items())


def test_missing_unknown_and_misshaped_tensors_are_named(state):
    lacking = {name: tensor for name, tensor in state.items() if name != "blocks.1.attn1.to_out_prope.0.bias"}
    cases = [
        (lacking, r"tensor blocks.1.attn1.to_out_prope.0.bias is missing"),
        (
            {**state, "model.extra.weight": torch.zeros(1)},
            "extra.weight in here is not part of the model",
        ),
        (
            {**state, "proj_out.bias": torch.zeros(1)},
            r"proj_out.bias in here has shape \(1,\), the model needs \(16,\)",
        ),
    ]
    for broken, message in cases:
        with pytest.raises(MissingModelError, match=message):
            Checkpoint(lambda: WalkTransformer(**CONFIG), broken, "here")


def test_a_converted_checkpoint_holds_the_generator_in_bf16(state, tmp_path):
    published = {f"model._fsdp_wrapped_module.{name}": tensor for name, tensor in state.items()}
    other = {name: torch.zeros_like(tensor) for name, tensor in published.items()}
    torch.save({"generator": published, "generator_ema": other}, tmp_path / "model.pt")
    folder = tmp_path / "transformer"
    convert(tmp_path / "model.pt", folder, part_bytes=20_000)
    parts = list((tmp_path / "transformer").glob("*.safetensors"))
    assert len(parts) > 1
    assert max(part.stat().st_size for part in parts) < 30_000

    loaded = open_wan(WalkTransformer, folder).load(torch.bfloat16).state_dict()
    assert loaded.keys() == state.keys()
    kept = [name for name, tensor in loaded.items() if tensor.dtype == torch.float32]
    assert {"scale_shift_table", "condition_embedder.action_embedder.linear_1.weight"} <= set(kept)
    assert "blocks.0.attn1.to_out_prope.0.weight" not in kept
    for name, tensor in loaded.items():
        assert torch.equal(tensor, state[name].to(tensor.dtype)), name

    # diffusers reads the folder too, and so does an index of 0.1, which says nothing of itself.
    stock = WalkTransformer.from_pretrained(folder, torch_dtype=torch.bfloat16).state_dict()
    assert stock.keys() == loaded.keys()
    assert all(stock[n].dtype == t.dtype and torch.equal(stock[n], t) for n, t in loaded.items())
    index = json.loads((folder / INDEX_FILE).read_text())
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": index["weight_map"]}))
    assert read_folder(folder).keys() == state.keys()


def convert(source, folder, **options):
    convert_checkpoint(WalkTransformer, source, CONFIG, folder, generators=("generator",), **options)


@pytest.mark.parametrize("content", [b"", b"no pickle", None])
def test_what_is_no_checkpoint_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(MissingModelError, match=r"cannot read .*model\.pt"):
        convert(tmp_path / "model.pt", tmp_path / "transformer")


def test_a_checkpoint_without_a_generator_is_refused(tmp_path, state):
    torch.save({"generator_ema": state}, tmp_path / "model.pt")
    with pytest.raises(MissingModelError, match=r"model\.pt has no generator"):
        convert(tmp_path / "model.pt", tmp_path / "transformer")


def test_a_folder_that_is_not_whole_is_refused(tmp_path):
    with pytest.raises(MissingModelError, match=r"cannot read .*config\.json"):
        open_wan(WalkTransformer, tmp_path)


def test_a_config_of_another_model_is_refused(state):
    with pytest.raises(
        MissingModelError, match=r"config.json does not describe this transformer: .*num_experts"
    ):
        Checkpoint(lambda: WalkTransformer(**CONFIG, num_experts=8), state, "here")
