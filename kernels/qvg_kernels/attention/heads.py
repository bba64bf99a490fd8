"""A group of heads on its way through the keys: its queries, its state, and the kernels that change it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from qvg_kernels.attention.combine import merge_kernel, shape_kernel
from qvg_kernels.attention.kernels import VERSIONS, attend_kernel, round_queries_kernel
from qvg_kernels.attention.tiling import FLAG_QUERIES, Cut
from qvg_kernels.codecs.reading import HeadScales
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
class Scales:
    """What the 8-bit numbers of some heads count; `None` where blocks are not packed.

    Attributes:
        key: `[B * h]`.
        smoothing: `[B * h, D]` smoothing factors of int8 keys.
        value: `[B * h]`.
    """

    key: Tensor | None = None
    smoothing: Tensor | None = None
    value: Tensor | None = None

    @classmethod
    def of(cls, key: HeadScales | None, value: HeadScales | None, heads: slice) -> Scales:
        """Those of `heads`, of keys and of values."""
        sides = key and (key.scale, key.smoothing), value and (value.scale,)
        found = (*(sides[0] or (None, None)), *(sides[1] or (None,)))
        return cls(*(None if each is None else each[:, heads].flatten(0, 1) for each in found))


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
    """A group's queries in int8, `[VERSIONS * B * h * pitch, D]`, and their units `[B * h, S]`."""

    values: Tensor
    units: Tensor
    pitch: int


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
    num_states: int = 0
    own: tuple[Tensor, Tensor] | None = None

    @property
    def rows(self) -> int:
        """Heads of all items of the batch."""
        return self.query.shape[0] * self.heads

    def attend(
        self, key: Tensor, value: Tensor, scales: Scales, num_keys: int, operands: Operands, key_batch: int
    ) -> None:
        """Take `num_keys` keys into the state.

        Args:
            key: `[key_batch * h * pitch, D]`.
            value: Likewise, or `[key_batch * h * D, pitch]` if they are e4m3.
            scales: Of keys and values that are int8 or e4m3.
            key_batch: Items of the batch that keys are given for; one serves all items of the queries.
        """
        table = launch.attend_table(key.device)
        tile = table.wide if operands.value is None else table.fp8
        flags = None
        if self.rounded is not None and operands is INT8:
            self._attend_hopper(self.rounded, key, value, scales, num_keys, key_batch)
            # Splits have to be those of the flags.
            tile, flags = replace(table.wide, rows=FLAG_QUERIES), self.state.flags
        num_queries, head_dim = self.query.shape[2:]
        key_rows = key_batch * self.heads
        key_tile = [tile.keys, head_dim]
        value_tile = key_tile if operands.value is None else key_tile[::-1]
        state = self.state
        attend_kernel[(-(-num_queries // tile.rows), self.rows, self.splits)](
            self.query, TensorDescriptor.from_tensor(key, key_tile),
            TensorDescriptor.from_tensor(value, value_tile),
            scales.key, scales.smoothing, scales.value, state.maximum, state.total, state.output,
            *self.query.stride()[:3],
            self.heads, key_rows, num_queries, num_keys, _split_keys(num_keys, self.splits),
            key.shape[0] // key_rows, min(self.num_states, 1), head_dim**-0.5, flags,
            IS_INT8=operands.key is not None, IS_E4M3=operands.value is not None,
            HEAD_DIM=head_dim, TILE_M=tile.rows, TILE_N=tile.keys, STAGES=tile.stages,
            num_warps=tile.warps, maxnreg=tile.registers,
        )  # fmt: skip
        self.num_states = self.splits

    def _attend_hopper(
        self,
        rounded: _RoundedQueries,
        key: Tensor,
        value: Tensor,
        scales: Scales,
        num_keys: int,
        key_batch: int,
    ) -> None:
        """What `attend` does, but for queries that get a flag."""
        from qvg_kernels.attention.hopper import REGISTERS, attend_hopper_kernel, described

        num_queries, head_dim = self.query.shape[2:]
        tile, key_rows, state = launch.HOPPER, key_batch * self.heads, self.state
        attend_hopper_kernel[(rounded.pitch // tile.rows, self.rows, self.splits)](
            described(rounded.values, FLAG_QUERIES), described(key, tile.keys),
            described(value, tile.keys), rounded.units, scales.key,
            state.maximum, state.total, state.output, state.flags,
            key_rows, num_queries, rounded.pitch, num_keys, _split_keys(num_keys, self.splits),
            key.shape[0] // key_rows, min(self.num_states, 1), head_dim**-0.5,
            HEAD_DIM=head_dim, TILE_N=tile.keys, STAGES=tile.stages,
            ATTEND_REGISTERS=REGISTERS[0], LOAD_REGISTERS=REGISTERS[1],
            num_warps=tile.warps, maxnreg=tile.registers,
        )  # fmt: skip

    def round_queries(self, factors: Tensor, key_batch: int) -> None:
        """Round the queries for `attend_hopper`, if that is to run, to meet keys with these factors."""
        if self.rounded is None:
            return
        rounded, (num_queries, head_dim) = self.rounded, self.query.shape[2:]
        round_queries_kernel[(-(-rounded.pitch // launch.PLACE_TOKENS), self.rows)](
            self.query, factors, rounded.values, rounded.units, *self.query.stride()[:3],
            self.heads, key_batch * self.heads, num_queries, rounded.pitch,
            HEAD_DIM=head_dim, TILE_M=launch.PLACE_TOKENS, num_warps=4,
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
        merge_kernel[(-(-num_queries // launch.PLACE_TOKENS), self.rows)](
            state.maximum, state.total, state.output, own, logsumexp, self.output,
            *_strides(own), *_strides(logsumexp), *_strides(self.output),
            self.heads, num_queries, self.num_states,
            HEAD_DIM=head_dim, TILE_M=launch.PLACE_TOKENS, num_warps=4,
        )  # fmt: skip


def _strides(states: Tensor | None) -> tuple[int, ...]:
    """Strides of batch, head and token."""
    return (0, 0, 0) if states is None else states.stride()[:3]


def _split_keys(num_keys: int, splits: int) -> int:
    """Keys of a split, which are a multiple of every kernel's tile."""
    return launch.round_up(-(-num_keys // splits), launch.KEY_ALIGNMENT)


def rounded_bytes(num_queries: int, head_dim: int) -> int:
    """Bytes of one head's rounded queries."""
    query_bytes: int = VERSIONS.value * head_dim + 4
    return launch.round_up(num_queries, launch.HOPPER.rows) * query_bytes


def group_of(query: Tensor, output: Tensor, some: slice, cut: Cut, buffer: Tensor) -> HeadGroup:
    """Some heads, with their share of the workspace, and room for rounded queries if the cut has any."""
    batch, _, num_queries, head_dim = query.shape
    heads = some.stop - some.start
    rows, own = batch * heads, query[:, some]
    rounded = None
    if cut.query_bytes:
        pitch = launch.round_up(num_queries, launch.HOPPER.rows)
        values, units = buffer[: rows * rounded_bytes(num_queries, head_dim)].split(
            [VERSIONS.value * rows * pitch * head_dim, rows * pitch * 4]
        )
        rounded = _RoundedQueries(
            values.view(torch.int8).view(-1, head_dim), units.view(torch.float32), pitch
        )
    shape = cut.splits, rows, num_queries
    count, flags = cut.splits * rows * num_queries, cut.splits * rows * -(-num_queries // FLAG_QUERIES)
    numbers = buffer[cut.query_bytes :][: (count * (head_dim + 2) + flags) * 4].view(torch.float32)
    maximum, total, gathered, last = numbers.split([count, count, count * head_dim, flags])
    state = _State(
        maximum.view(shape), total.view(shape), gathered.view(*shape, head_dim), last.view(torch.int32)
    )
    return HeadGroup(own, output[:, some], some.start, heads, cut.splits, state, rounded)


def pair_of(
    buffer: Tensor, rows: int, head_dim: int, key_dtype: torch.dtype, value_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Keys and values `[rows, D]` in the workspace."""
    sizes = [rows * head_dim * dtype.itemsize for dtype in (key_dtype, value_dtype)]
    key, value = buffer[: sum(sizes)].split(sizes)
    return key.view(key_dtype).view(rows, head_dim), value.view(value_dtype).view(rows, head_dim)
