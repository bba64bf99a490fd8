"""Golden numbers of the original HY-WorldPlay code (fp32, tiny random weights), reproduced through the real
engine.

Tolerance 1e-4 on values of scale 7: what remains is the order of fp32 sums; each known mistake (no action, no
camera, unit lenses, the wrong context, ...) is off by 0.02 or more. `QVG_GOLDEN_DIR` names another root
folder.
"""

import pytest
import torch
from golden import KeepLatents, golden_folder, load_golden
from torch import Tensor

from qvg_cli.cache.kv_cache import open_cache
from qvg_cli.config.schema import CacheConfig
from qvg_cli.engine.rollout import rollout
from qvg_cli.models.hyworldplay.config import WalkSamplerConfig
from qvg_cli.models.hyworldplay.memory import CHUNK_FRAMES
from qvg_cli.models.hyworldplay.model import WalkTransformer
from qvg_cli.models.hyworldplay.pipeline import HyWorldPlayDenoiser, denoising_steps
from qvg_cli.models.hyworldplay.plan import plan_chunks
from qvg_cli.models.hyworldplay.trajectory import camera_path
from qvg_cli.models.wan.checkpoint import Checkpoint
from qvg_cli.models.wan.rope import FrameRotation
from qvg_cli.planning.cache_forecast import CacheShape
from qvg_cli.planning.chunks import VideoPlan
from qvg_kernels.rope.tables import RotaryTables
from qvg_kernels.spec import NoneSpec

TOLERANCE = 1e-4
FOLDER = golden_folder("hyworldplay")
CONFIG = load_golden(FOLDER, "config.json")
MODEL = CONFIG["model_config"]
ROLLOUTS = CONFIG["rollouts"]
WINDOWS = {"append": None, "rebuild": 20, "none": None}
"""Frames in reach by the golden data's cache mode: all, or 16 frames of context and the chunk's own."""


@pytest.fixture(scope="module")
def model():
    state = load_golden(FOLDER, "transformer.safetensors")
    return Checkpoint(lambda: WalkTransformer(**MODEL), state, "the golden data").load()


def sampler_config(**changes) -> WalkSamplerConfig:
    settings = {
        "steps": (1000, 750, 500, 250),
        "shift": 8.0,
        "context_noise": CONFIG["context_timestep"],
        "frames_per_chunk": CHUNK_FRAMES,
    }
    return WalkSamplerConfig(**{**settings, **changes})


class Run:
    """One rollout: the latents, every model call's input and output, and the cache after some chunks."""

    def __init__(self, model, name: str, cached: tuple[int, ...] = ()) -> None:
        case = ROLLOUTS[name]
        golden = load_golden(FOLDER, name)
        mode = case["cache_mode"]
        sampler = sampler_config(window=WINDOWS[mode], context="append" if mode == "none" else mode)
        noise = golden["latents_init"]
        self.path = camera_path(case["pose"]).take(noise.shape[2])
        self.plan = VideoPlan(
            chunks=plan_chunks(self.path, sampler),
            tokens_per_frame=CONFIG["tokens_per_latent_frame"],
            latent_shape=tuple(noise.shape[1:2] + noise.shape[3:]),
            height=16 * CONFIG["latent_height"],
            width=16 * CONFIG["latent_width"],
        )
        self.cache = open_cache(
            CacheConfig(preset="none", k=NoneSpec(), v=NoneSpec()),
            self.plan,
            CacheShape(MODEL["num_layers"], MODEL["num_attention_heads"], MODEL["attention_head_dim"]),
            seed=0,
        )
        image = golden.get("image_latent")
        self.denoiser = HyWorldPlayDenoiser(
            model,
            self.cache,
            golden["prompt_embeds"],
            sampler,
            lambda: self.path,
            self.plan.tokens_per_frame,
            image,
        )
        self.calls: list[tuple[Tensor, Tensor, Tensor]] = []
        self.raw: dict[int, list[tuple[Tensor, Tensor]]] = {}
        hook = model.register_forward_hook(
            lambda _, given, output: self.calls.append((*given[:2], output[0]))
        )
        parts = []
        try:
            draw = lambda chunk: lambda: noise[:, :, list(chunk.makes)]  # noqa: E731
            for result in rollout(self.plan.chunks, self.denoiser, KeepLatents(), draw):
                parts.append(result.latents)
                if result.chunk.index in cached:
                    self.raw[result.chunk.index] = [self._held(layer) for layer in self.cache.layers]
        finally:
            hook.remove()
        self.latents = torch.cat(parts, dim=2)

    def _held(self, layer) -> tuple[Tensor, Tensor]:
        pairs = [entry.decode(slice(None), slice(None)) for entry in layer.entries.values()]
        return torch.cat([key for key, _ in pairs], dim=2), torch.cat([value for _, value in pairs], dim=2)


def as_video(items: Tensor) -> Tensor:
    """`[F, C, 1, h, w]`, the frames of a call as a batch, to `[1, C, F, h, w]`."""
    return items.transpose(0, 2)


def assert_close(found: Tensor, expected: Tensor, name: str) -> None:
    assert found.shape == expected.shape, name
    error = (found - expected).abs().max().item()
    assert error < TOLERANCE, f"{name}: largest error {error:.2e}"


