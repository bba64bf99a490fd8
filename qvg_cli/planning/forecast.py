"""What a planned video needs: its cache to the byte, device memory by kind over the run, room on the disk.

The cache is exact. The rest of the device's memory is an estimate: weights from the model's layout, and what
passes from shapes, traced once (`planning/sizes.py`). docs/plan.md says how it compares with a GPU. No torch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from qvg_cli.config.schema import MemoryConfig, RunConfig
from qvg_cli.errors import UsageError
from qvg_cli.planning.cache_forecast import CacheShape, predict_history_files, predict_payload, shipped_bytes
from qvg_cli.planning.chunks import PIXEL_FRAMES, VideoPlan, pixel_frames
from qvg_cli.planning.ledger import MemorySample, total
from qvg_cli.planning.sizes import PASS_PIXELS, ModelSizes, element_bytes
from qvg_cli.planning.time_forecast import transformer_seconds

KINDS = ("transformer", "VAE", "text", "cache", "workspace", "pass", "decoding")
"""Weights of the two, prompt embeddings, cache, attention's workspace, what passes through the transformer,
and the VAE's features and work."""
_CONVOLUTION_WORK = 1.06
"""What convolutions take beside their tensors, from a run of Self-Forcing on an H200."""
_PIXEL_BYTES = 3
"""Values of a decoded pixel."""
_PROGRAM_BYTES = 2**30
"""Interpreter, torch and libraries: a run of the pocket model holds 0.75 GiB."""
_BLOCKS_ON_DEVICE = 2
"""The one that works, and the next."""


@dataclass(frozen=True)
class Moment:
    """The fullest moment of one chunk.

    Attributes:
        num_frames: Pixel frames of the video after the chunk.
        is_decoding: Whether pixels are made then, or else the transformer works.
    """

    chunk: int
    num_frames: int
    is_decoding: bool
    bytes_by_kind: dict[str, int]

    @property
    def total_bytes(self) -> int:
        return sum(self.bytes_by_kind.values())


@dataclass(frozen=True)
class Forecast:
    """What one run needs.

    Attributes:
        text_stage_bytes: On the device while prompts are read, before anything else.
        samples: The cache, one a chunk, as memory.json will have it.
        latents_bytes: Of latents.safetensors, its header left out.
        state_bytes: That the run's `state/` holds at most while it runs, headers and video parts left out.
        host_bytes: Of the machine's memory at most, about.
        transformer_seconds: On H200s; see `planning/time_forecast.py`.
    """

    text_stage_bytes: int
    moments: Sequence[Moment]
    samples: Sequence[MemorySample]
    latents_bytes: int
    state_bytes: int
    host_bytes: int
    transformer_seconds: float

    @property
    def peak(self) -> Moment:
        """The fullest moment after the text stage."""
        return max(self.moments, key=lambda moment: moment.total_bytes)

    @property
    def cache_peak(self) -> MemorySample:
        """The chunk in which the cache is fullest."""
        return max(self.samples, key=lambda sample: total(sample.peak_bytes))

    @property
    def device_bytes(self) -> int:
        """At the fullest moment of the whole run."""
        return max(self.text_stage_bytes, self.peak.total_bytes)


def no_suggestion(found: Forecast, limit_bytes: int, *, has_text: bool = True) -> str:
    """What to tell where no setting keeps a run below a limit."""
    if has_text and found.text_stage_bytes > limit_bytes:
        return (
            "no setting makes the text encoder smaller: use a larger GPU, or encode the prompt on one "
            "(prompt "
            "embeddings are kept in text/ of the cache folder of qvg and reused)"
        )
    return "no setting gets below that: use a larger GPU, or a smaller --size"


def is_for_gpu(config: RunConfig, *, has_card: bool) -> bool:
    """Whether a plan counts for a GPU: one is meant or there, or the model is none for a CPU."""
    return config.device != "cpu" and (
        has_card or config.device.startswith("cuda") or config.model.weights != "pocket"
    )


def forecast(config: RunConfig, plan: VideoPlan, sizes: ModelSizes, *, is_gpu: bool) -> Forecast:
    """What a run of `config` needs, by its plan and sizes; `UsageError` if codecs refuse the head size."""
    size = element_bytes(config.model.dtype, is_gpu=is_gpu)
    shape = CacheShape(
        sizes.num_layers, sizes.heads, sizes.head_dim, size, sizes.sink_frames, sizes.num_parts
    )
    try:
        samples = predict_payload(config.cache, plan, shape)
        history_bytes = predict_history_files(config.cache, plan, shape)
    except ValueError as error:
        raise UsageError(f"cache preset {config.cache.preset}: {error}") from error
    channels, height, width = plan.latent_shape
    latents_bytes = plan.num_frames * channels * height * width * sizes.latent_bytes
    beside_text = sizes.vae_bytes if sizes.text_beside_vae and config.memory.vae == "none" else 0
    found = Forecast(
        text_stage_bytes=sizes.text_encoder_bytes + beside_text,
        moments=list(_moments(config, plan, sizes, samples, size, shipped_bytes(config.cache, shape))),
        samples=samples,
        latents_bytes=latents_bytes,
        state_bytes=latents_bytes + history_bytes,
        host_bytes=0,
        transformer_seconds=transformer_seconds(config, plan, sizes),
    )
    return replace(found, host_bytes=_host_bytes(found, config, plan, sizes, is_gpu=is_gpu))


