"""Whole videos with a tiny random model of the real classes: base clip, segments, cache, adapter, command."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from typer.testing import CliRunner

from qvg_cli.cache.kv_cache import LayerCache, open_cache
from qvg_cli.config.load import Request
from qvg_cli.engine.engine import Engine
from qvg_cli.engine.jobs import Planned
from qvg_cli.engine.rollout import rollout, seeded_noise
from qvg_cli.main import app
from qvg_cli.models.longcat.plan import plan_chunks
from qvg_cli.models.longcat.window import WindowDecoder
from qvg_cli.models.registry import family_of, load_config, load_pipeline, plan_video
from qvg_cli.models.vae import StreamingDecoder, encode_frames
from qvg_cli.planning.chunks import pixel_frames
from qvg_cli.planning.ledger import total

WINDOW, STEP, SEGMENTS = 6, 2, 2
CONDITION = WINDOW - STEP
SMALL = {
    "video.height": 32,
    "video.width": 48,
    "video.frames": WINDOW + SEGMENTS * STEP,
    "sampler.window": WINDOW,
    "sampler.frames_per_chunk": STEP,
    "sampler.guided_steps": 2,
    "sampler.steps": "[1000, 500]",
    "model.text_tokens": 8,
}


def settings(weights, **changes):
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    values = {**SMALL, "model.weights": weights, **changes}
    return tuple(f"{name}={value}" for name, value in values.items())


def configured(weights, **changes):
    return load_config(Request(backend="longcat", sets=settings(weights, **changes))).config


class Run:
    """A run through the engine: what each chunk gave, and how the model was called; its own recorder."""

    def __init__(self, weights, *, engine=None, **changes) -> None:
        self.config = configured(weights, prompt="red ball", **changes)
        self.plan = plan_video(self.config)
        self.engine = engine or Engine.load_config(self.config, torch.device("cpu"))
        self.model = self.engine.pipeline._models.transformer
        self.rows: list[int] = []
        hook = self.model.register_forward_hook(lambda *call: self.rows.append(call[2].shape[0]))
        self.results = list(self.engine.rollout(Planned(self.config, self.plan, "run"), self))
        hook.remove()

    def begin(self, cache):
        self.cache = cache

    def show_clip(self, frames):
        """A run begins with no clip."""


def go_on_from(given, run, config):
    """The chunks of a video whose first latents are `given`, with the model of `run`."""
    chunks = plan_chunks(
        config.video.frames, window=WINDOW, condition_frames=CONDITION, context_frames=given.shape[2]
    )
    plan, pipeline = replace(plan_video(config), chunks=chunks), run.engine.pipeline
    cache = open_cache(config.cache, plan, pipeline.cache_shape, config.seed)
    denoiser = pipeline.denoiser(
        cache, family_of(config).planner(config), pipeline.encode_prompt(run.config.prompt), config.seed
    )
    noise = seeded_noise(plan, config.seed, pipeline.latents_dtype, denoiser.device)
    return list(rollout(plan.chunks, denoiser, pipeline.decoder(), noise, context=given))


@pytest.fixture(scope="module")
def plain(longcat_weights):
    return Run(longcat_weights, cache__preset="none")


def test_base_clip_and_segments(plain):
    assert [result.latents.shape[2] for result in plain.results] == [WINDOW, STEP, STEP]
    frames = [result.frames.shape for result in plain.results]
    assert frames == [
        (1, pixel_frames(WINDOW), 32, 48, 3),
        *[(1, 4 * STEP, 32, 48, 3)] * SEGMENTS,
    ]
    assert sum(shape[1] for shape in frames) == plain.plan.num_pixel_frames
    assert all(torch.isfinite(result.latents).all() for result in plain.results)


def test_condition_frames_pass_once_and_every_step_has_two_rows(plain):
    # Two guided steps have 1 level above 500, and the tail below it has 10.
    segment = [1] + [2] * 11
    assert plain.rows == [2, 2, *segment * SEGMENTS]


def test_cache_holds_the_condition_frames_of_one_segment(plain):
    tokens = CONDITION * plain.plan.tokens_per_frame
    base, *segments = (result.memory for result in plain.results)
    assert total(base.peak_bytes) == base.bf16_peak_bytes == 0
    for sample in segments:
        # Keys and values, two layers, 64 channels, one row for both rows of the guidance.
        assert total(sample.peak_bytes) == 2 * 2 * 64 * tokens * 4
        assert sample.bf16_peak_bytes == 2 * 2 * 64 * tokens * 2
    assert tuple(plain.cache.layers[0].entry_of) == tuple(range(4, 8))


def test_packed_cache_is_filled_layer_by_layer(longcat_weights, monkeypatch):
    held = []
    commit = LayerCache.commit

    def watch(layer, *arguments):
        commit(layer, *arguments)
        held.append((layer.index, dict(layer.ledger.held)))

    monkeypatch.setattr(LayerCache, "commit", watch)
    run = Run(longcat_weights, cache__preset="int2")
    assert [index for index, _ in held] == [0, 1] * SEGMENTS
    one, two = (total(payload) for _, payload in held[:2])
    assert two == 2 * one
    for _, payload in held:
        assert "bf16" not in payload
        assert "dense" not in payload
    assert all(result.memory.peak_bytes == held[1][1] for result in run.results[1:])


def test_no_cache_changes_the_noise_or_the_base_clip(plain, longcat_weights):
    packed = Run(longcat_weights, cache__preset="int2")
    assert torch.equal(packed.results[0].latents, plain.results[0].latents)
    assert not torch.equal(packed.results[1].latents, plain.results[1].latents)
    for chunk in plain.plan.chunks:
        draws = [
            seeded_noise(run.plan, 0, run.engine.pipeline.latents_dtype, run.engine.device)(chunk)()
            for run in (plain, packed)
        ]
        assert torch.equal(*draws)


def test_distilled_mode_has_one_row_and_its_adapter(plain, longcat_weights):
    run = Run(longcat_weights, sampler__mode="distilled", cache__preset="none")
    assert run.rows == [1, 1, *[1, 1, 1] * SEGMENTS]
    weights = [r.model.state_dict()["blocks.1.attn.proj.weight"] for r in (run, plain)]
    assert not torch.equal(*weights)


def test_another_cache_loads_nothing_again(plain, longcat_weights):
    other = Run(longcat_weights, engine=plain.engine, cache__preset="int2")
    assert other.model is plain.model
    schemes = [run.cache.layers[0].packed.key.spec.scheme for run in (other, plain)]
    assert schemes[0] != schemes[1] == "none"
    assert torch.equal(
        other.results[-1].latents, Run(longcat_weights, cache__preset="int2").results[-1].latents
    )


def test_a_given_clip_is_gone_on_from(plain, longcat_weights):
    context = torch.randn(1, 16, CONDITION, 4, 6)
    (result,) = go_on_from(context, plain, configured(longcat_weights, video__frames=WINDOW))
    assert torch.equal(result.latents[:, :, :CONDITION], context)
    assert result.frames.shape[1] == pixel_frames(WINDOW)


def test_an_image_starts_the_base_clip(plain, longcat_weights):
    image = torch.randn(1, 16, 1, 4, 6)
    results = go_on_from(image, plain, configured(longcat_weights))
    assert torch.equal(results[0].latents[:, :, :1], image)
    assert [result.latents.shape[2] for result in results] == [WINDOW, STEP, STEP]
    assert not torch.equal(results[0].latents, plain.results[0].latents)


def test_segment_is_decoded_as_the_end_of_its_window(longcat_weights):
    vae = AutoencoderKLWan.from_pretrained(longcat_weights / "vae").eval()
    decoder = WindowDecoder(vae, CONDITION)
    start, added = torch.randn(1, 16, WINDOW, 4, 6), torch.randn(1, 16, STEP, 4, 6)
    assert decoder.recall(start) is start
    shown = decoder.decode(start)
    assert torch.equal(shown, StreamingDecoder(vae).decode(start))
    condition = decoder.recall(start[:, :, STEP:])
    assert condition.shape == (1, 16, CONDITION, 4, 6)
    window = StreamingDecoder(vae).decode(torch.cat([condition, added], dim=2))
    assert torch.equal(decoder.decode(added), window[:, -4 * STEP :])


def test_condition_is_encoded_from_the_frames_that_were_shown(longcat_weights):
    vae = AutoencoderKLWan.from_pretrained(longcat_weights / "vae").eval()
    start = torch.randn(1, 16, WINDOW, 4, 6)
    decoder = WindowDecoder(vae, CONDITION)
    decoder.decode(start)
    pixels = StreamingDecoder(vae).decode_float(start)[:, :, -pixel_frames(CONDITION) :]
    with torch.no_grad():
        posterior = vae.encode(pixels).latent_dist
        decoded = StreamingDecoder(vae)
        expected = (posterior.mean - decoded._mean) / decoded._std
        drawn = encode_frames(vae, pixels, torch.Generator().manual_seed(0))
    # A draw lies within a few deviations of the mean.
    deviation = posterior.std / decoded._std
    for latents in (decoder.recall(start), drawn):
        assert ((latents - expected) / deviation).abs().max() < 6


def test_the_command_makes_base_clip_and_segments(longcat_weights, tmp_path):
    arguments = ["generate", "red ball", "--backend", "longcat", "--device", "cpu", "--cache", "int2"]
    arguments += ["--out", str(tmp_path), "--json", "--seconds", "1.5"]
    for text in settings(longcat_weights):
        arguments += ["--set", text]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    # 1.5 s at 15 fps are 23 frames; the next clip is 6 latent frames and one segment of 2.
    assert (figures["latent_frames"], figures["pixel_frames"]) == (8, 29)
    assert figures["peak"]["ratio"] > 2
    again = load_config(Request(file=Path(figures["config"]))).config
    assert (again.backend, again.video.frames, again.sampler.window) == ("longcat", 8, WINDOW)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("sampler.sink=2", "unknown setting sampler.sink"),
        (
            "sampler.frames_per_chunk=5",
            "leaves 1 latent frames of a window of 6 to continue from; largest: 4",
        ),
        ("cache.keep_sink=true", "cache.keep_sink=True would leave the condition frames unquantized"),
        ("video.width=40", "width 40 is not a multiple of 16; nearest: 32, 48"),
        ("video.frames=9", "nearest: 8 latent frames"),
        ("sampler.mode=fast", "sampler.mode='fast'"),
        ("sampler.guidence=3", "unknown setting sampler.guidence"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_loaded(longcat_weights, tmp_path, change, message):
    arguments = ["generate", "red ball", "--backend", "longcat", "--out", str(tmp_path / "out")]
    for text in (*settings(longcat_weights), change):
        arguments += ["--set", text]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert message in " ".join(str(result.exception or result.output).split()) or message in result.output
    assert not (tmp_path / "out").exists()


def test_both_rows_of_the_guidance_are_kept_on_disk(longcat_weights, tmp_path, monkeypatch):
    monkeypatch.setenv("QVG_HOME", str(tmp_path))
    embeds = load_pipeline(configured(longcat_weights), torch.device("cpu")).encode_prompt("red ball")
    assert embeds.shape[0] == len(list((tmp_path / "text").iterdir())) == 2
