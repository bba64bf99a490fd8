"""Published names and sizes, loading with one rounding, and what is said of files that do not fit."""

import json
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import save_file

from qvg_cli.errors import MissingModelError
from qvg_cli.models.longcat.layers import TransformerConfig
from qvg_cli.models.longcat.model import LongCatTransformer, open_longcat
from qvg_cli.models.wan.checkpoint import INDEX_FILE
from qvg_cli.models.wan.lora import Lora

# meituan-longcat/LongCat-Video, dit/config.json
PUBLISHED = {
    "_class_name": "LongCatVideoTransformer3DModel",
    "in_channels": 16,
    "out_channels": 16,
    "hidden_size": 4096,
    "depth": 48,
    "num_heads": 32,
    "caption_channels": 4096,
    "mlp_ratio": 4,
    "adaln_tembed_dim": 512,
    "frequency_embedding_size": 256,
    "patch_size": [1, 2, 2],
    "text_tokens_zero_pad": True,
    "enable_bsa": False,
    "enable_flashattn2": True,
    "cp_split_hw": None,
}
OUTER_SHAPES = {
    "x_embedder.proj.weight": (4096, 16, 1, 2, 2),
    "x_embedder.proj.bias": (4096,),
    "t_embedder.mlp.0.weight": (512, 256),
    "t_embedder.mlp.0.bias": (512,),
    "t_embedder.mlp.2.weight": (512, 512),
    "t_embedder.mlp.2.bias": (512,),
    "y_embedder.y_proj.0.weight": (4096, 4096),
    "y_embedder.y_proj.0.bias": (4096,),
    "y_embedder.y_proj.2.weight": (4096, 4096),
    "y_embedder.y_proj.2.bias": (4096,),
    "final_layer.linear.weight": (64, 4096),
    "final_layer.linear.bias": (64,),
    "final_layer.adaLN_modulation.1.weight": (8192, 512),
    "final_layer.adaLN_modulation.1.bias": (8192,),
}
BLOCK_SHAPES = {
    "adaLN_modulation.1.weight": (24576, 512),
    "adaLN_modulation.1.bias": (24576,),
    "pre_crs_attn_norm.weight": (4096,),
    "pre_crs_attn_norm.bias": (4096,),
    "attn.qkv.weight": (12288, 4096),
    "attn.qkv.bias": (12288,),
    "attn.q_norm.weight": (128,),
    "attn.k_norm.weight": (128,),
    "attn.proj.weight": (4096, 4096),
    "attn.proj.bias": (4096,),
    "cross_attn.q_linear.weight": (4096, 4096),
    "cross_attn.q_linear.bias": (4096,),
    "cross_attn.kv_linear.weight": (8192, 4096),
    "cross_attn.kv_linear.bias": (8192,),
    "cross_attn.proj.weight": (4096, 4096),
    "cross_attn.proj.bias": (4096,),
    "cross_attn.q_norm.weight": (128,),
    "cross_attn.k_norm.weight": (128,),
    "ffn.w1.weight": (11008, 4096),
    "ffn.w2.weight": (4096, 11008),
    "ffn.w3.weight": (11008, 4096),
}
SMALL = TransformerConfig(
    in_channels=4,
    out_channels=4,
    hidden_size=32,
    depth=2,
    num_heads=2,
    caption_channels=8,
    mlp_ratio=4,
    adaln_tembed_dim=8,
    frequency_embedding_size=16,
    patch_size=(1, 2, 2),
    text_tokens_zero_pad=True,
)


def empty_transformer(config):
    with torch.device("meta"):
        return LongCatTransformer(config)


def random_state():
    generator = torch.Generator().manual_seed(1)
    shapes = {name: tensor.shape for name, tensor in empty_transformer(SMALL).state_dict().items()}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def write_model(folder, state):
    (folder / "config.json").write_text(json.dumps(asdict(SMALL)))
    save_file(state, folder / "diffusion_pytorch_model.safetensors")


def adapter_tensors(module, down, ups, factor):
    stem = "lora." + module
    stem = stem.replace(".", "___lorahyphen___")
    blocks = {"lora_up.weight": ups[0]}
    if len(ups) > 1:
        blocks = {f"lora_up.blocks.{index}.weight": up for index, up in enumerate(ups)}
    parts = {"lora_down.weight": down, "alpha_scale": torch.tensor(factor), **blocks}
    return {f"{stem}.{leaf}": tensor for leaf, tensor in parts.items()}


def load(folder, dtype=torch.float32, adapters=()):
    return open_longcat(folder, [Lora(path) for path in adapters]).load(dtype)