def _host_bytes(
    found: Forecast, config: RunConfig, plan: VideoPlan, sizes: ModelSizes, *, is_gpu: bool
) -> int:
    """The program, what waits in CPU memory or is read through it, and what two chunks leave to write."""
    frames = max(len(chunk.frames) for chunk in plan.chunks) * PIXEL_FRAMES
    chunk_bytes = frames * plan.height * plan.width * _PIXEL_BYTES + found.state_bytes // len(plan.chunks)
    # At the end the latents of the whole video are joined.
    written = 2 * max(chunk_bytes, found.latents_bytes)
    if not is_gpu:
        return _PROGRAM_BYTES + found.device_bytes + written
    memory = config.memory
    # Weights that are rounded to fp8 are read here first.
    waits = sizes.transformer_bytes if memory.transformer != "none" or memory.weights == "fp8" else 0
    waits += sizes.vae_bytes if memory.vae == "model" else 0
    return _PROGRAM_BYTES + max(sizes.text_encoder_bytes, waits + written)


def _moments(
    config: RunConfig,
    plan: VideoPlan,
    sizes: ModelSizes,
    samples: Sequence[MemorySample],
    element_bytes: int,
    shipped_bytes: int,
) -> Iterator[Moment]:
    """The fuller one of the two moments of each chunk: the transformer at work, the VAE at work."""
    memory, vae, pixels = config.memory, sizes.vae, plan.height * plan.width
    working_bytes, idle_bytes = _transformer_bytes(sizes, memory, element_bytes)
    features = int(vae.feature_bytes * pixels * element_bytes / 2)
    pass_frames = min(PIXEL_FRAMES, max(1, PASS_PIXELS // pixels))
    is_offloaded = memory.vae == "model"
    for chunk, sample in zip(plan.chunks, samples, strict=True):
        common = {"text": sizes.text_bytes, "workspace": config.cache.workspace_mib * 2**20}
        prefilled = len(chunk.prefill) if chunk.commits or chunk.makes else 0
        tokens = max(prefilled, len(chunk.makes) * sizes.rows) * plan.tokens_per_frame
        working = {
            **common,
            "cache": total(sample.peak_bytes),
            "transformer": working_bytes + shipped_bytes,
            "VAE": 0 if is_offloaded else sizes.vae_bytes,
            "pass": int(tokens * sizes.token_bytes),
            # Nothing is remembered before the first frames are decoded.
            "decoding": features if vae.keeps_features and chunk.index and not is_offloaded else 0,
        }
        frames = max(len(chunk.makes) + len(chunk.given), len(chunk.prefill)) * PIXEL_FRAMES
        pixel_bytes = vae.work_bytes + vae.pass_bytes * (pass_frames - 1) + 2 * _PIXEL_BYTES * frames
        decoding = {
            **common,
            "cache": total(sample.end_bytes),
            "transformer": idle_bytes + shipped_bytes,
            "VAE": sizes.vae_bytes,
            "pass": 0,
            "decoding": int(pixels * pixel_bytes * element_bytes / 2 * _CONVOLUTION_WORK),
        }
        is_decoding = sum(decoding.values()) >= sum(working.values())
        kinds = decoding if is_decoding else working
        end = pixel_frames(sample.num_frames)
        yield Moment(chunk.index, end, is_decoding, {kind: kinds[kind] for kind in KINDS})


def _transformer_bytes(sizes: ModelSizes, memory: MemoryConfig, element_bytes: int) -> tuple[int, int]:
    """Weights of the transformer that are on the device while it works, and while pixels are made."""
    saved = sizes.matrix_values * (element_bytes - 1) if memory.weights == "fp8" else 0
    whole = sizes.transformer_bytes - saved
    blocks = sizes.num_layers * sizes.block_bytes
    others = sizes.transformer_bytes - blocks
    if memory.weights_sharded:
        idle = others + blocks // sizes.num_processes
        return idle + _BLOCKS_ON_DEVICE * sizes.block_bytes, idle
    if memory.transformer != "group":
        return whole, 0 if memory.transformer == "model" else whole
    return others + _BLOCKS_ON_DEVICE * (sizes.block_bytes - saved // sizes.num_layers), others
