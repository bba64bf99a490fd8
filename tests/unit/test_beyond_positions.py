"""Past the 1,024 positions of the rotary table: with a span a video has no end, and its cache no growth."""

import pytest
import torch
from torch import Tensor

from qvg_cli.cache.kv_cache import open_cache
from qvg_cli.config.load import Request
from qvg_cli.engine.rollout import rollout
from qvg_cli.errors import UsageError
from qvg_cli.models.decoder import Pixels
from qvg_cli.models.registry import load_config, plan_video
from qvg_cli.models.self_forcing.pipeline import SelfForcingDenoiser, SelfForcingTransformer
from qvg_cli.models.self_forcing.plan import MAX_FRAMES
from qvg_cli.planning.cache_forecast import CacheShape
from qvg_cli.planning.ledger import total

FRAMES, WINDOW, SINK, SPAN = 1050, 9, 3, 12


def load(*sets):
    sets = [f"video.frames={FRAMES}", f"sampler.window={WINDOW}", f"sampler.sink={SINK}", *sets]
    sets += ["video.height=32", "video.width=32", "sampler.steps=[1000]", "cache.span_tokens=8"]
    return load_config(Request("self-forcing", sets=sets)).config


class KeepLatents:
    """Stands for the decoder: what is looked at here ends at the latents."""

    def recall(self, latents: Tensor) -> Tensor:
        return latents

    def decode_each(self, latents: Tensor):
        yield Pixels(latents)


def test_without_a_span_the_positions_end():
    with pytest.raises(UsageError, match=r"^1050 latent frames exceed the model's 1024 positions") as refused:
        plan_video(load())
    assert "--position-span" in refused.value.hint


@pytest.mark.slow
def test_a_video_goes_on_past_them_with_a_cache_that_does_not_grow(tiny_wan):
    config = load(f"sampler.position_span={SPAN}")
    plan = plan_video(config)
    assert plan.num_frames == FRAMES > MAX_FRAMES
    assert max(max(chunk.positions or chunk.view) for chunk in plan.chunks) == SPAN - 1
    torch.manual_seed(0)
    model = SelfForcingTransformer(**{**tiny_wan, "num_layers": 1, "rope_max_seq_len": MAX_FRAMES})
    model = model.eval().requires_grad_(False)
    cache = open_cache(config.cache, plan, CacheShape(1, 1, 64), seed=0)
    denoiser = SelfForcingDenoiser(model, cache, torch.zeros(1, 4, 16), config.sampler)
    generator = torch.Generator().manual_seed(1)
    channels, height, width = plan.latent_shape

    def noise(chunk):
        shape = (1, channels, len(chunk.makes), height, width)
        return lambda: torch.randn(shape, generator=generator)

    peaks, last = [], None
    for result in rollout(plan.chunks, denoiser, KeepLatents(), noise):
        peaks.append(total(result.memory.peak_bytes))
        last = result
    assert last.latents.isfinite().all()
    # From the first full window on, the last chunk aside, which is not kept.
    full = peaks[2 * WINDOW // 3 : -1]
    assert len(full) > 300
    assert len(set(full)) <= 2
    assert full[-1] <= full[0]
