"""Attention of many queries to int8 keys and bf16 values on Hopper GPUs, by warps that each do one thing.

One warp loads tiles of keys and values (the tensor memory accelerator writes them to shared memory), two
groups of four warps attend to them, each for 64 queries: while one computes weights, the tensor cores work
for the other, as in FlashAttention-3 (arXiv 2407.08608). It computes what `attend.attend_kernel` does.

That kernel raises the maximum with every tile. Here it is found once, in the first tile, and gets the
weight 2**-60: later logits may be 160 higher, in base 2, before a total reaches `MOST`. Then nothing is
stored but a flag, and `attend_kernel` takes those queries.
"""

from functools import cache

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from qvg_kernels.attention.kernels import GROWING, INTEGERS, LOG2_E, LOWEST, VERSIONS, merge_states
from qvg_kernels.runtime.warmup import GROUPED, SLICED, Kernel

GROUP_QUERIES = gl.constexpr(64)
"""Queries of a group of four warps: the rows of one instruction of the tensor cores."""

GROUPS = gl.constexpr(2)
REGISTERS = (240, 24)
"""Registers of a thread that attends, and of one that loads."""

FIRST = gl.constexpr(60.0)
"""What weights begin below one, in base 2: those down to 2**-66 of the first tile's largest still count."""

MOST = gl.constexpr(2.0**100)
"""Bound of a total: sums of values up to 2**27 times their weights have room in float32."""

INTEGERS_BITS = gl.constexpr(0x4B400000)
"""Bits of `INTEGERS`: where products begin with these, their sums are floats."""


