"""Golden numbers of the original LongCat-Video code (tiny random weights), through the real engine.

Tolerance 2e-5 in fp32; what remains is the order of the sums. The mildest known mistake (layer norm with eps
1e-5) is off by 3e-5, most by 0.09 or more. bf16 is compared by relative L2 error below 1e-2; it is itself 3
to 6 percent from fp32. `QVG_GOLDEN_DIR` names another root folder.

Of the tables, those of stages that the family has not are left out: the refinement schedule, and the sizes of
the 720p class and of grids coarser than 32 pixels.
"""

import json
import re
from dataclasses import replace

import pytest
import torch
from golden import golden_folder, load_golden
from safetensors.torch import save_file
from torch import Tensor

from qvg_cli.cache.kv_cache import CodecPair, KVCache
from qvg_cli.config.load import Request
from qvg_cli.models.longcat.model import open_longcat
from qvg_cli.models.longcat.pipeline import LongCatDenoiser
from qvg_cli.models.longcat.plan import fit_size, plan_chunks
from qvg_cli.models.longcat.schedule import (
    Sampling,
    Schedule,
    distilled_schedule,
    guide,
    guided_schedule,
    guided_schedule_with_tail,
    projection_scale,
)
from qvg_cli.models.registry import load_config
from qvg_cli.models.wan.checkpoint import INDEX_FILE
from qvg_cli.models.wan.lora import Lora
from qvg_cli.models.wan.rope import FrameRotation
from qvg_cli.models.wan.transformer import Call
from qvg_cli.planning.cache_forecast import CacheShape
from qvg_cli.planning.cache_plan import CachePlan
from qvg_cli.planning.chunks import VideoPlan
from qvg_kernels.codec import PackedTensor
from qvg_kernels.codecs.registry import build_codec
from qvg_kernels.rope.tables import RotaryTables
from qvg_kernels.spec import NoneSpec, RtnSpec

TOLERANCE = 2e-5
BF16_TOLERANCE = 1e-2
FOLDER = golden_folder("longcat")
CONFIG = load_golden(FOLDER, "config.json")
DIT = CONFIG["dit"]
GUIDANCE = CONFIG["guidance_scale"]
SHIFT = CONFIG["scheduler_shift"]
SCHEDULES = load_golden(FOLDER, "scheduler.safetensors")
TEXT_MASK = load_golden(FOLDER, "textmask.safetensors")
CACHED = load_golden(FOLDER, "kv_cache.safetensors")
ADAPTED = load_golden(FOLDER, "lora_case.safetensors")


class QuarterCodec:
    """A lossy cache: values are rounded to quarters, ties to even."""

    spec = RtnSpec()

    def encode(self, span: Tensor, **draws: object) -> PackedTensor:
        rounded = (4 * span).round() / 4
        return PackedTensor(tuple(span.shape), span.dtype, {"values": rounded}, {"values": "dense"})

    def decode(self, packed, *, heads=slice(None), tokens=slice(None)) -> Tensor:
        return packed.tensors["values"][:, heads, tokens]


def load_model(folder, *, dtype=torch.float32, adapters=()):
    """The golden weights through the real loader, from two shards stored in `dtype`."""
    state = {name: tensor.to(dtype) for name, tensor in load_golden(FOLDER, "model.safetensors").items()}
    names = sorted(state)
    weight_map = {}
    for index, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :])):
        file_name = f"diffusion_pytorch_model-{index + 1:05}-of-00002.safetensors"
        save_file({name: state[name] for name in part}, folder / file_name)
        weight_map.update(dict.fromkeys(part, file_name))
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(DIT))
    return open_longcat(folder, [Lora(path) for path in adapters]).load(dtype)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(tmp_path_factory.mktemp("dit"))


@pytest.fixture(scope="module")
def adapted_model(tmp_path_factory):
    return load_model(tmp_path_factory.mktemp("dit"), adapters=[FOLDER / "lora.safetensors"])


@pytest.fixture(scope="module")
def bf16_model(tmp_path_factory):
    return load_model(tmp_path_factory.mktemp("dit"), dtype=torch.bfloat16)


def frames_of(latents: Tensor) -> tuple[int, ...]:
    return tuple(range(latents.shape[2]))


