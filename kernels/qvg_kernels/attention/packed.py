"""Attention over a packed history by kernels: as many keys as have room are decoded, attended to,
overwritten.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from qvg_kernels.attention.blocks import BlockList, Scales, prepare
from qvg_kernels.attention.combine import Fused, choose_fused
from qvg_kernels.attention.heads import BF16, INT8, HeadGroup, Operands, group_of, rounded_bytes
from qvg_kernels.attention.history import History, OwnKeys, Workspace
from qvg_kernels.attention.tiling import cut_attention
from qvg_kernels.codecs.reading import DecodeTarget, Tiles
from qvg_kernels.rope.kernels import copy_placed
from qvg_kernels.rope.placement import form_of
from qvg_kernels.runtime import launch
from qvg_kernels.runtime.warmup import warm_up


def attend(
    query: Tensor, history: History, own: OwnKeys, workspace: Workspace, operands: Operands,
    out: Tensor | None = None,
) -> Tensor | None:  # fmt: skip
    """`attend.attend` by kernels; `None` if a block's scheme has none.

    Args:
        operands: What coarse blocks are read as.
    """
    key = (query.shape, query.stride(), query.dtype, query.device, operands, history.kinds)
    # What kernels prepare in the warm-up is not kept, since none has run.
    warm_up(query.device, key, lambda: _attend(query, History(history.blocks), own, workspace, operands))
    return _attend(query, history, own, workspace, operands, out)


def _attend(
    query: Tensor, history: History, own: OwnKeys, workspace: Workspace, operands: Operands,
    out: Tensor | None = None,
) -> Tensor | None:  # fmt: skip
    lists = history.lists = prepare(history.blocks) if history.lists is None else history.lists
    if lists is None:
        return None
    batch, heads, num_queries, head_dim = query.shape
    device, wide = query.device, query.dtype
    kinds = [operands if each.is_coarse else BF16 for each in lists]
    tile = _tile(query, kinds)
    sizes = [
        (each.num_tokens, each.key.table.batch * kind.pair_bytes(wide))
        for each, kind in zip(lists, kinds, strict=True)
    ]
    cut = cut_attention(
        batch, heads, num_queries, head_dim,
        (*sizes, (own.num_tokens, batch * BF16.pair_bytes(wide))), workspace.limit_bytes,
        tile.rows, launch.programs_at_once(device, tile),
        *((1, rounded_bytes(num_queries, head_dim)) if tile is launch.HOPPER else (2, 0)),
    )  # fmt: skip
    # Queries of a token lie together, so that joining the heads moves nothing.
    output = query.new_empty(batch, num_queries, heads, head_dim).transpose(1, 2) if out is None else out
    groups = [slice(first, min(first + cut.heads, heads)) for first in range(0, heads, cut.heads)]
    # Before the other stream waits for this one.
    passes = [each.passes(count, device) for each, count in zip(lists, cut.pass_tokens[:-1], strict=True)]
    scales = [[each.scales(some.start, some.stop) for each in lists] for some in groups]
    # The chunk's own keys, placed, and its values if they are not read where they are.
    reads_values = own.value_placement is None and own.value.dtype == wide
    own_bytes = (1 if reads_values else 2) * own.key.numel() * wide.itemsize
    fused = choose_fused(query, own.key, own.value) if own_bytes <= workspace.limit_bytes else None
    workspace.take(max(cut.workspace_bytes, 0 if fused is None else own_bytes), device)
    attended = None
    if fused is not None:
        attended = _attend_own(query, own, fused, workspace, reads_values=reads_values)
    buffers = _Buffers(range(cut.query_bytes + cut.state_bytes, cut.workspace_bytes, cut.pass_bytes), device)
    for some, group_scales in zip(groups, scales, strict=True):
        group = group_of(query, output, some, cut, workspace)
        if attended is not None:
            group.own = attended[0][:, some], attended[1][:, some]
        steps = list(zip(lists, group_scales, kinds, passes, strict=True))
        # The output so far is multiplied by a list's matrix, so that list comes first.
        num_shaped = sum(each.matrix is not None for each in lists)
        for step in steps[:num_shaped]:
            _attend_list(group, *step, buffers)
        if attended is None:
            # The chunk's own keys need no decoding: meanwhile others are decoded.
            _attend_own_in_passes(group, own, cut.pass_tokens[-1], buffers)
        for step in steps[num_shaped:]:
            _attend_list(group, *step, buffers)
        group.finish()
    return output


def _tile(query: Tensor, kinds: Sequence[Operands]) -> launch.Tile:
    """Tile of the kernel that attends to the longest lists."""
    table = launch.attend_table(query.device)
    if INT8 in kinds and query.shape[3] in (64, 128) and launch.has_hopper_kernel(query.device, query.dtype):
        return launch.HOPPER
    return table.fp8 if any(kind.value is not None for kind in kinds) else table.wide


class _Buffers:
    """The workspace's buffers in turn: one is filled on a stream of its own, and another attended to.

    A single buffer is filled and attended to on the caller's stream.

    Args:
        starts: First byte of each buffer.
    """

    def __init__(self, starts: Sequence[int], device: torch.device) -> None:
        self._starts = starts
        self._device = device
        self._turn = 0
        self._read: list[torch.cuda.Event | None] = [None] * len(starts)
        self._stream = None
        if device.type == "cuda" and len(starts) > 1:
            self._stream = _filling_stream(device)
            # What is decoded was written, and the workspace last read, on the caller's stream.
            self._stream.wait_stream(torch.cuda.current_stream(device))

    @contextmanager
    def filled(self) -> Iterator[int]:
        """Start of the next buffer, to be filled; when the block ends, the caller's stream waits for that."""
        self._turn = (self._turn + 1) % len(self._starts)
        start = self._starts[self._turn]
        if self._stream is None:
            yield start
            return
        read = self._read[self._turn]
        if read is not None:
            self._stream.wait_event(read)
        with torch.cuda.stream(self._stream):
            yield start
        torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def done(self) -> None:
        """The buffer filled last has been attended to, as far as the caller's stream is concerned."""
        if self._stream is not None:
            self._read[self._turn] = torch.cuda.current_stream(self._device).record_event()


