"""Attention over a packed history by kernels: a part of the keys is decoded, attended to, overwritten."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from qvg_kernels.gpu import launch
from qvg_kernels.gpu.attend import attend_kernel
from qvg_kernels.gpu.budget import PART_ALIGNMENT, cut_attention, round_up
from qvg_kernels.gpu.place import copy_placed
from qvg_kernels.gpu.rehearsal import rehearse
from qvg_kernels.gpu.runs import Run, Side, Tiles, decode_part, runs_of
from qvg_kernels.segments import GivenSegment, History
from qvg_kernels.workspace import Workspace

_Units = tuple[Tensor | None, Tensor | None]
"""Of keys and of values."""


@dataclass
class _Group:
    """A group of heads on its way through the keys.

    Attributes:
        first: Head that the group begins with.
        splits: Of each part's keys.
        num_states: That hold something so far: none or `splits`.
        state: Maximum `[splits, B * h, S]`, total likewise, and output `[splits, B * h, S, D]`.
    """

    query: Tensor
    output: Tensor
    first: int
    heads: int
    splits: int
    state: tuple[Tensor, Tensor, Tensor]
    num_states: int = 0

    @property
    def rows(self) -> int:
        """Heads of all items of the batch."""
        return self.query.shape[0] * self.heads

    def attend(
        self,
        key: Tensor,
        value: Tensor,
        units: _Units | None,
        num_keys: int,
        is_final: bool,
        key_batch: int,
    ) -> None:
        """Take `num_keys` keys into the state, or, as the last, into the output.

        Args:
            key: `[key_batch * h * pitch, D]`.
            value: Likewise, or `[key_batch * h * D, pitch]` where `units`, those of keys and values, say 8
                bits.
            key_batch: Items of the batch that keys are given for; one serves all items of the queries.
        """
        num_queries, head_dim = self.query.shape[2:]
        table = launch.attend_table(key.device)
        blocks = table.wide if units is None else table.fp8
        splits = 1 if is_final else self.splits
        key_rows = key_batch * self.heads
        keys_per_split = round_up(-(-num_keys // splits), blocks.keys)
        key_block = [blocks.keys, head_dim]
        value_block = key_block if units is None else key_block[::-1]
        attend_kernel[(-(-num_queries // blocks.queries), self.rows, splits)](
            self.query, TensorDescriptor.from_tensor(key, key_block),
            TensorDescriptor.from_tensor(value, value_block),
            *(units or (None, None)), *self.state, self.output,
            *self.query.stride()[:3], *self.output.stride()[:3],
            self.heads, key_rows, num_queries, num_keys, keys_per_split, key.shape[0] // key_rows,
            self.num_states if is_final else min(self.num_states, 1), head_dim**-0.5,
            IS_FP8=units is not None, IS_FINAL=is_final, HEAD_DIM=head_dim,
            BLOCK_M=blocks.queries, BLOCK_N=blocks.keys, STAGES=blocks.stages,
            num_warps=blocks.warps, maxnreg=blocks.registers,
        )  # fmt: skip
        self.num_states = self.splits

    def finish(self, buffer: Tensor) -> None:
        """Merge the states into the output: a last call without keys, `buffer` stands in for them."""
        blocks = launch.attend_table(buffer.device).wide
        nothing, _ = _pair(buffer, blocks.keys, self.query.shape[3], self.query.dtype)
        self.attend(nothing, nothing, None, 0, is_final=True, key_batch=self.query.shape[0])


def attend(
    query: Tensor, history: History, given: GivenSegment, workspace: Workspace, *, uses_fp8: bool
) -> Tensor | None:
    """See `qvg_kernels.attention.attend`; none if a segment's scheme has no kernels.

    Args:
        uses_fp8: Whether packed runs are read as int8 keys and e4m3 values.
    """
    if "kinds" not in history.prepared:
        history.prepared["kinds"] = frozenset(
            (s.key_codec.spec, s.value_codec.spec, type(s.value_placement)) for s in history.segments
        )
    key = (query.shape, query.stride(), query.dtype, query.device, uses_fp8, history.prepared["kinds"])

    def rehearsal() -> None:
        # What kernels prepare is not kept, since none has run.
        _attend(query, History(history.segments), given, workspace, uses_fp8)

    rehearse(query.device, key, rehearsal)
    return _attend(query, history, given, workspace, uses_fp8)


def _attend(
    query: Tensor, history: History, given: GivenSegment, workspace: Workspace, uses_fp8: bool
) -> Tensor | None:
    runs = _prepared_runs(history)
    if runs is None:
        return None
    batch, heads, num_queries, head_dim = query.shape
    device = query.device
    fp8_runs = [uses_fp8 and run.is_packed for run in runs]
    table = launch.attend_table(device)
    blocks = table.fp8 if any(fp8_runs) else table.wide
    wide = query.element_size()
    sizes = [
        (run.num_tokens, run.batch * (1 if is_fp8 else wide))
        for run, is_fp8 in zip(runs, fp8_runs, strict=True)
    ]
    cut = cut_attention(
        batch, heads, num_queries, head_dim, [*sizes, (given.num_tokens, batch * wide)],
        workspace.limit_bytes, blocks.queries, launch.programs_at_once(device),
    )  # fmt: skip
    # Queries of a token lie together, so that joining the heads moves nothing.
    output = query.new_empty(batch, num_queries, heads, head_dim).transpose(1, 2)
    groups = [slice(first, min(first + cut.heads, heads)) for first in range(0, heads, cut.heads)]
    # Before the other stream waits for this one.
    parts = [run.parts(tokens, device) for run, tokens in zip(runs, cut.part_tokens[:-1], strict=True)]
    units = [[(_units(run.key, some), _units(run.value, some)) for run in runs] for some in groups]
    buffer = workspace.take(cut.workspace_bytes, device)
    buffers = _Buffers(buffer[cut.state_bytes :].split(cut.part_bytes), device)
    for some, group_units in zip(groups, units, strict=True):
        state = _states(buffer, (cut.splits, batch * (some.stop - some.start), num_queries), head_dim)
        group = _Group(query[:, some], output[:, some], some.start, some.stop - some.start, cut.splits, state)
        # The chunk's own keys need no decoding: meanwhile the first of the others are decoded.
        _attend_given(group, given, cut.part_tokens[-1], buffers, is_final=not runs)
        for run, run_units, is_fp8, tiles in zip(runs, group_units, fp8_runs, parts, strict=True):
            _attend_run(group, run, run_units, is_fp8, tiles, buffers, heads)
        if runs:
            group.finish(buffer[cut.state_bytes :])
    return output


class _Buffers:
    """The workspace's buffers in turn: one is filled on its own stream while the other is attended to."""

    def __init__(self, buffers: Sequence[Tensor], device: torch.device) -> None:
        self._buffers = buffers
        self._device = device
        self._turn = 0
        self._read: list[torch.cuda.Event | None] = [None] * len(buffers)
        if device.type == "cuda":
            # What is decoded was written, and the workspace last read, on the caller's stream.
            _filling_stream(device).wait_stream(torch.cuda.current_stream(device))

    @contextmanager
    def filled(self) -> Iterator[Tensor]:
        """The next buffer, to be filled; when the block ends, the caller's stream waits for that."""
        self._turn = (self._turn + 1) % len(self._buffers)
        buffer = self._buffers[self._turn]
        if self._device.type != "cuda":
            yield buffer
            return
        stream = _filling_stream(self._device)
        read = self._read[self._turn]
        if read is not None:
            stream.wait_event(read)
        with torch.cuda.stream(stream):
            yield buffer
        torch.cuda.current_stream(self._device).wait_stream(stream)

    def done(self) -> None:
        """The buffer filled last has been attended to, as far as the caller's stream is concerned."""
        if self._device.type == "cuda":
            self._read[self._turn] = torch.cuda.current_stream(self._device).record_event()