def video_plan(latents: Tensor, *, context: int = 0) -> VideoPlan:
    """One chunk: all frames of `latents`, the first `context` of them given."""
    _, channels, num_frames, height, width = latents.shape
    return VideoPlan(
        chunks=plan_chunks(num_frames, window=num_frames, condition_frames=context, context_frames=context),
        tokens_per_frame=height * width // 4,
        latent_shape=(channels, height, width),
        height=8 * height,
        width=8 * width,
    )


def open_cache(plan: VideoPlan, codec=None) -> KVCache:
    codec = codec or build_codec(NoneSpec())
    pair = CodecPair(codec, codec)
    head_dim = DIT["hidden_size"] // DIT["num_heads"]
    return KVCache(
        CachePlan(),
        plan,
        CacheShape(DIT["depth"], DIT["num_heads"], head_dim),
        packed=[pair] * DIT["depth"],
        unpacked=pair,
        seed=0,
    )


def plain_forward(model, case, timestep: Tensor, mask: Tensor | None) -> Tensor:
    """All frames in one call, with an empty history."""
    latents = case["hidden_states"]
    plan = video_plan(latents)
    cache = open_cache(plan)
    text = model.embed_text(case["encoder_hidden_states"].squeeze(1), mask)
    per_frame = timestep[:, None].expand(-1, latents.shape[2])
    return model(latents, per_frame, text, Call(plan.chunks[0], frames_of(latents)), cache.layers)


def assert_close(found: Tensor, expected: Tensor, name: str, tolerance: float = TOLERANCE) -> None:
    assert found.shape == expected.shape, name
    error = (found - expected).abs().max().item()
    assert error < tolerance, f"{name}: largest error {error:.2e}"


def assert_close_bf16(found: Tensor, expected: Tensor, name: str) -> None:
    assert found.shape == expected.shape, name
    error = ((found.float() - expected.float()).norm() / expected.float().norm()).item()
    assert error < BF16_TOLERANCE, f"{name}: relative error {error:.2e}"


def assert_cache(cache: KVCache, golden: dict[str, Tensor], compare=assert_close) -> None:
    for layer in cache.layers:
        (entry,) = layer.entries.values()
        for name, held in zip("kv", entry.decode(), strict=True):
            label = f"layers.{layer.index}.{name}"
            compare(held, golden[label], label)


@pytest.mark.parametrize("suffix", ["", "_alt"])
def test_text_to_video(model, suffix):
    case = load_golden(FOLDER, "t2v.safetensors")
    found = plain_forward(model, case, case[f"timestep{suffix}"], case["encoder_attention_mask"])
    assert_close(found, case[f"output{suffix}"], f"output{suffix}")


@pytest.mark.parametrize("name", ["output_zero_pad", "output_packed", "output_no_mask"])
def test_text_padding(model, name, monkeypatch):
    monkeypatch.setattr(
        model, "config", replace(model.config, text_tokens_zero_pad=name == "output_zero_pad")
    )
    mask = None if name == "output_no_mask" else TEXT_MASK["encoder_attention_mask"]
    assert_close(plain_forward(model, TEXT_MASK, TEXT_MASK["timestep"], mask), TEXT_MASK[name], name)


def test_every_intermediate(model):
    golden = load_golden(FOLDER, "intermediates.safetensors")
    watched = {name.removesuffix(".output"): name for name in golden if name.endswith(".output")}
    found: dict[str, Tensor] = {}

    def keep(name):
        return lambda module, given, output: found.__setitem__(name, output)

    hooks = [
        model.get_submodule(re.sub(r"^block(\d+)", r"blocks.\1", path)).register_forward_hook(keep(name))
        for path, name in watched.items()
    ]
    try:
        plain_forward(model, TEXT_MASK, TEXT_MASK["timestep"], TEXT_MASK["encoder_attention_mask"])
    finally:
        for hook in hooks:
            hook.remove()
    assert set(found) == set(watched.values())
    assert watched
    for name, output in found.items():
        assert_close(output.reshape(golden[name].shape), golden[name], name)


