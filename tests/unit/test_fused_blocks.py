"""Blocks with fewer kernels compute what diffusers' own compute, for both families that have them."""

import pytest
import torch

from qvg_cli.engine.engine import Engine
from qvg_cli.engine.jobs import Planned
from qvg_cli.models.registry import plan_video
from qvg_cli.models.wan.graphs import FusedBlock
from scripts import full_size
from scripts.random_models import TINY, RandomModels

OPTIONS = {
    "self-forcing": ["--frames", "6"],
    "hyworldplay": ["--chunks", "2", "--context", "incremental"],
}


def latents(backend, device, *, is_fused):
    arguments = ["--backend", backend, "--size", "tiny", "--out", "unused", *OPTIONS[backend]]
    config = full_size.load_run(full_size.parse_options([*arguments, "--set", "device=cpu"]), "none")
    models = RandomModels(config, TINY[backend], torch.device(device))
    if is_fused:
        FusedBlock.take(models.transformer.blocks)
    engine = Engine(config, full_size.PIPELINES[backend](config, models), torch.device(device))
    video = Planned(config, plan_video(config), backend)
    embeds = models.text_states(1, config.model.text_tokens)
    results = engine.rollout(video, prompt_embeds={0: embeds})
    return torch.cat([result.latents for result in results], dim=2)


@pytest.mark.parametrize("backend", sorted(OPTIONS))
def test_the_same_latents_on_a_cpu(backend):
    fused, stock = (latents(backend, "cpu", is_fused=is_fused) for is_fused in (True, False))
    torch.testing.assert_close(fused, stock, rtol=1e-4, atol=1e-4)
