"""Sizes that plans count with are those of the real classes, counted without storage."""

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel

from qvg_cli.config.load import Request
from qvg_cli.models.hyworldplay.model import WalkTransformer
from qvg_cli.models.longcat.layers import TransformerConfig
from qvg_cli.models.longcat.model import LongCatTransformer
from qvg_cli.models.registry import family_of, load_config
from qvg_cli.models.self_forcing.pipeline import SelfForcingTransformer
from qvg_cli.models.wan.checkpoint import dtype_of, is_block_matrix
from scripts.random_models import FULL


def test_a_folder_of_weights_is_counted(tiny_weights):
    sets = [f"model.weights={tiny_weights}", "model.text_tokens=8"]
    config = load_config(Request(backend="self-forcing", sets=sets)).config
    sizes = family_of(config).sizes(config, is_gpu=False)
    folder = tiny_weights / "transformer"
    transformer = WanTransformer3DModel.from_pretrained(folder)
    assert sizes.transformer_bytes == 4 * sum(tensor.numel() for tensor in transformer.parameters())
    assert (sizes.num_layers, sizes.heads, sizes.head_dim) == (2, 1, 64)
    vae = AutoencoderKLWan.from_pretrained(tiny_weights / "vae")
    assert sizes.vae_bytes == 4 * sum(tensor.numel() for tensor in vae.parameters())


@pytest.mark.parametrize("is_gpu", [True, False])
@pytest.mark.parametrize("backend", sorted(FULL))
def test_sizes_of_the_published_models_are_those_of_their_classes(backend, is_gpu):
    config = load_config(Request(backend=backend)).config
    sizes = family_of(config).sizes(config, is_gpu=is_gpu)
    layout = FULL[backend]
    with torch.device("meta"):
        if backend == "longcat":
            model = LongCatTransformer(TransformerConfig.read(layout.transformer, "the layout"))
        else:
            classes = {"hyworldplay": WalkTransformer, "self-forcing": SelfForcingTransformer}
            model = classes[backend](**layout.transformer)
        vae = AutoencoderKLWan(**layout.vae)
    dtype = torch.bfloat16 if is_gpu else torch.float32

    def count(prefix):
        named = [(name, tensor) for name, tensor in model.named_parameters() if name.startswith(prefix)]
        return sum(tensor.numel() * dtype_of(model, name, dtype).itemsize for name, tensor in named)

    assert sizes.transformer_bytes == count("")
    assert sizes.block_bytes == count("blocks.0.")
    matrices = [tensor for name, tensor in model.named_parameters() if is_block_matrix(model, name)]
    assert sizes.matrix_values == sum(tensor.numel() for tensor in matrices)
    assert sizes.num_layers == len(model.blocks)
    assert sizes.vae.values == sum(tensor.numel() for tensor in vae.parameters())
    assert sizes.vae_bytes == sizes.vae.values * dtype.itemsize
