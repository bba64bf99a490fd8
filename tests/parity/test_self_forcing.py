"""Golden numbers of the original Self-Forcing code (fp32, tiny random weights), through the real engine.

Tolerance 1e-4 on values of scale 6: what remains is the order of fp32 sums; each known mistake (integer
timesteps, a window off by one, re-based positions, ...) is off by 0.05 or more. `QVG_GOLDEN_DIR` names
another root folder.
"""

import re
from dataclasses import replace

import pytest
import torch
from golden import golden_folder, load_golden
from torch import Tensor

from qvg_cli.cache.kv_cache import open_cache
from qvg_cli.config.schema import CacheConfig
from qvg_cli.errors import MissingModelError
from qvg_cli.models.self_forcing.config import BlockSamplerConfig
from qvg_cli.models.self_forcing.pipeline import SelfForcingDenoiser, SelfForcingTransformer
from qvg_cli.models.self_forcing.plan import plan_chunks
from qvg_cli.models.wan.checkpoint import Checkpoint, diffusers_name, model_name
from qvg_cli.models.wan.schedule import denoising_steps
from qvg_cli.planning.cache_forecast import CacheShape
from qvg_cli.planning.chunks import VideoPlan
from qvg_kernels.spec import NoneSpec

TOLERANCE = 1e-4
FOLDER = golden_folder("selfforcing")
CONFIG = load_golden(FOLDER, "config.json")
INPUTS = load_golden(FOLDER, "inputs.safetensors")
SHAPE = CacheShape(CONFIG["num_layers"], CONFIG["num_heads"], CONFIG["dim"] // CONFIG["num_heads"])
WINDOWS = [(case["local_attn_size"], case["sink_size"]) for case in CONFIG["rolling"]]


def frames_second(tensor: Tensor) -> Tensor:
    """`[B, C, F, h, w]` to the golden layout `[B, F, C, h, w]`, or back."""
    return tensor.transpose(1, 2)


def from_published(state, config):
    return Checkpoint(lambda: SelfForcingTransformer(**config), state, "the golden data").load()


@pytest.fixture(scope="module")
def model():
    heads = CONFIG["num_heads"]
    return from_published(
        load_golden(FOLDER, "weights.safetensors"),
        {
            "patch_size": tuple(CONFIG["patch_size"]),
            "num_attention_heads": heads,
            "attention_head_dim": CONFIG["dim"] // heads,
            "in_channels": CONFIG["in_dim"],
            "out_channels": CONFIG["out_dim"],
            "text_dim": CONFIG["text_dim"],
            "freq_dim": CONFIG["freq_dim"],
            "ffn_dim": CONFIG["ffn_dim"],
            "num_layers": CONFIG["num_layers"],
            "cross_attn_norm": True,
            "qk_norm": "rms_norm_across_heads",
            "eps": CONFIG["eps"],
            "rope_max_seq_len": 1024,
        },
    )


def sampler_config(**changes) -> BlockSamplerConfig:
    settings = {
        "steps": tuple(CONFIG["denoising_step_list"]),
        "shift": CONFIG["timestep_shift"],
        "context_noise": CONFIG["context_noise"],
        "frames_per_chunk": CONFIG["frames_per_block"],
    }
    return BlockSamplerConfig(**{**settings, **changes})


def given_noise(noise: Tensor, renoise: list[Tensor]):
    """For the i-th chunk that is made: its starting noise, then the noise added after each step."""
    made = 0
    start = 0

    def for_chunk(chunk):
        nonlocal made, start
        batch, length = noise.shape[0], len(chunk.makes)
        added = [step.unflatten(0, (batch, length)) for step in renoise[made]]
        draws = iter([noise[:, start : start + length], *added])
        made, start = made + 1, start + length
        return lambda: frames_second(next(draws))

    return for_chunk


class Run:
    """One case: the latents, every raw model output, and the cache at the end."""

    def __init__(self, model, sampler, noise, renoise, context=None, commit_last=False) -> None:
        context_frames = 0 if context is None else context.shape[1]
        num_frames = context_frames + noise.shape[1]
        plan = VideoPlan(
            chunks=plan_chunks(num_frames, sampler, context_frames=context_frames, commit_last=commit_last),
            tokens_per_frame=CONFIG["tokens_per_frame"],
            latent_shape=tuple(noise.shape[2:]),
            height=8 * CONFIG["latent_height"],
            width=8 * CONFIG["latent_width"],
        )
        self.cache = open_cache(
            CacheConfig(preset="none", k=NoneSpec(), v=NoneSpec()),
            plan,
            replace(SHAPE, sink_frames=sampler.sink),
            seed=0,
        )
        denoiser = SelfForcingDenoiser(model, self.cache, INPUTS["prompt_embeds"], sampler)
        self.flows: list[Tensor] = []
        hook = model.register_forward_hook(lambda *call: self.flows.append(frames_second(call[2][0])))
        draw = given_noise(noise, renoise)
        parts = [] if context is None else [context]
        try:
            for chunk in plan.chunks:
                step = self.cache.begin(chunk)
                if chunk.prefill:
                    given = context[:, list(chunk.prefill)]
                    denoiser.update_cache(chunk, chunk.prefill, frames_second(given), step.prefill)
                    continue
                made = denoiser.denoise(chunk, draw(chunk), lambda: None)
                if step.commit:
                    denoiser.update_cache(chunk, chunk.makes, made, step.commit)
                parts.append(frames_second(made))
        finally:
            hook.remove()
        self.latents = torch.cat(parts, dim=1)


def assert_close(found: Tensor, expected: Tensor, name: str) -> None:
    assert found.shape == expected.shape, name
    error = (found - expected).abs().max().item()
    assert error < TOLERANCE, f"{name}: largest error {error:.2e}"


def assert_flows(run: Run, golden: dict[str, Tensor], prefix: str = "") -> None:
    """Compare every raw output that the file holds; a block has the denoising calls and the clean pass."""
    calls = len(CONFIG["denoising_step_list"]) + 1
    compared = 0
    for name, expected in golden.items():
        if match := re.fullmatch(re.escape(prefix) + r"block(\d+)\.call(\d+)\.flow", name):
            assert_close(run.flows[int(match[1]) * calls + int(match[2])], expected, name)
            compared += 1
    assert compared


def test_schedule_is_the_published_table():
    golden = load_golden(FOLDER, "schedule.safetensors")
    table = denoising_steps(range(1000, 0, -1), CONFIG["timestep_shift"])
    torch.testing.assert_close(
        torch.tensor([step.timestep for step in table]), golden["timesteps"], rtol=0, atol=1e-3
    )
    torch.testing.assert_close(
        torch.tensor([step.sigma for step in table]), golden["sigmas"], rtol=0, atol=1e-6
    )
    used = [
        step.timestep for step in denoising_steps(CONFIG["denoising_step_list"], CONFIG["timestep_shift"])
    ]
    torch.testing.assert_close(torch.tensor(used), golden["denoising_timesteps"], rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def global_run(model):
    return Run(model, sampler_config(), INPUTS["noise"], list(INPUTS["renoise"]), commit_last=True)


def test_global_attention(global_run):
    golden = load_golden(FOLDER, "global.safetensors")
    assert_close(global_run.latents, golden["latents"], "latents")
    assert_flows(global_run, golden)


def test_cached_keys_are_normed_and_not_rotated(global_run):
    golden = load_golden(FOLDER, "global.safetensors")
    for layer in global_run.cache.layers:
        pairs = [entry.decode(slice(None), slice(None)) for entry in layer.entries.values()]
        for name, tensors in zip("kv", zip(*pairs, strict=True), strict=True):
            held = torch.cat(tensors, dim=2).transpose(1, 2)
            label = f"cache.layer{layer.index}.{name}"
            assert_close(held, golden[label], label)


@pytest.mark.parametrize(("window", "sink"), WINDOWS)
def test_rolling_window(model, window, sink):
    golden = load_golden(FOLDER, "rolling.safetensors")
    sampler = sampler_config(window=window, sink=sink)
    run = Run(model, sampler, INPUTS["noise"], list(INPUTS["renoise"]), commit_last=True)
    assert_close(run.latents, golden[f"w{window}s{sink}.latents"], "latents")
    assert_flows(run, golden, f"w{window}s{sink}.")


def conditioned_names(pattern: str) -> list[str]:
    names = load_golden(FOLDER, "conditioned.safetensors")
    return sorted(name for name in names if re.fullmatch(pattern, name))


@pytest.mark.parametrize("name", conditioned_names(r"independent_first\.latents"))
def test_independent_first_frame(model, name):
    golden = load_golden(FOLDER, "conditioned.safetensors")
    rest = golden[name].shape[1] - golden["first_noise"].shape[1]
    noise = torch.cat([golden["first_noise"], INPUTS["noise"][:, :rest]], dim=1)
    renoise = [golden["first_renoise"], *INPUTS["renoise"]]
    run = Run(model, sampler_config(independent_first_frame=True), noise, renoise)
    assert_close(run.latents, golden[name], name)


@pytest.mark.parametrize(("name", "start"), [("image.latents", "init1"), ("extend.latents", "init3")])
def test_given_start(model, name, start):
    golden = load_golden(FOLDER, "conditioned.safetensors")
    context = golden[start]
    rest = golden[name].shape[1] - context.shape[1]
    run = Run(model, sampler_config(), INPUTS["noise"][:, :rest], list(INPUTS["renoise"]), context=context)
    assert_close(run.latents, golden[name], name)


@pytest.mark.parametrize("name", conditioned_names(r"context_noise\d+\.latents"))
def test_context_noise(model, name):
    golden = load_golden(FOLDER, "conditioned.safetensors")
    noise = INPUTS["noise"][:, : golden[name].shape[1]]
    timestep = float(re.search(r"\d+", name)[0])
    run = Run(model, sampler_config(context_noise=timestep), noise, list(INPUTS["renoise"]))
    assert_close(run.latents, golden[name], name)


def test_timesteps_per_frame_with_every_intermediate(model):
    golden = load_golden(FOLDER, "perframe.safetensors")
    timesteps = golden["t"]
    batch, num_frames = timesteps.shape
    plan = VideoPlan(
        chunks=plan_chunks(num_frames, sampler_config(frames_per_chunk=num_frames)),
        tokens_per_frame=CONFIG["tokens_per_frame"],
        latent_shape=tuple(INPUTS["noise"].shape[2:]),
        height=8 * CONFIG["latent_height"],
        width=8 * CONFIG["latent_width"],
    )
    cache = open_cache(
        CacheConfig(preset="none", k=NoneSpec(), v=NoneSpec()),
        plan,
        SHAPE,
        seed=0,
    )
    call = model.attach(cache)
    call.chunk, call.frames = plan.chunks[0], plan.chunks[0].makes
    seen: dict[str, Tensor] = {}
    watched = {
        "time_sinusoid": model.condition_embedder.timesteps_proj,
        "time_embed": model.condition_embedder.time_embedder,
        "time_proj": model.condition_embedder.time_proj,
        "context": model.condition_embedder.text_embedder,
        "patch_embed": model.patch_embedding,
        "head": model.proj_out,
    }
    for index, block in enumerate(model.blocks):
        watched[f"layer{index}.q"] = block.attn1.norm_q
        watched[f"layer{index}.k"] = block.attn1.norm_k
        watched[f"layer{index}.v"] = block.attn1.to_v
        watched[f"layer{index}.self_attn"] = block.attn1
        watched[f"layer{index}.cross_attn"] = block.attn2
        watched[f"layer{index}.out"] = block

    def keep(name):
        return lambda module, given, output: seen.__setitem__(name, output)

    hooks = [module.register_forward_hook(keep(name)) for name, module in watched.items()]
    latents = frames_second(INPUTS["noise"][:, :num_frames])
    per_token = timesteps.repeat_interleave(CONFIG["tokens_per_frame"], dim=1)
    try:
        with torch.no_grad():
            flow = frames_second(model(latents, per_token, INPUTS["prompt_embeds"], return_dict=False)[0])
    finally:
        for hook in hooks:
            hook.remove()
    assert_close(flow, golden["flow"], "flow")
    seen["patch_embed"] = seen["patch_embed"].flatten(2).transpose(1, 2)
    # The golden call embeds one timestep a frame, this one the same timestep for each of a frame's tokens.
    for name in ("time_sinusoid", "time_embed", "time_proj"):
        seen[name] = seen[name].reshape(batch * num_frames, CONFIG["tokens_per_frame"], -1)[:, 0]
    for name, found in seen.items():
        assert_close(found.reshape(golden[name].shape), golden[name], name)


@pytest.mark.parametrize("wrapper", ["", "_fsdp_wrapped_module.", "_orig_mod._checkpoint_wrapped_module."])
def test_published_names_load_with_the_prefixes_of_training(wrapper):
    for name in load_golden(FOLDER, "weights.safetensors"):
        bare = name.removeprefix("model.")
        assert model_name(f"model.{wrapper}{bare}", {}) == diffusers_name(bare) is not None


def test_missing_unknown_and_misshaped_tensors_are_named():
    state = dict(load_golden(FOLDER, "weights.safetensors"))
    width = CONFIG["dim"]
    config = {
        "num_attention_heads": CONFIG["num_heads"],
        "attention_head_dim": width // CONFIG["num_heads"],
        "text_dim": CONFIG["text_dim"],
        "freq_dim": CONFIG["freq_dim"],
        "ffn_dim": CONFIG["ffn_dim"],
        "num_layers": CONFIG["num_layers"],
        "in_channels": CONFIG["in_dim"],
        "out_channels": CONFIG["out_dim"],
    }
    cases = [
        (
            {**state, "model.extra.weight": torch.zeros(1)},
            "extra.weight in .* is not part of the model",
        ),
        ({k: v for k, v in state.items() if k != "model.head.head.bias"}, "proj_out.bias is missing"),
        ({**state, "model.head.head.bias": torch.zeros(1)}, r"proj_out.bias in .* has shape \(1,\)"),
    ]
    for broken, message in cases:
        with pytest.raises(MissingModelError, match=message):
            from_published(broken, config)
