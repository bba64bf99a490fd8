"""Blocks with fewer kernels compute what diffusers' own compute, for both families that have them."""

import pytest
import torch
from diffusers.models.activations import GELU
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from torch import nn

from qvg_cli.engine.engine import Engine
from qvg_cli.engine.jobs import Planned
from qvg_cli.models.registry import plan_video
from qvg_cli.models.wan.graphs import GeluLinear
from scripts import full_size, random_models
from scripts.random_models import TINY, RandomModels

OPTIONS = {
    "self-forcing": ["--frames", "12"],
    "hyworldplay": ["--chunks", "3", "--context", "incremental"],
}


def rollouts(backend, device, change=lambda transformer: None, seeds=(0,)):
    """Videos of one engine, whose chunks are made as they are asked for."""
    arguments = ["--backend", backend, "--size", "tiny", "--out", "unused", *OPTIONS[backend]]
    config = full_size.load_run(full_size.parse_options([*arguments, "--set", f"device={device}"]), "none")
    models = RandomModels(config, TINY[backend], torch.device(device))
    change(models.transformer)
    engine = Engine(config, full_size.PIPELINES[backend](config, models), torch.device(device))
    configs = [config.model_copy(update={"seed": seed}) for seed in seeds]
    videos = [Planned(config, plan_video(config), backend) for config in configs]
    embeds = models.text_states(1, config.model.text_tokens)
    return [engine.rollout(video, prompt_embeds={0: embeds}) for video in videos]


def joined(results):
    return torch.cat([result.latents for result in results], dim=2)


def latents(backend, device, change=lambda transformer: None):
    (results,) = rollouts(backend, device, change)
    return joined(results)


@pytest.fixture
def stock_blocks(monkeypatch):
    """Take diffusers' blocks, without graphs, when this is called."""

    def place(model, offload, dtype, tokens):
        for block in model.blocks:
            gelu = block.ffn.net[0]
            block.__class__, gelu.__class__, gelu.proj.__class__ = WanTransformerBlock, GELU, nn.Linear
        offload.place_transformer(model, dtype)

    return lambda: monkeypatch.setattr(random_models, "place_transformer", place)


@pytest.mark.parametrize("backend", sorted(OPTIONS))
def test_the_same_latents_on_a_cpu(backend, stock_blocks):
    fused = latents(backend, "cpu", lambda transformer: transformer.join_projections())
    stock_blocks()
    torch.testing.assert_close(fused, latents(backend, "cpu"), rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", sorted(OPTIONS))
def test_latents_on_a_gpu_differ_by_roundings_alone(backend, stock_blocks):
    fused = latents(backend, "cuda").float()
    stock_blocks()
    stock = latents(backend, "cuda").float()
    assert (fused - stock).norm() <= 0.02 * stock.norm()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", sorted(OPTIONS))
def test_videos_that_take_turns_on_a_gpu_have_the_same_bits(backend):
    pairs = list(zip(*rollouts(backend, "cuda", seeds=(1, 2)), strict=True))
    for seed, results in zip((1, 2), zip(*pairs, strict=True), strict=True):
        (alone,) = rollouts(backend, "cuda", seeds=(seed,))
        assert joined(results).equal(joined(alone))


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("backend", sorted(OPTIONS))
def test_the_second_gpu_makes_what_the_first_makes(backend):
    first = latents(backend, "cuda:0")
    torch.cuda.set_device(0)
    assert latents(backend, "cuda:1").cpu().equal(first.cpu())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_block_is_trained_on_a_gpu():
    layer = GeluLinear(8, 16, device="cuda")
    layer(torch.randn(3, 8, device="cuda")).sum().backward()
    assert layer.weight.grad.isfinite().all()
