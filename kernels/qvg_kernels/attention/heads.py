"""A group of heads on its way through the keys: its queries, its state, and the kernels that change it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from qvg_kernels.attention.blocks import Scales
from qvg_kernels.attention.combine import merge_kernel, shape_kernel
from qvg_kernels.attention.history import Workspace
from qvg_kernels.attention.kernels import VERSIONS, attend_kernel, round_queries_kernel
from qvg_kernels.attention.tiling import FLAG_QUERIES, Cut
from qvg_kernels.runtime import launch
from qvg_kernels.runtime.dispatch import has_fp8


@dataclass(frozen=True)
class Operands:
    """What packed keys and values become in the workspace; `None` is the dtype of the queries.

    Queries are rounded as keys are, weights as values. A rounded query errs alike for all of its keys, and
    int8 rounds it more finely than e4m3 at the same speed. e4m3 values add more to the output's error than
    int8 keys do, so they are taken only where they save time (docs/results.md).

    Attributes:
        words: How a report names them.
    """

    key: torch.dtype | None
    value: torch.dtype | None
    words: str

    def pair_bytes(self, wide: torch.dtype) -> int:
        """Bytes of one channel of a key and of its value, where queries are `wide`."""
        return (self.key or wide).itemsize + (self.value or wide).itemsize


BF16 = Operands(None, None, "bf16")
INT8 = Operands(torch.int8, None, "int8 and bf16")
FP8 = Operands(torch.int8, torch.float8_e4m3fn, "int8 and fp8")

ASKED = {"bf16": BF16, "int8": INT8, "fp8": FP8}


def choose(arithmetic: str, device: torch.device, dtype: torch.dtype) -> Operands:
    """The operands that `attend.Arithmetic` means on a device, for queries of `dtype`."""
    if arithmetic in ASKED:
        return ASKED[arithmetic]
    if launch.has_hopper_kernel(device, dtype):
        return INT8
    return FP8 if has_fp8(device) else BF16


@dataclass(frozen=True)
class _State:
    """What a group has of the keys so far, one state for each split.

    Attributes:
        total: As `maximum`, `[splits, B * h, S]`.
        output: `[splits, B * h, S, D]`.
        flags: `[splits, B * h, S / 64]`: where `attend_hopper` left queries to `attend_kernel`.
    """

    maximum: Tensor
    total: Tensor
    output: Tensor
    flags: Tensor


@dataclass(frozen=True)
class _RoundedQueries:
    """A group's queries in int8, `[VERSIONS * B * h * pitch, D]`, and their units `[B * h, S]`.

    Attributes:
        described: The values as `attend_hopper` loads them.
    """

    values: Tensor
    units: Tensor
    pitch: int
    described: Any


@dataclass(frozen=True)
class Pair:
    """Keys and values of a pass in the workspace.

    Attributes:
        key: `[B * h * pitch, D]`.
        value: Likewise, or `[B * h * D, pitch]` if they are e4m3.
        described: Both as `attend_kernel` loads them.
        described_to_hopper: Both as `attend_hopper` does, if that is to run.
    """

    key: Tensor
    value: Tensor
    pitch: int
    described: tuple[Any, Any]
    described_to_hopper: tuple[Any, Any] | None


@dataclass
class HeadGroup:
    """A group of heads on its way through the keys.

    Attributes:
        first: Head that the group begins with.
        splits: Of each pass's keys.
        num_states: That hold something so far: 0 or `splits`.
        rounded: For `attend_hopper`, if that is to run.
        own: Attention to keys that are in no state, and their logsumexp, as `combine.choose_fused` makes
            them.
    """

    query: Tensor
    output: Tensor
    first: int
    heads: int
    splits: int
    state: _State
    rounded: _RoundedQueries | None
    workspace: Workspace
    table: launch.AttendTable
    num_states: int = 0
    own: tuple[Tensor, Tensor] | None = None

    @property
    def rows(self) -> int:
        """Heads of all items of the batch."""
        return self.query.shape[0] * self.heads

    def pair(self, start: int, batch: int, pitch: int, operands: Operands) -> Pair:
        """Room from byte `start` of the workspace on, for keys and values of `batch` items."""
        tile = self.table.wide if operands.value is None else self.table.fp8
        sizes = batch * self.heads, pitch, self.query.shape[3]
        has_hopper = self.rounded is not None and operands is INT8
        return self.workspace.keep(_pair_of, start, *sizes, operands, self.query.dtype, tile.keys, has_hopper)

    def attend(self, pair: Pair, scales: Scales, num_keys: int, operands: Operands, key_batch: int) -> None:
        """Take `num_keys` keys into the state.

        Args:
            scales: Of keys and values that are int8 or e4m3.
            key_batch: Items of the batch that keys are given for; one serves all items of the queries.
        """
        num_queries, head_dim = self.query.shape[2:]
        state, rounded, key_rows = self.state, self.rounded, key_batch * self.heads
        # Keys of a split, which are a multiple of every kernel's tile.
        split_keys = launch.round_up(-(-num_keys // self.splits), launch.KEY_ALIGNMENT)
        has_state, scale = min(self.num_states, 1), head_dim**-0.5
        flags = None
        if rounded is not None and pair.described_to_hopper is not None:
            from qvg_kernels.attention.hopper import REGISTERS, attend_hopper_kernel

            # Queries with a flag are left to `attend_kernel`.
            flags, tile = state.flags, launch.HOPPER
            attend_hopper_kernel[(rounded.pitch // tile.rows, self.rows, self.splits)](
                rounded.described, *pair.described_to_hopper, rounded.units, scales.key,
                state.maximum, state.total, state.output, flags,
                key_rows, num_queries, rounded.pitch, num_keys, split_keys, pair.pitch, has_state, scale,
                HEAD_DIM=head_dim, TILE_N=tile.keys, STAGES=tile.stages,
                ATTEND_REGISTERS=REGISTERS[0], LOAD_REGISTERS=REGISTERS[1],
                num_warps=tile.warps, maxnreg=tile.registers,
            )  # fmt: skip
        tile = self.table.wide if operands.value is None else self.table.fp8
        attend_kernel[(-(-num_queries // tile.rows), self.rows, self.splits)](
            self.query, *pair.described, scales.key, scales.smoothing, scales.value,
            state.maximum, state.total, state.output, *self.query.stride()[:3],
            self.heads, key_rows, num_queries, num_keys, split_keys, pair.pitch, has_state, scale, flags,
            IS_INT8=operands.key is not None, IS_E4M3=operands.value is not None,
            HEAD_DIM=head_dim, TILE_M=tile.rows, TILE_N=tile.keys, STAGES=tile.stages,
            num_warps=tile.warps, maxnreg=tile.registers,
        )  # fmt: skip
        self.num_states = self.splits

    def round_queries(self, factors: Tensor, key_batch: int) -> None:
        """Round the queries for `attend_hopper`, if that is to run, to meet keys with these factors."""
        if self.rounded is None:
            return
        rounded, (num_queries, head_dim) = self.rounded, self.query.shape[2:]
        round_queries_kernel[(-(-rounded.pitch // launch.PLACE_TOKENS), self.rows)](
            self.query, factors, rounded.values, rounded.units, *self.query.stride()[:3],
            self.heads, key_batch * self.heads, num_queries, rounded.pitch,
            HEAD_DIM=head_dim, TILE_M=launch.PLACE_TOKENS, num_warps=1,
        )  # fmt: skip

    def shape(self, matrix: Tensor) -> None:
        """Multiply what the states have of values by the matrices `[b, H, D, D]` of their heads."""
        state, (num_queries, head_dim) = self.state, self.query.shape[2:]
        if not self.num_states:
            return
        shape_kernel[(-(-num_queries // launch.SHAPE.rows), self.rows, self.splits)](
            state.output, matrix, self.heads, matrix.shape[0] * self.heads, matrix.shape[1], self.first,
            num_queries, HEAD_DIM=head_dim, TILE_M=launch.SHAPE.rows, num_warps=launch.SHAPE.warps,
        )  # fmt: skip

    def finish(self) -> None:
        """Merge the states, and what the library made, into the output."""
        state, (num_queries, head_dim) = self.state, self.query.shape[2:]
        own, logsumexp = self.own or (None, None)
        merge_kernel[(-(-num_queries // launch.MERGE_TOKENS), self.rows)](
            state.maximum, state.total, state.output, own, logsumexp, self.output,
            *_strides(own), *_strides(logsumexp), *_strides(self.output),
            self.heads, num_queries, self.num_states,
            HEAD_DIM=head_dim, TILE_M=launch.MERGE_TOKENS, num_warps=4,
        )  # fmt: skip


def _strides(states: Tensor | None) -> tuple[int, ...]:
    """Strides of batch, head and token."""
    return (0, 0, 0) if states is None else states.stride()[:3]


def rounded_bytes(num_queries: int, head_dim: int) -> int:
    """Bytes of one head's rounded queries."""
    query_bytes: int = VERSIONS.value * head_dim + 4
    return launch.round_up(num_queries, launch.HOPPER.rows) * query_bytes