@cache
def _filling_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _attend_list(
    group: HeadGroup, blocks: BlockList, scales: Scales, operands: Operands,
    passes: Sequence[Tiles], buffers: _Buffers,
) -> None:  # fmt: skip
    batch, is_e4m3 = blocks.key.table.batch, operands.value is not None
    # Blocks that are read as bf16 may be decoded in scales all the same.
    used = Scales() if operands is BF16 else scales
    if used.smoothing is not None:
        group.round_queries(used.smoothing, batch)
    for tiles in passes:
        with buffers.filled() as start:
            pair = group.pair(start, batch, tiles.pitch, operands)
            where = group.first, group.heads
            key_target = DecodeTarget(pair.key, *where, scales.key, used.smoothing, is_reordered=is_e4m3)
            value_target = DecodeTarget(pair.value, *where, scales.value, None, is_transposed=is_e4m3)
            blocks.key.reader.decode(blocks.key.table, tiles, key_target)
            blocks.value.reader.decode(blocks.value.table, tiles, value_target)
        group.attend(pair, used, tiles.num_tokens, operands, batch)
        buffers.done()
    if blocks.matrix is not None:
        group.shape(blocks.matrix)


def _attend_own(
    query: Tensor, own: OwnKeys, fused: Fused, workspace: Workspace, *, reads_values: bool
) -> tuple[Tensor, Tensor]:
    """Attend to the chunk's own keys by the library: its output, and the logsumexp.

    All heads at once, however they are grouped for the history. They have the workspace for themselves:
    nothing of the history is there yet.
    """
    tokens = slice(0, own.num_tokens)
    key, *room = workspace.keep(_own_room, own.key.shape, query.dtype, 1 if reads_values else 2)
    value = own.value
    if room:
        (value,) = room
        copy_placed(form_of(own.value_placement), own.value, tokens, value)
    copy_placed(form_of(own.key_placement), own.key, tokens, key)
    return fused(query, key, value)


def _own_room(buffer: Tensor, shape: torch.Size, wide: torch.dtype, count: int) -> list[Tensor]:
    """`count` tensors of a shape."""
    num_bytes = shape.numel() * wide.itemsize
    return [part.view(wide).view(shape) for part in buffer[: count * num_bytes].split(num_bytes)]


def _attend_own_in_passes(group: HeadGroup, own: OwnKeys, pass_tokens: int, buffers: _Buffers) -> None:
    batch, heads, _, head_dim = group.query.shape
    some = slice(group.first, group.first + heads)
    for first in range(0, own.num_tokens, pass_tokens):
        tokens = slice(first, min(first + pass_tokens, own.num_tokens))
        num_tokens = tokens.stop - first
        pitch = launch.round_up(num_tokens, launch.KEY_ALIGNMENT)
        with buffers.filled() as start:
            pair = group.pair(start, batch, pitch, BF16)
            key, value = (side.view(batch, heads, pitch, head_dim) for side in (pair.key, pair.value))
            copy_placed(form_of(own.key_placement), own.key[:, some, tokens], tokens, key)
            copy_placed(form_of(own.value_placement), own.value[:, some, tokens], tokens, value)
        group.attend(pair, Scales(), num_tokens, BF16, batch)
        buffers.done()
