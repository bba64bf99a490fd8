"""Streaming decode equals `vae.decode` of the whole video, bit for bit."""

import pytest
import torch
from diffusers import AutoencoderKLWan

from qvg_cli.video.vae_stream import StreamingDecoder, to_pixels

CONFIGS = {
    "wan 2.1": {"base_dim": 16, "dim_mult": [1, 2], "temperal_downsample": [True]},
    "pocket": {
        "base_dim": 16,
        "dim_mult": [1, 2, 2],
        "temperal_downsample": [True, True],
        "patch_size": 2,
        "in_channels": 12,
        "out_channels": 12,
    },
    "wan 2.2": {
        "base_dim": 16,
        "dim_mult": [1, 2, 2],
        "temperal_downsample": [False, True],
        "is_residual": True,
        "patch_size": 2,
        "in_channels": 12,
        "out_channels": 12,
    },
}


@pytest.mark.parametrize("chunks", [(1, 2, 2), (3, 2), (5,), (1, 1, 1, 1, 1)])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_chunks_decode_to_the_same_bits_as_the_whole(config, chunks):
    torch.manual_seed(0)
    vae = AutoencoderKLWan(z_dim=16, num_res_blocks=1, attn_scales=[], **config).eval()
    shape = (1, 16, 1, 1, 1)
    latents = torch.randn(1, 16, 5, 4, 6)
    denormalised = latents * torch.tensor(vae.config.latents_std).view(shape) + torch.tensor(
        vae.config.latents_mean
    ).view(shape)
    with torch.no_grad():
        whole = vae.decode(denormalised).sample
    decoder = StreamingDecoder(vae)
    parts = [decoder.decode_float(part) for part in latents.split(chunks, dim=2)]
    assert torch.equal(torch.cat(parts, dim=2), whole)


def test_pixels_are_rounded_not_truncated():
    values = torch.tensor([-1.0, -0.9969, 0.0, 0.9999, 1.0]).view(1, 1, 1, 1, 5).expand(1, 3, 1, 1, 5)
    assert to_pixels(values)[0, 0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]