def group_of(query: Tensor, output: Tensor, some: slice, cut: Cut, workspace: Workspace) -> HeadGroup:
    """Some heads, with their share of the workspace, and room for rounded queries if the cut has any."""
    batch, _, num_queries, head_dim = query.shape
    heads, table = some.stop - some.start, launch.attend_table(query.device)
    state, rounded = workspace.keep(_room_of, cut, batch * heads, num_queries, head_dim)
    # All heads as they are: a slice takes time.
    query, output = (query, output) if heads == query.shape[1] else (query[:, some], output[:, some])
    return HeadGroup(query, output, some.start, heads, cut.splits, state, rounded, workspace, table)


def _room_of(
    buffer: Tensor, cut: Cut, rows: int, num_queries: int, head_dim: int
) -> tuple[_State, _RoundedQueries | None]:
    rounded = None
    if cut.query_bytes:
        from qvg_kernels.attention.hopper import described

        pitch = launch.round_up(num_queries, launch.HOPPER.rows)
        values, units = buffer[: rows * rounded_bytes(num_queries, head_dim)].split(
            [VERSIONS.value * rows * pitch * head_dim, rows * pitch * 4]
        )
        values = values.view(torch.int8).view(-1, head_dim)
        rounded = _RoundedQueries(values, units.view(torch.float32), pitch, described(values, FLAG_QUERIES))
    shape = cut.splits, rows, num_queries
    count, flags = cut.splits * rows * num_queries, cut.splits * rows * -(-num_queries // FLAG_QUERIES)
    numbers = buffer[cut.query_bytes :][: (count * (head_dim + 2) + flags) * 4].view(torch.float32)
    maximum, total, gathered, last = numbers.split([count, count, count * head_dim, flags])
    state = _State(
        maximum.view(shape), total.view(shape), gathered.view(*shape, head_dim), last.view(torch.int32)
    )
    return state, rounded


def _pair_of(
    buffer: Tensor, start: int, rows: int, pitch: int, head_dim: int,
    operands: Operands, wide: torch.dtype, tile_keys: int, has_hopper: bool,
) -> Pair:  # fmt: skip
    dtypes = operands.key or wide, operands.value or wide
    sizes = [rows * pitch * head_dim * dtype.itemsize for dtype in dtypes]
    key, value = (
        part.view(dtype).view(-1, head_dim)
        for part, dtype in zip(buffer[start : start + sum(sizes)].split(sizes), dtypes, strict=True)
    )
    key_tile = [tile_keys, head_dim]
    value_tile = key_tile
    if operands.value is not None:
        value, value_tile = value.view(rows * head_dim, pitch), key_tile[::-1]
    to_hopper = None
    if has_hopper:
        from qvg_kernels.attention.hopper import described

        to_hopper = described(key, launch.HOPPER.keys), described(value, launch.HOPPER.keys)
    to_all = TensorDescriptor.from_tensor(key, key_tile), TensorDescriptor.from_tensor(value, value_tile)
    return Pair(key, value, pitch, to_all, to_hopper)