def test_rotary_positions():
    golden = load_golden(FOLDER, "intermediates.safetensors")
    latents = TEXT_MASK["hidden_states"]
    head_dim = DIT["hidden_size"] // DIT["num_heads"]
    tables = RotaryTables.of(head_dim, 16, torch.device("cpu"))
    rotation = FrameRotation(tables, latents.shape[3] // 2, latents.shape[4] // 2)
    found = rotation.rotate(golden["rope_in"], frames_of(latents))
    assert_close(found, golden["rope_out"], "rope_out")
    # A pair (1, 0) turns to (cos, sin) of its angle.
    unit = torch.tensor([1.0, 0.0]).repeat(head_dim // 2).expand(1, 1, golden["rope_in"].shape[2], head_dim)
    angles = golden["rope_angles"][:, ::2]
    expected = torch.stack([angles.cos(), angles.sin()], dim=-1).flatten(-2)
    assert_close(rotation.rotate(unit, frames_of(latents))[0, 0], expected, "rope_angles")


def test_condition_frames_pass_through_the_cache_as_in_one_call(model):
    case = load_golden(FOLDER, "cond_nocache.safetensors")
    latents, timesteps = case["hidden_states"], case["timestep"]
    plan = video_plan(latents, context=CONFIG["num_cond_latents"])
    cache = open_cache(plan)
    (chunk,) = plan.chunks
    split = len(chunk.prefill)
    text = model.embed_text(case["encoder_hidden_states"].squeeze(1), case["encoder_attention_mask"])
    clean = model(
        latents[:, :, :split],
        timesteps[:, :split],
        None,
        Call(chunk, chunk.prefill, cache.begin(chunk).prefill),
        cache.layers,
    )
    made = model(latents[:, :, split:], timesteps[:, split:], text, Call(chunk, chunk.makes), cache.layers)
    assert_close(torch.cat([clean, made], dim=2), case["output"], "output")


class Segment:
    """The segment of `kv_cache.safetensors`, its condition frames in the cache."""

    def __init__(self, model, *, text_rows=slice(None), codec=None, schedule=None) -> None:
        condition, noise = CACHED["cond_latents"], CACHED["noise_latents"]
        plan = video_plan(torch.cat([condition, noise], dim=2), context=condition.shape[2])
        (self.chunk,) = plan.chunks
        self.noise = noise
        self.outputs: list[Tensor] = []
        self.cache = open_cache(plan, codec)
        # Rows after a prompt are zero.
        embeds = CACHED["encoder_hidden_states"] * CACHED["encoder_attention_mask"][:, None, :, None]
        schedule = schedule or Schedule(CACHED["timesteps"].numpy(), CACHED["sigmas"][:-1].numpy())
        sampling = Sampling(schedule, schedule, GUIDANCE)
        denoiser = LongCatDenoiser(model, self.cache, embeds[text_rows].squeeze(1), sampling)
        hook = model.register_forward_hook(lambda *call: self.outputs.append(call[2]))
        try:
            step = self.cache.begin(self.chunk)
            denoiser.update_cache(self.chunk, self.chunk.prefill, condition, step.prefill)
            self.latents = denoiser.denoise(self.chunk, lambda: noise, lambda: None)
        finally:
            hook.remove()


def test_cached_guided_steps(model):
    segment = Segment(model)
    clean_output, *predictions = segment.outputs
    assert_cache(segment.cache, CACHED)
    assert_close(clean_output, CACHED["cache_pass_output"], "cache_pass_output")
    assert len(predictions) == CONFIG["denoise_steps"]
    for index, flow in enumerate(predictions):
        name = f"step{index}"
        assert_close(flow, CACHED[f"{name}.noise_pred"], f"{name}.noise_pred")
        assert_close(guide(flow, GUIDANCE), CACHED[f"{name}.guided"], f"{name}.guided")
        scale = projection_scale(*flow.chunk(2))
        assert_close(scale, CACHED[f"{name}.st_star"].squeeze(), f"{name}.st_star")
    assert_close(segment.latents, CACHED[f"{name}.latents_out"], f"{name}.latents_out")


@pytest.mark.parametrize("index", range(CONFIG["denoise_steps"]))
def test_euler_step(index):
    timesteps, sigmas = CACHED["timesteps"].numpy(), CACHED["sigmas"].numpy()
    step = list(Schedule(timesteps, sigmas[:-1]))[index]
    latents, guided = CACHED[f"step{index}.latents_in"], CACHED[f"step{index}.guided"]
    assert torch.all(CACHED[f"step{index}.timestep"] == step.timestep)
    assert_close(step.advance(latents, guided), CACHED[f"step{index}.latents_out"], "latents_out")


def test_attention_reads_a_lossy_cache(model):
    segment = Segment(model, codec=QuarterCodec())
    assert_close(segment.outputs[1], CACHED["altered.noise_pred"], "altered.noise_pred")


def test_adapter(adapted_model):
    found = plain_forward(
        adapted_model, TEXT_MASK, TEXT_MASK["timestep"], TEXT_MASK["encoder_attention_mask"]
    )
    assert_close(found, ADAPTED["output"], "output")


def test_adapter_with_the_cache_and_one_distilled_step(adapted_model):
    timestep, sigmas = ADAPTED["distill_timestep"][0, 0], ADAPTED["distill_sigma"]
    one = Schedule(timestep[None].numpy(), sigmas[:1].numpy())
    segment = Segment(adapted_model, text_rows=slice(1, 2), schedule=one)
    assert_cache(segment.cache, ADAPTED)
    assert_close(segment.outputs[1], ADAPTED["distill_noise_pred"], "distill_noise_pred")
    (step,) = one
    found = replace(step, next_sigma=float(sigmas[1])).advance(segment.noise, segment.outputs[1])
    assert_close(found, ADAPTED["distill_latents_out"], "distill_latents_out")


def as_bf16(case: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: tensor.bfloat16() if tensor.is_floating_point() else tensor for name, tensor in case.items()
    }


def test_bf16(bf16_model):
    golden = load_golden(FOLDER, "bf16.safetensors")
    case = as_bf16(TEXT_MASK)
    found = plain_forward(bf16_model, case, case["timestep"], case["encoder_attention_mask"])
    assert_close_bf16(found, golden["output"], "output")


def test_bf16_model_is_told_a_rounded_timestep(bf16_model):
    case = as_bf16(TEXT_MASK)
    outputs = [
        plain_forward(bf16_model, case, torch.full((2,), timestep), case["encoder_attention_mask"])
        for timestep in (998.27, 1000.0, 990.0)
    ]
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[1], outputs[2])


def test_bf16_cache(bf16_model):
    golden = load_golden(FOLDER, "bf16.safetensors")
    (timestep,) = golden["cached_timestep"].unique().float()
    one = Schedule(timestep[None].numpy(), torch.ones(1).numpy())
    segment = Segment(bf16_model, schedule=one)
    assert_cache(segment.cache, golden, assert_close_bf16)
    assert_close_bf16(segment.outputs[1], golden["cached_noise_pred"], "cached_noise_pred")


BUILDERS = {"base": guided_schedule, "tail": guided_schedule_with_tail}
TABLES = sorted(name.removesuffix("_sigmas") for name in SCHEDULES if re.fullmatch(r"[a-z]+\d+_sigmas", name))


@pytest.mark.parametrize("name", [name for name in TABLES if not name.startswith("refine")])
def test_schedule_is_the_published_table(name):
    kind, steps = re.fullmatch(r"([a-z]+)(\d+)", name).groups()
    if kind == "distill":
        levels = (1000 * SCHEDULES[f"{name}_preshift_sigmas"]).round().int().tolist()
        assert len(levels) == int(steps)
        schedule = distilled_schedule(levels, SHIFT)
    else:
        schedule = BUILDERS[kind](int(steps), SHIFT)
    timesteps = torch.tensor([step.timestep for step in schedule])
    sigmas = torch.tensor([step.sigma for step in schedule] + [list(schedule)[-1].next_sigma])
    torch.testing.assert_close(timesteps, SCHEDULES[f"{name}_timesteps"], rtol=1e-6, atol=0)
    torch.testing.assert_close(sigmas, SCHEDULES[f"{name}_sigmas"], rtol=1e-6, atol=0)
    assert torch.equal(timesteps.bfloat16().float(), SCHEDULES[f"{name}_timesteps_bf16"])


def test_the_distilled_steps_of_the_configuration_are_the_published_ones():
    levels = (1000 * SCHEDULES["distill16_preshift_sigmas"]).round().int().tolist()
    assert list(load_config(Request(backend="longcat")).config.sampler.steps) == levels


@pytest.mark.parametrize(
    "row",
    [row for row in load_golden(FOLDER, "buckets.json")["rows"] if row[0] == "480p" and row[1] in (16, 32)],
    ids=lambda row: "x".join(map(str, row[1:4])),
)
def test_size_of_the_480p_class(row):
    *_, height, width, fitted_height, fitted_width = row
    assert fit_size(height, width) == (fitted_height, fitted_width)
