"""Training passes compute what stock inference computes."""

import pytest
import torch

from scripts.pocket.causal import (
    BLOCK_FRAMES,
    TIMESTEPS,
    CachedSelfAttention,
    ClipForward,
    RolloutState,
    build_transformer,
    visible_blocks,
)
from scripts.pocket.vae import build_vae, decode_unclamped, encode_mean, make_fast

BLOCKS, HEIGHT, WIDTH = 9, 4, 6


@pytest.fixture(scope="module")
def transformer():
    torch.manual_seed(0)
    model = build_transformer(num_layers=2, ffn_dim=64, text_dim=32).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model


def test_window_is_the_sink_and_the_newest_blocks():
    assert visible_blocks(0) == []
    assert visible_blocks(1) == [0]
    assert visible_blocks(6) == [0, 1, 2, 3, 4, 5]
    assert visible_blocks(9) == [0, 4, 5, 6, 7, 8]


@torch.no_grad()
@pytest.mark.parametrize("gap", [0, 210])
def test_clip_pass_equals_the_cached_rollout(transformer, gap):
    frames = torch.arange(BLOCKS * BLOCK_FRAMES)
    frames[BLOCK_FRAMES:] += gap
    clean, noisy = torch.randn(2, 2, 16, len(frames), HEIGHT, WIDTH)
    timesteps = torch.tensor(TIMESTEPS)[torch.randint(len(TIMESTEPS), (2, BLOCKS))]
    text = torch.randn(2, 8, 32)
    flow = ClipForward(transformer)(clean, noisy, frames.expand(2, -1), timesteps, text)

    state = RolloutState(frames[:0], HEIGHT // 2, WIDTH // 2, 0, False)
    stock = transformer.attn_processors
    cached = {name: CachedSelfAttention(transformer, state) for name in stock if ".attn1." in name}
    transformer.set_attn_processor({**stock, **cached})
    for block in range(BLOCKS):
        now = slice(block * BLOCK_FRAMES, (block + 1) * BLOCK_FRAMES)
        state.block, state.frames, state.is_commit = block, frames[now], False
        single = transformer(noisy[:, :, now], timesteps[:, block], text, return_dict=False)[0]
        torch.testing.assert_close(single, flow[:, :, now], atol=2e-5, rtol=0)
        state.is_commit = True
        transformer(clean[:, :, now], torch.zeros(2), text)
    transformer.set_attn_processor(stock)


@torch.no_grad()
def test_first_block_of_the_clip_pass_is_the_stock_forward(transformer):
    clean, noisy = torch.randn(2, 1, 16, BLOCK_FRAMES, HEIGHT, WIDTH)
    timesteps, text = torch.tensor([[937.5]]), torch.randn(1, 8, 32)
    flow = ClipForward(transformer)(clean, noisy, torch.arange(BLOCK_FRAMES)[None], timesteps, text)
    stock = transformer(noisy, timesteps[:, 0], text, return_dict=False)[0]
    torch.testing.assert_close(flow, stock, atol=2e-5, rtol=0)


@torch.no_grad()
def test_vae_passes_equal_stock_encode_and_decode():
    vae = build_vae().eval()
    for module in vae.modules():
        if hasattr(module, "gamma"):
            module.gamma.add_(0.3 * torch.randn_like(module.gamma))
    video = torch.rand(1, 3, 13, 16, 24) * 2 - 1
    latents = vae.encode(video).latent_dist.mode()
    decoded = vae.decode(latents).sample
    for _ in range(2):
        torch.testing.assert_close(encode_mean(vae, video), latents, atol=1e-5, rtol=0)
        torch.testing.assert_close(decode_unclamped(vae, latents).clamp(-1, 1), decoded, atol=1e-5, rtol=0)
        make_fast(vae, compiled=False)
    assert build_vae().load_state_dict(vae.state_dict())