@cache
def _filling_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _prepared_runs(history: History) -> list[Run] | None:
    if "runs" not in history.prepared:
        history.prepared["runs"] = runs_of(history.segments)
    runs: list[Run] | None = history.prepared["runs"]
    return runs


def _states(buffer: Tensor, shape: tuple[int, int, int], head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Maximum, total and output of `(splits, B * h, S)` states, float32."""
    count = math.prod(shape)
    numbers = buffer[: count * (head_dim + 2) * 4].view(torch.float32)
    return (
        numbers[:count].view(shape),
        numbers[count : 2 * count].view(shape),
        numbers[2 * count :].view(*shape, head_dim),
    )


def _attend_run(
    group: _Group,
    run: Run,
    units: _Units,
    is_fp8: bool,
    parts: Sequence[Tiles],
    buffers: _Buffers,
    total_heads: int,
) -> None:
    head_dim = group.query.shape[3]
    heads = (run.batch, total_heads, group.first, group.heads)
    rows = run.batch * group.heads
    dtype = torch.float8_e4m3fn if is_fp8 else group.query.dtype
    for tiles in parts:
        pitch = round_up(tiles.num_tokens, PART_ALIGNMENT)
        with buffers.filled() as buffer:
            key, value = _pair(buffer, rows * pitch, head_dim, dtype)
            if is_fp8:
                key, value = key.view(torch.int8), value.view(rows * head_dim, pitch)
            decode_part(run.key, tiles, heads, head_dim, key, units[0], pitch)
            decode_part(run.value, tiles, heads, head_dim, value, units[1], pitch, transposes=is_fp8)
        group.attend(
            key, value, units if is_fp8 else None, tiles.num_tokens, is_final=False, key_batch=run.batch
        )
        buffers.done()


def _attend_given(
    group: _Group, given: GivenSegment, part_tokens: int, buffers: _Buffers, *, is_final: bool
) -> None:
    batch, heads, _, head_dim = group.query.shape
    some = slice(group.first, group.first + heads)
    for start in range(0, given.num_tokens, part_tokens):
        tokens = slice(start, min(start + part_tokens, given.num_tokens))
        num_tokens = tokens.stop - start
        pitch = round_up(num_tokens, PART_ALIGNMENT)
        with buffers.filled() as buffer:
            key, value = _pair(buffer, group.rows * pitch, head_dim, group.query.dtype)
            shape = (batch, heads, pitch, head_dim)
            copy_placed(given.key_placement, given.key[:, some, tokens], tokens, key.view(shape))
            copy_placed(given.value_placement, given.value[:, some, tokens], tokens, value.view(shape))
        is_last = is_final and tokens.stop == given.num_tokens
        group.attend(key, value, None, num_tokens, is_final=is_last, key_batch=batch)
        buffers.done()


def _units(side: Side, heads: slice) -> Tensor | None:
    """`[B * h]` units of some heads; none where values are not packed."""
    if side.head_units is None:
        return None
    return side.head_units[:, heads].flatten()


def _pair(buffer: Tensor, rows: int, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two `[rows, D]` tensors in the workspace."""
    size = rows * head_dim * dtype.itemsize
    return (
        buffer[:size].view(dtype).view(rows, head_dim),
        buffer[size : 2 * size].view(dtype).view(rows, head_dim),
    )
