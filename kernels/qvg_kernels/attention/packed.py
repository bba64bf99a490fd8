"""Attention over a packed history by kernels: a part of the keys is decoded, attended to, overwritten."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from qvg_kernels.attention.blocks import Run, Tiles, decode_part, runs_of
from qvg_kernels.attention.fused import Fused, choose_fused
from qvg_kernels.attention.heads import Group, Units, group_of, pair_of, rounded_bytes
from qvg_kernels.attention.history import GivenSegment, History
from qvg_kernels.attention.operands import BF16, INT8, Operands
from qvg_kernels.attention.tiling import PART_ALIGNMENT, cut_attention, round_up
from qvg_kernels.attention.workspace import Workspace
from qvg_kernels.rope.kernels import copy_placed
from qvg_kernels.runtime import launch
from qvg_kernels.runtime.warmup import rehearse


def attend(
    query: Tensor, history: History, given: GivenSegment, workspace: Workspace, operands: Operands
) -> Tensor | None:
    """See `reference.attend`; none if a segment's scheme has no kernels.

    Args:
        operands: What packed runs are read as.
    """
    if "kinds" not in history.prepared:
        history.prepared["kinds"] = frozenset(
            (s.key_codec.spec, s.value_codec.spec, type(s.value_placement)) for s in history.segments
        )
    key = (query.shape, query.stride(), query.dtype, query.device, operands, history.prepared["kinds"])

    def rehearsal() -> None:
        # What kernels prepare is not kept, since none has run.
        _attend(query, History(history.segments), given, workspace, operands)

    rehearse(query.device, key, rehearsal)
    return _attend(query, history, given, workspace, operands)


def _attend(
    query: Tensor, history: History, given: GivenSegment, workspace: Workspace, operands: Operands
) -> Tensor | None:
    runs = _prepared_runs(history)
    if runs is None:
        return None
    batch, heads, num_queries, head_dim = query.shape
    device = query.device
    kinds = [operands if run.is_packed else BF16 for run in runs]
    blocks = _blocks(query, kinds)
    sizes = [
        (run.num_tokens, run.batch * kind.pair_bytes(query.dtype))
        for run, kind in zip(runs, kinds, strict=True)
    ]
    cut = cut_attention(
        batch, heads, num_queries, head_dim,
        (*sizes, (given.num_tokens, batch * BF16.pair_bytes(query.dtype))), workspace.limit_bytes,
        blocks.queries, launch.programs_at_once(device, blocks),
        *((1, rounded_bytes(num_queries, head_dim)) if blocks is launch.HOPPER else (2, 0)),
    )  # fmt: skip
    # Queries of a token lie together, so that joining the heads moves nothing.
    output = query.new_empty(batch, num_queries, heads, head_dim).transpose(1, 2)
    groups = [slice(first, min(first + cut.heads, heads)) for first in range(0, heads, cut.heads)]
    # Before the other stream waits for this one.
    parts = [run.parts(tokens, device) for run, tokens in zip(runs, cut.part_tokens[:-1], strict=True)]
    units = [[_units(run, some) for run in runs] for some in groups]
    own_bytes = _own_bytes(given, query.dtype)
    fused = choose_fused(query, given.key, given.value) if own_bytes <= workspace.limit_bytes else None
    buffer = workspace.take(max(cut.workspace_bytes, 0 if fused is None else own_bytes), device)
    own = None if fused is None else _attend_own(query, given, fused, buffer)
    key_buffer = buffer[cut.query_bytes + cut.state_bytes : cut.workspace_bytes]
    buffers = _Buffers(key_buffer.split(cut.part_bytes), device)
    for some, group_units in zip(groups, units, strict=True):
        group = group_of(query, output, some, cut, buffer)
        if own is not None:
            group.own = own[0][:, some], own[1][:, some]
        else:
            # The chunk's own keys need no decoding: meanwhile the first of the others are decoded.
            _attend_given(group, given, cut.part_tokens[-1], buffers)
        for run, run_units, kind, tiles in zip(runs, group_units, kinds, parts, strict=True):
            _attend_run(group, run, run_units, kind, tiles, buffers, heads)
        group.finish()
    return output


def _blocks(query: Tensor, kinds: Sequence[Operands]) -> launch.AttendBlocks:
    """Of the kernel that attends to the longest runs."""
    table = launch.attend_table(query.device)
    if INT8 in kinds and query.shape[3] in (64, 128) and launch.has_hopper_kernel(query.device, query.dtype):
        return launch.HOPPER
    return table.fp8 if any(kind.value is not None for kind in kinds) else table.wide


class _Buffers:
    """The workspace's buffers in turn: one is filled on a stream of its own, and another attended to.

    A single buffer is filled and attended to on the caller's stream.
    """

    def __init__(self, buffers: Sequence[Tensor], device: torch.device) -> None:
        self._buffers = buffers
        self._turn = 0
        self._read: list[torch.cuda.Event | None] = [None] * len(buffers)
        self._stream = None
        if device.type == "cuda" and len(buffers) > 1:
            self._stream = _filling_stream(device)
            # What is decoded was written, and the workspace last read, on the caller's stream.
            self._stream.wait_stream(torch.cuda.current_stream(device))

    @contextmanager
    def filled(self) -> Iterator[Tensor]:
        """The next buffer, to be filled; when the block ends, the caller's stream waits for that."""
        self._turn = (self._turn + 1) % len(self._buffers)
        buffer = self._buffers[self._turn]
        if self._stream is None:
            yield buffer
            return
        read = self._read[self._turn]
        if read is not None:
            self._stream.wait_event(read)
        with torch.cuda.stream(self._stream):
            yield buffer
        torch.cuda.current_stream(buffer.device).wait_stream(self._stream)

    def done(self) -> None:
        """The buffer filled last has been attended to, as far as the caller's stream is concerned."""
        if self._stream is not None:
            device = self._buffers[self._turn].device
            self._read[self._turn] = torch.cuda.current_stream(device).record_event()