@pytest.fixture(scope="module", params=ROLLOUTS)
def run(request, model):
    return request.param, Run(
        model, request.param, tuple(ROLLOUTS[request.param]["cache_saved_after_chunks"])
    )


def test_poses_lenses_and_actions_of_a_rollout(run):
    name, done = run
    golden = load_golden(FOLDER, name)
    for field, found in (("viewmats", done.path.viewmats), ("intrinsics", done.path.intrinsics)):
        # Zeros that are not quite zero depend on the library of linear algebra.
        torch.testing.assert_close(torch.from_numpy(found).float()[None], golden[field], rtol=0, atol=1e-15)
    assert list(done.path.actions) == golden["action"][0].tolist()


def test_context_of_every_chunk(run):
    name, done = run
    expected = {case["chunk"]: tuple(case["context_frames"]) for case in ROLLOUTS[name]["contexts"]}
    assert len(done.plan.chunks) == ROLLOUTS[name]["chunks"]
    assert {chunk.index: chunk.reads for chunk in done.plan.chunks if chunk.reads} == expected


def test_every_model_call_and_the_latents(run):
    name, done = run
    golden = load_golden(FOLDER, name)
    calls = iter(done.calls)
    for chunk in done.plan.chunks:
        if chunk.prefill:
            given, told, _ = next(calls)
            assert_close(as_video(given), golden[f"chunk{chunk.index}.context.latents"], "context")
            assert set(told.tolist()) == {CONFIG["context_timestep"]}
        for step in range(ROLLOUTS[name]["steps"]):
            given, told, flow = next(calls)
            prefix = f"chunk{chunk.index}.step{step}"
            assert_close(as_video(given), golden[f"{prefix}.latents"], f"{prefix}.latents")
            assert_close(told, golden[f"{prefix}.timestep"], f"{prefix}.timestep")
            assert_close(as_video(flow), golden[f"{prefix}.velocity"], f"{prefix}.velocity")
    assert next(calls, None) is None
    assert_close(done.latents, golden["latents_final"], "latents_final")


def test_both_streams_are_rebuilt_from_raw_keys_and_values(run):
    """The original caches rotated and camera-transformed keys and values; ours holds each once, raw."""
    name, done = run
    golden = load_golden(FOLDER, name)
    tables = RotaryTables.of(MODEL["attention_head_dim"], MODEL["rope_max_seq_len"], torch.device("cpu"))
    rows, columns = CONFIG["latent_height"] // 2, CONFIG["latent_width"] // 2
    for index, layers in done.raw.items():
        frames = done.plan.chunks[index].reads
        rotary = FrameRotation(tables, rows, columns, frames, tuple(range(len(frames))))
        cameras = done.denoiser._call.cameras
        for layer, (key, value) in enumerate(layers):
            tokens = slice(0, key.shape[2])
            streams = {
                "k": (rotary.rotate(key, frames), cameras.placement(frames).apply(key, tokens)),
                "v": (value, cameras.placement(frames).apply(value, tokens)),
            }
            for side, parts in streams.items():
                label = f"chunk{index}.cache.{side}"
                assert_close(torch.cat(parts, dim=-1), golden[label][layer], label)


def test_schedule():
    golden = load_golden(FOLDER, "schedule.safetensors")
    steps = denoising_steps(sampler_config())
    assert_close(torch.tensor([*(step.timestep for step in steps), 0.0]), golden["timesteps"], "timesteps")
    assert_close(torch.tensor([*(step.sigma for step in steps), 0.0]), golden["sigmas"], "sigmas")


def test_pixel_frames():
    golden = load_golden(FOLDER, "schedule.json")
    for num_chunks, expected in golden["pixel_frames_by_num_chunk"].items():
        path = camera_path(f"w-{CHUNK_FRAMES * int(num_chunks)}").take(CHUNK_FRAMES * int(num_chunks))
        plan = VideoPlan(
            chunks=plan_chunks(path, sampler_config()),
            tokens_per_frame=880,
            latent_shape=(48, 44, 80),
            height=704,
            width=1280,
        )
        assert plan.num_pixel_frames == expected


def test_camera_stream():
    from qvg_cli.models.hyworldplay.model import Cameras
    from qvg_cli.models.hyworldplay.trajectory import Trajectory

    golden = load_golden(FOLDER, "prope.safetensors")
    viewmats, intrinsics = golden["viewmats"][0].double().numpy(), golden["intrinsics"][0].double().numpy()
    num_frames, num_tokens = len(viewmats), golden["q"].shape[2]
    frames, tokens = tuple(range(num_frames)), slice(0, num_tokens)
    path = Trajectory(viewmats, intrinsics, (0,) * num_frames)
    cameras = Cameras.of(path, num_tokens // num_frames, torch.device("cpu"))
    assert_close(cameras.rotate_query(golden["q"], frames), golden["q_out"], "q")
    assert_close(cameras.placement(frames).apply(golden["k"], tokens), golden["k_out"], "k")
    assert_close(cameras.placement(frames).apply(golden["v"], tokens), golden["v_out"], "v")
    assert_close(cameras.restore(golden["o"], frames), golden["o_out"], "o")
