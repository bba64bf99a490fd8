"""A weights folder for this family: random, one head of 64, two layers, text and VAE of the tiny model."""

import json
import shutil
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import save_file

from qvg_cli.models.longcat.layers import TransformerConfig
from qvg_cli.models.longcat.model import LongCatTransformer

CONFIG = TransformerConfig(
    in_channels=16,
    out_channels=16,
    hidden_size=64,
    depth=2,
    num_heads=1,
    caption_channels=16,
    mlp_ratio=1,
    adaln_tembed_dim=8,
    frequency_embedding_size=16,
    patch_size=(1, 2, 2),
    text_tokens_zero_pad=True,
)


@pytest.fixture(scope="session")
def longcat_weights(tiny_weights, tmp_path_factory):
    generator = torch.Generator().manual_seed(2)

    def random(*shape):
        return 0.2 * torch.randn(shape, generator=generator)

    folder = tmp_path_factory.mktemp("longcat")
    for part in ("vae", "tokenizer", "text_encoder"):
        shutil.copytree(tiny_weights / part, folder / part)
    (folder / "dit").mkdir()
    (folder / "dit" / "config.json").write_text(json.dumps(asdict(CONFIG)))
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in LongCatTransformer(CONFIG).state_dict().items()}
    save_file({name: random(*shape) for name, shape in shapes.items()}, folder / "dit" / "model.safetensors")
    (folder / "lora").mkdir()
    stem = "lora___lorahyphen___blocks___lorahyphen___1___lorahyphen___attn___lorahyphen___proj"
    adapter = {"lora_down.weight": random(4, 64), "lora_up.weight": random(64, 4)}
    adapter["alpha_scale"] = torch.tensor(0.5)
    save_file(
        {f"{stem}.{leaf}": tensor for leaf, tensor in adapter.items()},
        folder / "lora" / "cfg_step_lora.safetensors",
    )
    return folder
