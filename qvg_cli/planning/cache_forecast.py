"""What the cache of a planned video will hold, to the byte, before any tensor exists. No torch.

Sums a `CachePlan` as `kv_cache.KVCache` carries it out, with sizes in place of tensors. All layers hold the
same blocks, each in the sizes of its own codecs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from safetensors import SafetensorError, safe_open

from qvg_cli.config.resources import matrices_file
from qvg_cli.config.schema import CacheConfig, LayerCodecs
from qvg_cli.errors import UsageError
from qvg_cli.planning.cache_plan import NUM_VERSIONS, Block, CachePlan, Commit, Versions, unpacked_spec
from qvg_cli.planning.chunks import VideoPlan
from qvg_cli.planning.ledger import Ledger, MemorySample, add, bf16_frame_bytes, total
from qvg_kernels.spec import CodecSpec, PayloadBytes

BlockBytes = Callable[[Block], PayloadBytes]
"""What one layer holds of a block."""


@dataclass(frozen=True)
class CacheShape:
    """The keys and values of a model.

    Attributes:
        heads: Heads of one layer, times the batch.
        element_bytes: Size of a value as the model makes it.
        sink_frames: First latent frames that a window never drops.
        num_parts: Processes of which each has as many heads of every layer.
    """

    num_layers: int
    heads: int
    head_dim: int
    element_bytes: int = 2
    sink_frames: int = 0
    num_parts: int = 1
    part: int = 0


def check_matrices(config: CacheConfig, shape: CacheShape) -> Path | None:
    """The file whose matrices shape errors, if any does, by its header; `UsageError` if it does not fit."""
    layers = config.of_layers(shape.num_layers)
    wanted = [
        f"layer{number}.{side}"
        for number, layer in enumerate(layers)
        for side, spec in (("key", layer.k), ("value", layer.v))
        if spec.is_shaped
    ]
    if config.matrices is None or not wanted:
        return None
    path = matrices_file(config.matrices)
    hint = "leave it to the session with --set cache.matrices=null, or use a file that was made of this model"
    try:
        with safe_open(path, framework="numpy") as file:
            if missing := set(wanted).difference(file.keys()):
                raise UsageError(f"{path} has no matrices {min(missing)}", hint=hint)
            slices = {name: file.get_slice(name) for name in wanted}
            shapes = {name: (*each.get_shape(), each.get_dtype()) for name, each in slices.items()}
    except (OSError, SafetensorError) as error:
        raise UsageError(f"cannot read the matrices {path}: {error}", hint=hint) from error
    for name, (heads, *others) in shapes.items():
        if others != [shape.head_dim, shape.head_dim, "BF16"] or shape.heads * shape.num_parts % heads:
            raise UsageError(
                f"{path}: {name} has {heads} matrices {others}, the model has "
                f"{shape.heads * shape.num_parts} heads of {shape.head_dim} channels",
                hint=hint,
            )
    return path


def predict_payload(config: CacheConfig, plan: VideoPlan, shape: CacheShape) -> list[MemorySample]:
    """What `memory.json` of a run will say of the cache, a sample a chunk; the device's peak is `None`.

    `ValueError` if the codecs do not take the head size, `UsageError` if a layer is named that is not there,
    or matrices do not fit.
    """
    check_matrices(config, shape)
    layers = _block_bytes(config, plan, shape)
    frame_bytes = bf16_frame_bytes(plan.tokens_per_frame, shape.heads * shape.head_dim, shape.num_layers)
    ledger = Ledger()
    version_bytes = _version_bytes(config, shape)
    held_versions = [Versions(ledger) for _ in layers]
    samples = []
    num_held = 0
    blocks = CachePlan.of(config, tokens_per_frame=plan.tokens_per_frame, sink_frames=shape.sink_frames)
    for chunk in plan.chunks:
        step = blocks.advance(chunk)
        num_left = len(blocks.block_of)
        num_held -= len(step.evicts)
        for block_bytes, versions in zip(layers, held_versions, strict=True):
            for block in step.drops:
                ledger.remove(block_bytes(block))
                versions.drop(block)
            if step.empties:
                versions.clear()
        ledger.begin_peak()
        for commit in (step.prefill, step.commit):
            if commit is not None:
                for block_bytes, versions, num_bytes in zip(
                    layers, held_versions, version_bytes, strict=True
                ):
                    _book(ledger, commit, block_bytes, versions, num_bytes)
        samples.append(
            MemorySample(
                chunk=chunk.index,
                num_frames=max(chunk.frames) + 1,
                peak_bytes=dict(ledger.peak),
                end_bytes=dict(ledger.held),
                bf16_peak_bytes=max(num_held, num_left) * frame_bytes,
                bf16_end_bytes=num_left * frame_bytes,
                device_peak_bytes=None,
            )
        )
        num_held = num_left
    return samples


def predict_history_files(config: CacheConfig, plan: VideoPlan, shape: CacheShape) -> int:
    """The most bytes that a run's `state/` holds of its history at once, headers left out.

    Only a history that is packed is saved, and only by one process alone, each block once; a file goes when
    nothing of it was held after the last two chunks. The matrices that shape its errors stay.
    """
    is_kept = all(
        layer.k.packs and layer.v.packs and not layer.k.weighs_queries
        for layer in config.of_layers(shape.num_layers)
    )
    if shape.num_parts > 1 or not is_kept:
        return 0
    layers = _block_bytes(config, plan, shape)
    blocks = CachePlan.of(config, tokens_per_frame=plan.tokens_per_frame, sink_frames=shape.sink_frames)
    version_bytes = _version_bytes(config, shape)
    file_bytes: dict[int, int] = {}
    saved: set[Block] = set()
    most = matrix_bytes = 0
    was_complete = False
    for chunk, following in zip(plan.chunks, (*plan.chunks[1:], None), strict=True):
        blocks.advance(chunk)
        held = set() if following is None else set(blocks.blocks_after(following.evicts))
        is_complete = bool(held) and blocks.num_packed >= NUM_VERSIONS
        if is_complete and not was_complete:
            count = len({block.version for block in held if block.is_packed} | {NUM_VERSIONS - 1})
            matrix_bytes += count * sum(version_bytes)
        was_complete = is_complete
        file_bytes[chunk.index] = sum(
            total(block_bytes(block)) for block_bytes in layers for block in held - saved
        )
        most = max(most, matrix_bytes + sum(file_bytes.values()))
        alive = {block.chunk for block in saved | held} | {chunk.index}
        file_bytes = {index: count for index, count in file_bytes.items() if index in alive}
        saved = held
    return most


def _block_bytes(config: CacheConfig, plan: VideoPlan, shape: CacheShape) -> list[BlockBytes]:
    unpacked = unpacked_spec(config)

    @cache
    def sized(num_frames: int, *specs: CodecSpec) -> PayloadBytes:
        tokens = num_frames * plan.tokens_per_frame
        key, value = (
            spec.payload_bytes(shape.heads, tokens, shape.head_dim, shape.element_bytes) for spec in specs
        )
        return add(key, value)

    def of_layer(layer: LayerCodecs) -> BlockBytes:
        packed = layer.k, layer.v
        return lambda block: sized(len(block.frames), *(packed if block.is_packed else (unpacked, unpacked)))

    return [of_layer(layer) for layer in config.of_layers(shape.num_layers)]


def shipped_bytes(config: CacheConfig, shape: CacheShape) -> int:
    """Bytes of the matrices that come with the model, and of their inverses; no cache counts them."""
    return 0 if config.matrices is None else 2 * sum(_matrix_bytes(config, shape))


def _version_bytes(config: CacheConfig, shape: CacheShape) -> list[int]:
    """Bytes of one version of the matrices that each layer learns."""
    return _matrix_bytes(config, shape) if config.matrices is None else [0] * shape.num_layers


def _matrix_bytes(config: CacheConfig, shape: CacheShape) -> list[int]:
    return [
        sum(spec.matrix_bytes(shape.heads, shape.head_dim) for spec in (layer.k, layer.v))
        for layer in config.of_layers(shape.num_layers)
    ]


def _book(
    ledger: Ledger, commit: Commit, block_bytes: BlockBytes, versions: Versions, version_bytes: int
) -> None:
    """Enter a commit of one layer, in the order of `LayerCache.commit`."""

    def hold(block: Block) -> None:
        versions.hold(block)
        ledger.add(block_bytes(block))

    for block in commit.stores:
        if block.is_packed:
            versions.make(block.version, version_bytes)
        hold(block)
    for packing in commit.packings:
        versions.make(packing.block.version, version_bytes)
        for member in packing.members:
            ledger.remove(block_bytes(member))
            versions.drop(member)
        hold(packing.block)
