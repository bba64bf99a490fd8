"""Weights that wait elsewhere change nothing but where they are; fp8 rounds each matrix once."""

import pytest
import torch
from diffusers import AutoencoderKLWan
from torch import nn

from qvg_cli.config.schema import MemoryConfig
from qvg_cli.engine.engine import Engine
from qvg_cli.engine.jobs import Planned
from qvg_cli.errors import UsageError
from qvg_cli.models.offload import STORAGE_DTYPE, Offload, OffloadedModule
from qvg_cli.models.registry import plan_video
from scripts import full_size
from scripts.random_models import TINY, RandomModels

CPU = torch.device("cpu")
OPTIONS = {
    "self-forcing": ["--frames", "6"],
    "hyworldplay": ["--chunks", "2", "--context", "incremental"],
    "longcat": ["--segments", "1", "--set", "sampler.guided_steps=2", "--set", "sampler.window=24"],
}
QUICK_AND_SLOW = ["hyworldplay", "self-forcing", pytest.param("longcat", marks=pytest.mark.slow)]


class Made:
    """One tiny video, made with `memory`."""

    def __init__(self, backend: str, memory: MemoryConfig, device: torch.device = CPU) -> None:
        arguments = ["--backend", backend, "--size", "tiny", "--out", "unused", *OPTIONS[backend]]
        config = full_size.load_run(full_size.parse_options(arguments), "none")
        self.models = RandomModels(config, TINY[backend], device)
        # Set afterwards: on a CPU it would be refused, but what moves weights does not ask for the device.
        self.models.offload.memory = memory
        pipeline = full_size.PIPELINES[backend](config, self.models)
        rows = 2 if backend == "longcat" else 1
        embeds = self.models.text_states(rows, config.model.text_tokens)
        video = Planned(config, plan_video(config), backend)
        results = list(Engine(config, pipeline, device).rollout(video, prompt_embeds={0: embeds}))
        self.latents = torch.cat([result.latents for result in results], dim=2)
        self.frames = torch.cat([result.frames for result in results], dim=1)


@pytest.fixture(scope="module")
def resident():
    return {backend: Made(backend, MemoryConfig()) for backend in OPTIONS}


@pytest.mark.parametrize(
    "memory",
    [MemoryConfig(transformer="model", vae="model"), MemoryConfig(transformer="group")],
    ids=["model", "group"],
)
@pytest.mark.parametrize("backend", QUICK_AND_SLOW)
def test_waiting_elsewhere_changes_no_bit(resident, backend, memory):
    made = Made(backend, memory)
    assert torch.equal(made.latents, resident[backend].latents)
    assert torch.equal(made.frames, resident[backend].frames)


def test_an_offloaded_vae_is_on_the_device_when_the_picture_is_encoded(monkeypatch):
    happened, encode = [], AutoencoderKLWan.encode

    def noted_encode(self, *arguments, **options):
        happened.append("encode")
        return encode(self, *arguments, **options)

    monkeypatch.setattr(OffloadedModule, "onload", lambda self: happened.append("onload"))
    monkeypatch.setattr(AutoencoderKLWan, "encode", noted_encode)
    Made("hyworldplay", MemoryConfig(vae="model"))
    assert happened[:2] == ["onload", "encode"]


@pytest.mark.parametrize("backend", QUICK_AND_SLOW)
def test_fp8_stores_the_matrices_and_computes_with_them_rounded(resident, backend, monkeypatch):
    made = Made(backend, MemoryConfig(weights="fp8"))
    stored = [m for m in made.models.transformer.blocks.modules() if isinstance(m, nn.Linear)]
    in_fp8 = [linear for linear in stored if linear.weight.dtype == STORAGE_DTYPE]
    assert len(in_fp8) >= 0.8 * len(stored)
    assert not torch.equal(made.latents, resident[backend].latents)

    plain_fill = RandomModels._fill

    def rounded_fill(self, model, held_in, to):
        plain_fill(self, model, held_in, to)
        for name, parameter in model.named_parameters():
            if name in names:
                parameter.data = parameter.data.to(STORAGE_DTYPE).to(parameter.dtype)

    names = {name for name, p in made.models.transformer.named_parameters() if p.dtype == STORAGE_DTYPE}
    monkeypatch.setattr(RandomModels, "_fill", rounded_fill)
    assert torch.equal(Made(backend, MemoryConfig()).latents, made.latents)


@pytest.mark.parametrize("setting", ["transformer=model", "transformer=group", "vae=model"])
def test_a_cpu_has_no_other_memory(setting):
    name, _, value = setting.partition("=")
    with pytest.raises(UsageError, match=f"memory.{setting} needs a GPU"):
        Offload(MemoryConfig(**{name: value}), CPU)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", sorted(OPTIONS))
def test_an_offloaded_transformer_frees_the_device_while_pixels_are_made(backend):
    device = torch.device("cuda", 0)
    made = Made(backend, MemoryConfig(transformer="model", vae="model"), device)
    offload = made.models.offload
    before = torch.cuda.memory_allocated(device)
    weights = sum(p.numel() * p.element_size() for p in made.models.transformer.parameters())
    pixels = sum(p.numel() * p.element_size() for p in made.models.vae.parameters())
    with offload.pixels():
        assert torch.cuda.memory_allocated(device) <= before - weights + 2 * pixels
    assert torch.cuda.memory_allocated(device) >= before


@pytest.mark.gpu
@pytest.mark.parametrize("weights", ["model", "fp8"])
@pytest.mark.parametrize("moved", [{"transformer": "model", "vae": "model"}, {"transformer": "group"}])
@pytest.mark.parametrize("backend", sorted(OPTIONS))
def test_waiting_in_cpu_memory_changes_no_bit(backend, moved, weights):
    device = torch.device("cuda", 0)
    made = Made(backend, MemoryConfig(weights=weights, **moved), device)
    plain = Made(backend, MemoryConfig(weights=weights), device)
    assert torch.equal(made.latents, plain.latents)
    assert torch.equal(made.frames, plain.frames)
    if "vae" not in moved:
        assert not any(p.is_cuda for p in made.models.transformer.blocks.parameters())
