"""Streaming decode equals `vae.decode` of the whole video, bit for bit where frames pass together."""

import pytest
import torch
from diffusers import AutoencoderKLWan

from qvg_cli.models import vae as vae_stream
from qvg_cli.models.vae import StreamingDecoder, send_pixels

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


def decode_whole(config):
    """Random latents, a decoder for them, and what `vae.decode` makes of them."""
    torch.manual_seed(0)
    vae = AutoencoderKLWan(z_dim=16, num_res_blocks=1, attn_scales=[], **config).eval()
    shape = (1, 16, 1, 1, 1)
    latents = torch.randn(1, 16, 5, 4, 6)
    denormalised = latents * torch.tensor(vae.config.latents_std).view(shape) + torch.tensor(
        vae.config.latents_mean
    ).view(shape)
    with torch.no_grad():
        return latents, StreamingDecoder(vae), vae.decode(denormalised).sample


@pytest.mark.parametrize("chunks", [(1, 2, 2), (3, 2), (5,), (1, 1, 1, 1, 1)])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_chunks_decode_to_the_same_bits_as_the_whole(config, chunks):
    latents, decoder, whole = decode_whole(config)
    parts = [decoder.decode_float(part) for part in latents.split(chunks, dim=2)]
    assert torch.equal(torch.cat(parts, dim=2), whole)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_large_frames_pass_the_last_blocks_one_by_one(config, monkeypatch):
    monkeypatch.setattr(vae_stream, "PASS_PIXELS", 1)
    latents, decoder, whole = decode_whole(config)
    seen = []
    last = decoder._vae.decoder.norm_out
    last.register_forward_pre_hook(lambda _, states: seen.append(states[0].shape[2]))
    # The convolutions may sum in another order.
    torch.testing.assert_close(decoder.decode_float(latents), whole, rtol=0, atol=1e-5)
    assert seen == [1] * whole.shape[2]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_what_lies_out_of_reach_need_not_be_decoded_again(config, monkeypatch):
    torch.manual_seed(0)
    vae = AutoencoderKLWan(z_dim=16, num_res_blocks=1, attn_scales=[], **config).eval()
    num_convolutions = len(StreamingDecoder(vae)._features)
    latents = torch.randn(1, 16, 2 * num_convolutions + 6, 2, 2)
    whole, late = StreamingDecoder(vae), StreamingDecoder(vae)
    whole.decode_float(latents[:, :, :-2])
    decoded = []
    decode_float = StreamingDecoder.decode_float
    monkeypatch.setattr(
        StreamingDecoder, "decode_float", lambda self, part: decoded.append(1) or decode_float(self, part)
    )
    late.skip((), latents[:, :, :-2], 0)
    assert len(decoded) < latents.shape[2] - 2
    assert torch.equal(late.decode_float(latents[:, :, -2:]), whole.decode_float(latents[:, :, -2:]))


def test_pixels_are_rounded_not_truncated():
    values = torch.tensor([-1.0, -0.9969, 0.0, 0.9999, 1.0]).view(1, 1, 1, 1, 5).expand(1, 3, 1, 1, 5)
    assert send_pixels(values).wait()[0, 0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]


@pytest.mark.gpu
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_decoding_beside_the_model_gives_the_same_pixels(config):
    torch.manual_seed(0)
    vae = AutoencoderKLWan(z_dim=16, num_res_blocks=1, attn_scales=[], **config).eval().cuda()
    after, beside = StreamingDecoder(vae), StreamingDecoder(vae, is_beside=True)
    for decoder in (after, beside):
        # A resume begins so; what is remembered then must outlive the stream that the model uses.
        decoder.skip((), torch.ones(1, 16, 2, 32, 48, device="cuda"), 0)
    for _ in range(3):
        latents = torch.randn(1, 16, 3, 32, 48, device="cuda")
        expected = after.decode(latents)
        parts = list(beside.decode_each(latents))
        # What the model does meanwhile, in memory that has just been given back.
        del latents
        for _ in range(50):
            torch.full((1, 16, 3, 32, 48), float("nan"), device="cuda").sin_()
        assert all(part.is_beside for part in parts)
        assert torch.equal(torch.cat([part.wait() for part in parts], dim=1), expected)
        assert all(part.seconds > 0 for part in parts)