def test_published_model_has_the_published_names_shapes_and_size():
    state = empty_transformer(TransformerConfig.read(PUBLISHED, "config.json")).state_dict()
    expected = dict(OUTER_SHAPES)
    for index in range(48):
        expected.update({f"blocks.{index}.{name}": shape for name, shape in BLOCK_SHAPES.items()})
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == expected
    assert len(state) == 1022
    assert sum(tensor.numel() for tensor in state.values()) == 13_581_071_424


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_modulation_and_final_layer_stay_float32(tmp_path, stored):
    write_model(tmp_path, {name: tensor.to(stored) for name, tensor in random_state().items()})
    model = load(tmp_path, torch.bfloat16)
    found = {name for name, tensor in model.state_dict().items() if tensor.dtype == torch.float32}
    expected = {f"blocks.{index}.adaLN_modulation.1" for index in range(SMALL.depth)}
    expected |= {"t_embedder.mlp.0", "t_embedder.mlp.2", "final_layer.linear"}
    expected |= {"final_layer.adaLN_modulation.1"}
    assert found == {f"{module}.{leaf}" for module in expected for leaf in ("weight", "bias")}
    assert model.dtype == torch.bfloat16


def test_adapter_is_added_before_the_weight_is_rounded(tmp_path):
    state = random_state()
    write_model(tmp_path, state)
    down, ups = torch.randn(6, 32), [torch.randn(32, 2) for _ in range(3)]
    path = tmp_path / "adapter" / "lora.safetensors"
    path.parent.mkdir()
    save_file(adapter_tensors("blocks.1.attn.qkv", down, ups, 0.5), path)
    delta = 0.5 * torch.cat([up @ down[2 * index : 2 * index + 2] for index, up in enumerate(ups)])
    expected = (state["blocks.1.attn.qkv.weight"] + delta).bfloat16()
    found = load(tmp_path, torch.bfloat16, [path]).state_dict()
    assert torch.equal(found["blocks.1.attn.qkv.weight"], expected)
    assert torch.equal(found["blocks.0.attn.qkv.weight"], state["blocks.0.attn.qkv.weight"].bfloat16())


def test_adapter_for_a_module_that_the_model_has_not_is_refused(tmp_path):
    write_model(tmp_path, random_state())
    path = tmp_path / "lora" / "other.safetensors"
    path.parent.mkdir()
    save_file(adapter_tensors("blocks.9.attn.proj", torch.ones(2, 32), [torch.ones(32, 2)], 1.0), path)
    with pytest.raises(
        MissingModelError, match=r"is for blocks\.9\.attn\.proj, which the model does not have"
    ):
        load(tmp_path, adapters=[path])


def test_adapter_of_another_size_is_refused(tmp_path):
    write_model(tmp_path, random_state())
    path = tmp_path / "lora" / "other.safetensors"
    path.parent.mkdir()
    save_file(adapter_tensors("blocks.0.attn.proj", torch.ones(2, 16), [torch.ones(32, 2)], 1.0), path)
    with pytest.raises(MissingModelError, match=r"by a matrix of \(32, 16\), the model's is \(32, 32\)"):
        load(tmp_path, adapters=[path])


def test_a_missing_adapter_says_where_it_comes_from(tmp_path):
    write_model(tmp_path, random_state())
    with pytest.raises(MissingModelError, match="no adapter at") as caught:
        Lora(tmp_path / "none.safetensors", hint="fetch it")
    assert caught.value.hint == "fetch it"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.popitem(), "is incomplete: tensors of blocks.0.attn.proj are missing"),
        (lambda tensors: tensors.update({"lora_A.weight": torch.ones(1)}), "unknown tensor lora_A.weight"),
    ],
)
def test_adapter_in_another_format_is_refused(tmp_path, change, message):
    write_model(tmp_path, random_state())
    path = tmp_path / "lora" / "other.safetensors"
    path.parent.mkdir()
    tensors = adapter_tensors("blocks.0.attn.proj", torch.ones(2, 32), [torch.ones(32, 2)], 1.0)
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(MissingModelError, match=message):
        load(tmp_path, adapters=[path])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("blocks.1.ffn.w2.weight"), "tensor blocks.1.ffn.w2.weight is missing from"),
        (lambda state: state.update(extra=torch.ones(1)), "tensor extra in .* is not part of the model"),
        (lambda state: state.update({"final_layer.linear.bias": torch.ones(3)}), r"shape \(3,\), .* \(16,\)"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, change, message):
    state = random_state()
    change(state)
    write_model(tmp_path, state)
    with pytest.raises(MissingModelError, match=message):
        load(tmp_path)


def test_missing_shard_is_named(tmp_path):
    write_model(tmp_path, random_state())
    (tmp_path / INDEX_FILE).write_text(
        json.dumps({"weight_map": {"x_embedder.proj.bias": "part-1.safetensors"}})
    )
    with pytest.raises(MissingModelError, match=r"part-1\.safetensors"):
        load(tmp_path)


def test_truncated_file_is_named(tmp_path):
    write_model(tmp_path, random_state())
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(MissingModelError, match=r"diffusion_pytorch_model\.safetensors"):
        load(tmp_path)


def test_configuration_of_another_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"num_layers": 30}')
    with pytest.raises(
        MissingModelError, match=r"lacks in_channels, .*it is not that of a LongCat-Video model"
    ):
        open_longcat(tmp_path)
