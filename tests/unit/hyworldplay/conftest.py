"""A tiny walk of the real classes: stock VAE and text encoder, random transformer, converted and loaded."""

import shutil

import pytest
import torch

from qvg_cli.config.load import Request
from qvg_cli.config.yaml_text import format_yaml
from qvg_cli.models.hyworldplay.model import WalkTransformer
from qvg_cli.models.registry import find_family, load_config

TRANSFORMER = {
    "num_attention_heads": 2,
    "attention_head_dim": 64,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 16,
    "freq_dim": 32,
    "ffn_dim": 32,
    "num_layers": 2,
}


@pytest.fixture(scope="session")
def walk_weights(tiny_weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny-walk")
    for part in ("vae", "text_encoder", "tokenizer"):
        shutil.copytree(tiny_weights / part, folder / part)
    torch.manual_seed(0)
    torch.save({"generator": WalkTransformer(**TRANSFORMER).state_dict()}, folder / "model.pt")
    family, target = find_family("hyworldplay"), folder / "transformer"
    family.convert_checkpoint(folder / "model.pt", TRANSFORMER, target, "auto")
    return folder


@pytest.fixture(scope="session")
def walk_config(walk_weights):
    """A function: settings as `--set` takes them to a checked configuration of a tiny walk."""
    tiny = {
        "prompt": "red ball",
        "model": {
            "weights": str(walk_weights),
            "text_tokens": 8,
            "latent_channels": 16,
            "spatial_factor": 8,
            "dtype": "float32",
        },
        "video": {"height": 32, "width": 64},
        "sampler": {"steps": [1000, 500]},
        "cache": {"preset": "none"},
        "walk": {"image": None},
    }
    file = walk_weights / "tiny.yaml"
    file.write_text(format_yaml(tiny), encoding="utf-8")
    return lambda *sets: load_config(Request(backend="hyworldplay", file=file, sets=sets)).config