@gluon.jit
def _load(
    queries, keys, values, query_room, key_room, value_room,
    query_full, key_full, key_empty, value_full, value_empty,
    query_row, version_rows, key_row, tiles, TILE_N: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Load the queries, then tiles of keys and values from the last to the first, as room becomes free."""
    if tiles > 0:
        mbarrier.expect(query_full, VERSIONS * GROUPS * queries.block_type.nbytes)
        for version in gl.static_range(VERSIONS):
            for group in gl.static_range(GROUPS):
                at = query_row + version * version_rows + group * GROUP_QUERIES
                room = query_room.index(VERSIONS * group + version)
                tma.async_copy_global_to_shared(queries, [at, 0], query_full, room)
    for tile in range(tiles):
        stage = tile % STAGES
        is_read = ((tile // STAGES) & 1) ^ 1
        row = key_row + (tiles - 1 - tile) * TILE_N
        mbarrier.wait(key_empty.index(stage), is_read)
        mbarrier.expect(key_full.index(stage), keys.block_type.nbytes)
        tma.async_copy_global_to_shared(keys, [row, 0], key_full.index(stage), key_room.index(stage))
        mbarrier.wait(value_empty.index(stage), is_read)
        mbarrier.expect(value_full.index(stage), values.block_type.nbytes)
        tma.async_copy_global_to_shared(values, [row, 0], value_full.index(stage), value_room.index(stage))


@gluon.jit
def _sums(weights, TILE_N: gl.constexpr):
    """Sums over the keys that one thread holds, `[64, 4]`: four threads hold a query's."""
    held = weights.reshape([GROUP_QUERIES, TILE_N // 8, 4, 2])
    return gl.sum(gl.sum(held, 3), 1)


@gluon.jit
def _attend(
    group: gl.constexpr, query_room, key_room, value_room,
    query_full, key_full, key_empty, value_full, value_empty,
    query_units, unit, state_maximum, state_total, state_output, flags,
    first_row, state_row, num_queries, num_states, start, stop, tiles,
    HEAD_DIM: gl.constexpr, TILE_N: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Attend 64 queries to keys `start` to `stop`, and merge that with the state if there is one.

    Args:
        unit: Of products of int8 queries, in units of their own, and int8 keys.
    """
    products: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE_N, 32])
    sums: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEAD_DIM, 16])
    operand: gl.constexpr = gl.DotOperandLayout(0, sums, 2)
    of_products: gl.constexpr = gl.SliceLayout(1, products)
    of_sums: gl.constexpr = gl.SliceLayout(1, sums)
    first_row += group * GROUP_QUERIES
    rows = first_row + gl.arange(0, GROUP_QUERIES, of_sums)
    is_query = rows < num_queries
    channels = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, sums))
    at = state_row + rows.to(gl.int64)
    at_output = at[:, None] * HEAD_DIM + channels[None, :]
    if tiles == 0:
        gl.store(flags + group, 0, mask=first_row < num_queries)
        if num_states == 0:
            gl.store(state_maximum + at, gl.full([GROUP_QUERIES], LOWEST, gl.float32, of_sums), mask=is_query)
            gl.store(state_total + at, gl.zeros([GROUP_QUERIES], gl.float32, of_sums), mask=is_query)
            nothing = gl.zeros([GROUP_QUERIES, HEAD_DIM], gl.float32, sums)
            gl.store(state_output + at_output, nothing, mask=is_query[:, None])
    else:
        query_rows = first_row + gl.arange(0, GROUP_QUERIES, of_products)
        factor = gl.load(query_units + query_rows, mask=query_rows < num_queries, other=0.0) * unit
        none = gl.full([GROUP_QUERIES, TILE_N], INTEGERS_BITS, gl.int32, products)

        # The last keys come first, since there may be less than a tile of them.
        mbarrier.wait(query_full, 0)
        mbarrier.wait(key_full.index(0), 0)
        query = query_room.index(VERSIONS * group)
        product = warpgroup_mma(query, key_room.index(0).permute((1, 0)), none, is_async=True)
        product = warpgroup_mma_wait(0, deps=[product])
        mbarrier.arrive(key_empty.index(0), count=1)
        key = start + (tiles - 1) * TILE_N + gl.arange(0, TILE_N, gl.SliceLayout(0, products))
        logits = gl.where((key < stop)[None, :], product.to(gl.float32, bitcast=True), LOWEST)
        shift = gl.max(logits, 1) * factor + FIRST
        maximum = shift - INTEGERS * factor
        weights = gl.exp2(logits * factor[:, None] - shift[:, None])
        total = _sums(weights, TILE_N)
        matched = gl.convert_layout(weights.to(value_room.dtype), operand, assert_trivial=True)
        output = gl.zeros([GROUP_QUERIES, HEAD_DIM], gl.float32, sums)

        for tile in range(1, tiles):
            stage, before = tile % STAGES, (tile - 1) % STAGES
            mbarrier.wait(key_full.index(stage), (tile // STAGES) & 1)
            query = query_room.index(VERSIONS * group + tile % VERSIONS)
            product = warpgroup_mma(query, key_room.index(stage).permute((1, 0)), none, is_async=True)
            mbarrier.wait(value_full.index(before), ((tile - 1) // STAGES) & 1)
            gathered = warpgroup_mma(matched, value_room.index(before), output, is_async=True)
            product = warpgroup_mma_wait(1, deps=[product])
            mbarrier.arrive(key_empty.index(stage), count=1)
            logits = product.to(gl.float32, bitcast=True)
            weights = gl.exp2(logits * factor[:, None] - shift[:, None])
            total += _sums(weights, TILE_N)
            following = gl.convert_layout(weights.to(value_room.dtype), operand, assert_trivial=True)
            output = warpgroup_mma_wait(0, deps=[gathered])
            mbarrier.arrive(value_empty.index(before), count=1)
            matched = following

        last = (tiles - 1) % STAGES
        mbarrier.wait(value_full.index(last), ((tiles - 1) // STAGES) & 1)
        gathered = warpgroup_mma(matched, value_room.index(last), output, is_async=True)
        output = warpgroup_mma_wait(0, deps=[gathered])

        maximum = gl.convert_layout(maximum, of_sums)
        total = gl.convert_layout(gl.sum(total, 1), of_sums)
        is_beyond = is_query & ~(total < MOST)
        any_beyond = gl.max(is_beyond.to(gl.int32), 0)
        gl.store(flags + group, any_beyond, mask=first_row < num_queries)
        if any_beyond == 0:
            # A total of one: states that began far from each other merge without a loss.
            maximum += gl.log2(total)
            output = output / total[:, None]
            total = gl.full([GROUP_QUERIES], 1.0, gl.float32, of_sums)
            if num_states > 0:
                other_maximum = gl.load(state_maximum + at, mask=is_query, other=0.0)
                other_total = gl.load(state_total + at, mask=is_query, other=1.0)
                other_output = gl.load(state_output + at_output, mask=is_query[:, None], other=0.0)
                maximum, total, output = merge_states(
                    maximum, total, output, other_maximum, other_total, other_output
                )
            gl.store(state_maximum + at, maximum, mask=is_query)
            gl.store(state_total + at, total, mask=is_query)
            gl.store(state_output + at_output, output, mask=is_query[:, None])


@gluon.jit(do_not_specialize=(*GROWING, *GROUPED), do_not_specialize_on_alignment=SLICED)
def _attend_hopper(
    queries, keys, values, query_units, key_units, state_maximum, state_total, state_output, flags,
    key_rows, num_queries, query_pitch, num_keys, keys_per_split, pitch, num_states, scale,
    HEAD_DIM: gl.constexpr, TILE_N: gl.constexpr, STAGES: gl.constexpr,
    ATTEND_REGISTERS: gl.constexpr, LOAD_REGISTERS: gl.constexpr,
):  # fmt: skip
    """Attend 128 queries of a head to a split of the keys, and keep that in the split's state.

    Args:
        queries: Descriptor of `[VERSIONS * B * h * query_pitch, D]` int8, 64 rows a tile; `query_units` of
            their rows.
        keys: Descriptor of `[key_rows * pitch, D]` int8, TILE_N rows a tile; `key_units` of their heads.
        values: Descriptor of `[key_rows * pitch, D]` bf16.
        state_maximum: `[splits, B * h, S]`, as `state_total`; `state_output` has D channels more.
        flags: `[splits, B * h, S / 64]`: receives 1 where `attend_kernel` has to do it.
        num_states: 1 where the state holds something so far, else 0.
    """
    head, split = gl.program_id(1), gl.program_id(2)
    # Keys of one item of the batch serve them all.
    key_head = head % key_rows
    first_row = gl.program_id(0) * (GROUPS * GROUP_QUERIES)
    start = split * keys_per_split
    stop = gl.minimum(start + keys_per_split, num_keys)
    # A split of few keys may have none.
    tiles = gl.cdiv(gl.maximum(stop - start, 0), TILE_N)

    query_room = gl.allocate_shared_memory(
        queries.dtype, [GROUPS * VERSIONS, GROUP_QUERIES, HEAD_DIM], queries.layout
    )
    key_room = gl.allocate_shared_memory(keys.dtype, [STAGES, TILE_N, HEAD_DIM], keys.layout)
    value_room = gl.allocate_shared_memory(values.dtype, [STAGES, TILE_N, HEAD_DIM], values.layout)
    query_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    key_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    key_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    value_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    value_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    mbarrier.init(query_full, count=1)
    for stage in gl.static_range(STAGES):
        mbarrier.init(key_full.index(stage), count=1)
        mbarrier.init(value_full.index(stage), count=1)
        mbarrier.init(key_empty.index(stage), count=GROUPS)
        mbarrier.init(value_empty.index(stage), count=GROUPS)
    fence_async_shared()

    unit = gl.load(key_units + key_head) * scale * LOG2_E
    slot = split * gl.num_programs(1) + head
    state_row = slot.to(gl.int64) * num_queries
    flags += slot * gl.cdiv(num_queries, GROUP_QUERIES) + gl.program_id(0) * GROUPS
    query_units += head.to(gl.int64) * num_queries
    gl.warp_specialize([
        (_attend, (
            0, query_room, key_room, value_room,
            query_full, key_full, key_empty, value_full, value_empty,
            query_units, unit, state_maximum, state_total, state_output, flags,
            first_row, state_row, num_queries, num_states, start, stop, tiles, HEAD_DIM, TILE_N, STAGES,
        )),
        (_attend, (
            1, query_room, key_room, value_room,
            query_full, key_full, key_empty, value_full, value_empty,
            query_units, unit, state_maximum, state_total, state_output, flags,
            first_row, state_row, num_queries, num_states, start, stop, tiles, HEAD_DIM, TILE_N, STAGES,
        )),
        (_load, (
            queries, keys, values, query_room, key_room, value_room,
            query_full, key_full, key_empty, value_full, value_empty,
            head * query_pitch + first_row, gl.num_programs(1) * query_pitch, key_head * pitch + start,
            tiles, TILE_N, STAGES,
        )),
    ], [4, 1], [ATTEND_REGISTERS, LOAD_REGISTERS])  # fmt: skip


attend_hopper_kernel = Kernel(_attend_hopper)


def described(rows: Tensor, tile: int) -> TensorDescriptor:
    """`rows` `[S, D]` as the memory accelerator loads them, a tile at a time."""
    return TensorDescriptor.from_tensor(
        rows, [tile, rows.shape[1]], _layout(rows.shape[1], rows.element_size())
    )


@cache
def _layout(head_dim: int, element_bytes: int) -> gl.NVMMASharedLayout:
    return gl.NVMMASharedLayout(min(128, head_dim * element_bytes), 8 * element_bytes, 2)
