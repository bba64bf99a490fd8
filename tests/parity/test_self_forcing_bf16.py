"""The Self-Forcing transformer in bf16 at its real width, against itself in float32.

What is left is 0.5 to 0.7 percent. Timesteps rounded to bf16 make it 20 percent, rounded positions 1.3: the
frames are the model's last, and frame 1,019 has no bf16 number.
"""

import pytest
import torch
from diffusers import WanTransformer3DModel

from qvg_cli.cache.kv_cache import open_cache
from qvg_cli.config.schema import CacheConfig
from qvg_cli.models.self_forcing.config import BlockSamplerConfig
from qvg_cli.models.self_forcing.pipeline import SelfForcingDenoiser, SelfForcingTransformer
from qvg_cli.models.wan.checkpoint import Checkpoint
from qvg_cli.planning.cache_forecast import CacheShape
from qvg_cli.planning.chunks import ChunkPlan, VideoPlan
from qvg_kernels.spec import NoneSpec

BOUND = 1e-2
SAMPLER = BlockSamplerConfig(steps=(1000, 750, 500, 250), shift=5.0, frames_per_chunk=3)
HISTORY, MADE = (1017, 1018, 1019), (1020, 1021, 1022)
"""The last positions of the model."""
PLAN = VideoPlan(
    chunks=(
        ChunkPlan(0, (), prefill=HISTORY, prefill_commits=(HISTORY,)),
        ChunkPlan(1, MADE, reads=HISTORY),
    ),
    tokens_per_frame=16,
    latent_shape=(16, 8, 8),
    height=64,
    width=64,
)


@pytest.fixture(scope="module")
def state():
    """Weights of two blocks that keep the size of what passes."""
    with torch.device("meta"):
        model = WanTransformer3DModel(**LAYOUT)
    generator = torch.Generator().manual_seed(0)

    def draw(name, shape):
        if len(shape) == 1:
            return torch.ones(shape) if "norm" in name and name.endswith("weight") else torch.zeros(shape)
        fan_in = shape[-1] if "scale_shift_table" in name else shape[1:].numel()
        return torch.randn(shape, generator=generator) * fan_in**-0.5

    return {name: draw(name, tensor.shape) for name, tensor in model.state_dict().items()}


LAYOUT = {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "num_layers": 2}


def build(state, dtype):
    return Checkpoint(lambda: SelfForcingTransformer(**LAYOUT), state, "random weights").load(dtype)


def make(state, dtype):
    """Every flow of one chunk after another that is in the cache, and its latents."""
    model = build(state, dtype)
    generator = torch.Generator().manual_seed(1)
    text = torch.randn(1, 8, 4096, generator=generator)
    given, *noise = (torch.randn(1, 16, 3, 8, 8, generator=generator).to(dtype) for _ in range(5))
    cache = open_cache(
        CacheConfig(preset="none", k=NoneSpec(), v=NoneSpec()),
        PLAN,
        CacheShape(2, 12, 128),
        seed=0,
    )
    denoiser = SelfForcingDenoiser(model, cache, text.to(dtype), SAMPLER)
    flows = []
    hook = model.register_forward_hook(lambda *call: flows.append(call[2][0].float()))
    past, chunk = PLAN.chunks
    step = cache.begin(past)
    denoiser.update_cache(past, HISTORY, given, step.prefill)
    cache.begin(chunk)
    draws = iter(noise)
    latents = denoiser.denoise(chunk, lambda: next(draws), lambda: None)
    hook.remove()
    return [*flows, latents.float()]


def test_bf16_is_close_to_float32(state):
    exact, rounded = (make(state, dtype) for dtype in (torch.float32, torch.bfloat16))
    assert len(exact) == 6
    errors = [((one - other).norm() / one.norm()).item() for one, other in zip(exact, rounded, strict=True)]
    assert max(errors) < BOUND, errors
