"""What trains the pocket LongCat computes what the family's cached inference computes."""

from dataclasses import replace

import pytest
import torch

from qvg_cli.cache.kv_cache import open_cache
from qvg_cli.config.schema import CacheConfig
from qvg_cli.models.longcat.model import open_longcat
from qvg_cli.models.longcat.pipeline import LongCatDenoiser
from qvg_cli.models.longcat.plan import plan_chunks
from qvg_cli.models.longcat.schedule import Sampling, guided_schedule
from qvg_cli.models.wan.lora import Lora
from qvg_cli.planning.cache_forecast import CacheShape
from qvg_cli.planning.chunks import Geometry
from qvg_kernels.spec import NoneSpec
from scripts.pocket.adapter import MODULES, Adapter
from scripts.pocket.longcat import CONFIG, Prompts, WindowForward, build_transformer, sample
from scripts.pocket.train_longcat import save_transformer

TINY = replace(CONFIG, hidden_size=128, num_heads=2, depth=2, caption_channels=24, adaln_tembed_dim=16)
FRAMES, HEIGHT, WIDTH = 5, 4, 6
GUIDANCE = 2.5


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = build_transformer(TINY).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
        parameter.copy_(parameter.bfloat16())
    return model


def random_prompts(count, seed):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(8) < torch.randint(1, 8, (count, 1), generator=generator)
    return Prompts(torch.randn(count, 8, 24, generator=generator) * mask[..., None], mask)


def make_clip(model, noise, given, rows):
    """One clip through the denoiser: the cache filled by the given frames, then the guided steps."""
    count = given.shape[2]
    (chunk,) = plan_chunks(FRAMES, window=FRAMES, condition_frames=max(count, 2), context_frames=count)
    geometry = Geometry(
        tokens_per_frame=HEIGHT * WIDTH // 4,
        latent_shape=(16, HEIGHT, WIDTH),
        height=8 * HEIGHT,
        width=8 * WIDTH,
    )
    config = CacheConfig(preset="test", k=NoneSpec(), v=NoneSpec())
    cache = open_cache(config, geometry, CacheShape(TINY.depth, TINY.num_heads, TINY.head_dim), seed=0)
    schedule = guided_schedule(3, 12.0)
    # The states of a prompt are zero after it, as its mask says.
    denoiser = LongCatDenoiser(model, cache, rows.states, Sampling(schedule, schedule, GUIDANCE))
    step = cache.begin(chunk)
    if count:
        denoiser.update_cache(chunk, chunk.prefill, given, step.prefill)
        cache.settle(step.prefill)
    return denoiser.denoise(chunk, lambda: noise, lambda: None)


@torch.no_grad()
@pytest.mark.parametrize("given", [0, 1, 3])
def test_windows_equal_the_cached_rollout(model, given):
    torch.manual_seed(given)
    window = torch.randn(2, 16, FRAMES, HEIGHT, WIDTH)
    prompts, negative = random_prompts(2, 1), random_prompts(2, 2)
    condition = window[:, :, :given] if given else None
    made = sample(
        WindowForward(model),
        guided_schedule(3, 12.0),
        window[:, :, given:],
        prompts,
        condition=condition,
        negative=negative,
        guidance=GUIDANCE,
    )
    for i in range(2):
        rows = Prompts(
            *(torch.stack([getattr(p, n)[i] for p in (negative, prompts)]) for n in ("states", "mask"))
        )
        clip = make_clip(model, window[i : i + 1, :, given:], window[i : i + 1, :, :given], rows)
        torch.testing.assert_close(made[i : i + 1], clip, atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_the_saved_adapter_is_the_trained_one(model, tmp_path):
    torch.manual_seed(1)
    adapter = Adapter(model, rank=4)
    for parameter in adapter.parameters():
        parameter.copy_((0.2 * torch.randn_like(parameter)).bfloat16())
    path = tmp_path / "lora" / "cfg_step_lora.safetensors"
    adapter.save(path)
    save_transformer(model, tmp_path / "dit")
    checkpoint = open_longcat(tmp_path / "dit", [Lora(path)])
    loaded = checkpoint.load(dtype=torch.float32, device=torch.device("cpu"))

    window, prompts = torch.randn(1, 16, FRAMES, HEIGHT, WIDTH), random_prompts(1, 3)
    forward, levels = WindowForward(model), torch.tensor([700.0])
    trained = forward(window, levels, prompts, weights=adapter.merged(forward.weights()))
    assert (trained - forward(window, levels, prompts)).abs().max() > 0.1
    again = Adapter(model, rank=4)
    again.load(path)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), adapter.parameters(), strict=True))
    torch.testing.assert_close(WindowForward(loaded)(window, levels, prompts), trained, atol=1e-5, rtol=1e-5)


def test_only_the_adapter_learns(model):
    adapter, forward = Adapter(model, rank=2), WindowForward(model)
    window, prompts = torch.randn(1, 16, FRAMES, HEIGHT, WIDTH), random_prompts(1, 4)
    flow = forward(window, torch.tensor([900.0]), prompts, given=2, weights=adapter.merged(forward.weights()))
    flow.square().mean().backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    learning = {name for name, up in adapter.up.items() if up.grad.abs().max() > 0}
    assert len(learning) == TINY.depth * len(MODULES)