@cache
def _filling_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _prepared_runs(history: History) -> list[Run] | None:
    if "runs" not in history.prepared:
        history.prepared["runs"] = runs_of(history.segments)
    runs: list[Run] | None = history.prepared["runs"]
    return runs


def _attend_run(
    group: Group,
    run: Run,
    units: Units,
    operands: Operands,
    parts: Sequence[Tiles],
    buffers: _Buffers,
    total_heads: int,
) -> None:
    head_dim, wide = group.query.shape[3], group.query.dtype
    heads = (run.batch, total_heads, group.first, group.heads)
    rows = run.batch * group.heads
    is_e4m3 = operands.value is not None
    numbers = Units() if operands is BF16 else units
    if numbers.factors is not None:
        group.round_queries(numbers.factors, run.batch)
    for tiles in parts:
        pitch = round_up(tiles.num_tokens, PART_ALIGNMENT)
        with buffers.filled() as buffer:
            key, value = pair_of(buffer, rows * pitch, head_dim, operands.key or wide, operands.value or wide)
            value = value.view(rows * head_dim, pitch) if is_e4m3 else value
            decode_part(
                run.key, tiles, heads, head_dim, key, units.key, numbers.factors, pitch, reorders=is_e4m3
            )
            decode_part(
                run.value, tiles, heads, head_dim, value, units.value, None, pitch, transposes=is_e4m3
            )
        group.attend(key, value, numbers, tiles.num_tokens, operands, run.batch)
        buffers.done()


def _own_bytes(given: GivenSegment, wide: torch.dtype) -> int:
    """Of the chunk's own keys, placed, and of its values if they are not read where they are."""
    sides = 1 if _reads_values(given, wide) else 2
    return sides * given.key.numel() * wide.itemsize


def _reads_values(given: GivenSegment, wide: torch.dtype) -> bool:
    return given.value_placement is None and given.value.dtype == wide


def _attend_own(query: Tensor, given: GivenSegment, fused: Fused, buffer: Tensor) -> tuple[Tensor, Tensor]:
    """Attend to the chunk's own keys by the library: its output, and the logsumexp.

    All heads at once, however they are grouped for the history. They have the workspace for themselves:
    nothing of the history is there yet.
    """
    tokens, wide = slice(0, given.num_tokens), query.dtype
    rows = given.key.numel() // given.key.shape[3]
    if _reads_values(given, wide):
        key, value = buffer[: rows * given.key.shape[3] * wide.itemsize].view(wide), given.value
    else:
        key, value = pair_of(buffer, rows, given.key.shape[3], wide, wide)
        value = value.view(given.value.shape)
        copy_placed(given.value_placement, given.value, tokens, value)
    key = key.view(given.key.shape)
    copy_placed(given.key_placement, given.key, tokens, key)
    return fused(query, key, value)


def _attend_given(group: Group, given: GivenSegment, part_tokens: int, buffers: _Buffers) -> None:
    """Attend to the chunk's own keys in parts."""
    batch, heads, _, head_dim = group.query.shape
    some, wide = slice(group.first, group.first + heads), group.query.dtype
    for start in range(0, given.num_tokens, part_tokens):
        tokens = slice(start, min(start + part_tokens, given.num_tokens))
        num_tokens = tokens.stop - start
        pitch = round_up(num_tokens, PART_ALIGNMENT)
        with buffers.filled() as buffer:
            key, value = pair_of(buffer, group.rows * pitch, head_dim, wide, wide)
            shape = (batch, heads, pitch, head_dim)
            copy_placed(given.key_placement, given.key[:, some, tokens], tokens, key.view(shape))
            copy_placed(given.value_placement, given.value[:, some, tokens], tokens, value.view(shape))
        group.attend(key, value, Units(), num_tokens, BF16, batch)
        buffers.done()


def _units(run: Run, heads: slice) -> Units:
    """Units of some heads."""
    found = (run.key.head_units, run.key.factors, run.value.head_units)
    return Units(*(None if each is None else each[:, heads].flatten(0, 1) for each in found))
