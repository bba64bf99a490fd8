"""The weights that ship load offline with the stock classes and keep their promises of size and form."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors import safe_open
from transformers import AutoTokenizer, UMT5EncoderModel

from qvg_cli.models.longcat.model import open_longcat
from qvg_cli.models.longcat.pipeline import DISTILLED_ADAPTER
from qvg_cli.models.wan.lora import Lora
from scripts.pocket.adapter import MODULES
from scripts.pocket.longcat import CONFIG
from scripts.pocket.prompts import Grammar
from scripts.pocket.text import encode_text
from scripts.pocket.tokenizer import TEXT_LENGTH, build_tokenizer

FOLDER = Path(__file__).resolve().parents[3] / "qvg_cli" / "data" / "pocket"
MAX_BYTES = 26_000_000
MAX_FAMILY_BYTES = 8_000_000
"""Of what each further family adds to the VAE and the text side."""
FAMILIES = {"hyworldplay": ("world",), "longcat": ("dit", "lora")}
ADDED = [part for parts in FAMILIES.values() for part in parts]


def size_of(parts):
    return sum(path.stat().st_size for part in parts for path in part.rglob("*") if path.is_file())


def test_everything_together_is_small():
    everything = size_of([FOLDER])
    assert everything - size_of(FOLDER / part for part in ADDED) <= MAX_BYTES
    for parts in FAMILIES.values():
        assert size_of(FOLDER / part for part in parts) <= MAX_FAMILY_BYTES


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", *ADDED])
def test_tensors_are_finite_bf16(part):
    (path,) = (FOLDER / part).glob("*.safetensors")
    with safe_open(path, "pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118
            tensor = tensors.get_tensor(name)
            assert tensor.dtype == torch.bfloat16, name
            assert tensor.isfinite().all(), name


def test_vae_stores_its_own_latent_statistics():
    vae = AutoencoderKLWan.from_pretrained(FOLDER / "vae")
    assert len(vae.config.latents_mean) == vae.config.z_dim == 16
    assert vae.config.latents_std != AutoencoderKLWan(base_dim=8).config.latents_std
    assert (vae.config.scale_factor_spatial, vae.config.scale_factor_temporal) == (8, 4)


@torch.no_grad()
def test_text_side_feeds_the_transformer():
    transformer = WanTransformer3DModel.from_pretrained(FOLDER / "transformer").eval()
    encoder = UMT5EncoderModel.from_pretrained(FOLDER / "text_encoder").float().eval()
    tokenizer = AutoTokenizer.from_pretrained(FOLDER / "tokenizer")
    assert transformer.config.attention_head_dim == 128
    padded = tokenizer(
        "A red ball bounces", padding="max_length", max_length=TEXT_LENGTH, return_tensors="pt"
    )
    states = encode_text(encoder, padded["input_ids"])
    assert states.shape == (1, TEXT_LENGTH, transformer.config.text_dim)
    assert states[0, 5:].abs().max() == 0
    flow = transformer(torch.randn(1, 16, 3, 8, 8), torch.tensor([1000.0]), states, return_dict=False)[0]
    assert flow.isfinite().all()


def test_shipped_tokenizer_is_the_one_the_grammar_builds():
    shipped, built = AutoTokenizer.from_pretrained(FOLDER / "tokenizer"), build_tokenizer(Grammar.load())
    prompt = "At dusk a Tiny purple gem hops, the camera orbits; dragons?"
    assert shipped(prompt)["input_ids"] == built(prompt)["input_ids"]


def test_longcat_loads_with_its_adapter():
    plain = open_longcat(FOLDER / "dit")
    assert plain.load().config == CONFIG
    checkpoint = open_longcat(FOLDER / "dit", [Lora(FOLDER / DISTILLED_ADAPTER)])
    models = [each.load().state_dict() for each in (plain, checkpoint)]
    changed = {name for name, tensor in models[0].items() if not torch.equal(tensor, models[1][name])}
    blocks = range(CONFIG.depth)
    assert changed == {f"blocks.{index}.{module}.weight" for index in blocks for module in MODULES}
