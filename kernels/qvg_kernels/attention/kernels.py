"""Attention of many queries to decoded keys, carried from pass to pass by an online-softmax state.

Keys and values lie in the workspace as `heads.Operands` say. Beside e4m3 values, which are transposed, keys
lie at `stored_row`, the order in which a thread that computed the weights of 16 keys needs them as an
operand. A state is a maximum, a total and an output for each query, float32 and in base 2:
total and output are sums of `2 ** (logit - maximum)`. Invariant: a state does not depend on where its keys
came from, so passes of both kinds follow one another, and several states of one query merge into one.
"""

import triton
import triton.language as tl

from qvg_kernels.quant.numbers import int8_of
from qvg_kernels.runtime.warmup import GROUPED, SLICED, kernel

LOWEST = tl.constexpr(-1.0e30)
"""Logit of keys beyond the last, and maximum of no keys: finite, as the difference of infinities is NaN."""

LOG2_E = tl.constexpr(1.4426950408889634)

GROWING = ("num_keys", "keys_per_split", "pitch", "num_states")
"""Numbers that change as a history grows: a kernel compiled for one of their values would soon be compiled
again.
"""

VERSIONS = tl.constexpr(2)
"""Versions of int8 queries: a rounded query errs alike for all keys, and the error of many keys' sum is soon
that of the query alone. Two versions, rounded up and down at different places, meet the tiles of keys in
turn: their errors are nearly opposite.
"""

INTEGERS = tl.constexpr(12582912.0)
"""A float32 whose last bit counts ones: a product of int8 values added to its bits is added to its value."""


@triton.jit
def _stored_key(rows):
    """Inverse of `stored_row`."""
    return (rows & ~15) | ((rows & 8) >> 2) | ((rows & 6) << 1) | (rows & 1)


@triton.jit
def merge_states(maximum, total, output, other_maximum, other_total, other_output):
    """Two states of the same queries as one."""
    raised = tl.maximum(maximum, other_maximum)
    decay, other_decay = tl.exp2(maximum - raised), tl.exp2(other_maximum - raised)
    total = total * decay + other_total * other_decay
    return raised, total, output * decay[:, None] + other_output * other_decay[:, None]


@triton.jit
def _take_keys(
    query, factor, zero, maximum, total, output, keys, values, key_row, value_row, start, stop, num_keys,
    IS_INT8: tl.constexpr, IS_E4M3: tl.constexpr, IS_MASKED: tl.constexpr, TILE_M: tl.constexpr,
    TILE_N: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Take keys `start` to `stop`, in tiles of TILE_N, into the state of TILE_M queries.

    Args:
        factor: `[TILE_M]`, of the products.
        zero: `[TILE_M]`, the factor times what products are too large by.
    """
    # The least e4m3 value is 2**-9: with weights up to 2**8 those down to 2**-17 of the largest count.
    LIFT: tl.constexpr = 8.0 if IS_E4M3 else 0.0
    for at in tl.range(start, stop, TILE_N, num_stages=STAGES):
        # [TILE_N, HEAD_DIM]
        key = keys.load([key_row + at, 0])
        if IS_INT8:
            logits = (tl.dot(query, key.T, out_dtype=tl.int32) + 0x4B400000).to(tl.float32, bitcast=True)
        else:
            logits = tl.dot(query, key.T)
        if IS_MASKED:
            number = at + tl.arange(0, TILE_N)
            number = _stored_key(number) if IS_E4M3 else number
            logits = tl.where(number[None, :] < num_keys, logits, LOWEST)
        raised = tl.maximum(maximum, tl.max(logits, 1) * factor - zero - LIFT)
        weights = tl.exp2(logits * factor[:, None] - (raised + zero)[:, None])
        decay = tl.exp2(maximum - raised)
        total = total * decay + tl.sum(weights, 1)
        # [TILE_N, HEAD_DIM]
        value = values.load([value_row, at]).T if IS_E4M3 else values.load([value_row + at, 0])
        matched = weights.to(value.dtype)
        if IS_E4M3:
            # Back from stored rows to key numbers, which moves nothing between threads.
            matched = tl.permute(tl.reshape(matched, [TILE_M, TILE_N // 16, 2, 4, 2]), [0, 1, 3, 2, 4])
            matched = tl.reshape(matched, [TILE_M, TILE_N])
        # A product of its own, not one that adds to `output`: tensor cores sum e4m3 products with few bits.
        output = output * decay[:, None] + tl.dot(matched, value)
        maximum = raised
    return maximum, total, output


@kernel(do_not_specialize=(*GROWING, *GROUPED), do_not_specialize_on_alignment=SLICED)
def attend_kernel(
    query, keys, values, key_units, key_factors, value_units,
    state_maximum, state_total, state_output, query_batch, query_head, query_token,
    heads, key_rows, num_queries, num_keys, keys_per_split, pitch, num_states, scale, flags,
    IS_INT8: tl.constexpr, IS_E4M3: tl.constexpr, HEAD_DIM: tl.constexpr,
    TILE_M: tl.constexpr, TILE_N: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Attend TILE_M queries of a head to a split of the keys, and keep that in the split's state.

    Args:
        num_states: 1 where the state holds something so far, else 0.
        flags: `[splits, B * h, S / TILE_M]`: only programs with a flag are at work; `None` lets all be.
    """
    head, split = tl.program_id(1), tl.program_id(2)
    if flags is not None:
        slot = split * tl.num_programs(1) + head
        if tl.load(flags + slot * tl.num_programs(0) + tl.program_id(0)) == 0:
            return
    # Keys of one item of the batch serve them all.
    key_head = head % key_rows
    batch_index, head_index = (head // heads).to(tl.int64), (head % heads).to(tl.int64)
    rows = tl.program_id(0) * TILE_M + tl.arange(0, TILE_M)
    channels = tl.arange(0, HEAD_DIM)
    is_query = rows < num_queries
    # [TILE_M, HEAD_DIM]
    at = query + batch_index * query_batch + head_index * query_head
    loaded = tl.load(at + rows[:, None] * query_token + channels[None, :], mask=is_query[:, None], other=0.0)
    value_unit = tl.load(value_units + key_head) if IS_E4M3 else 1.0
    if IS_INT8:
        scaled, query_unit = in_units(loaded, tl.load(key_factors + key_head * HEAD_DIM + channels))
        matched = int8_of(scaled)
        factor = query_unit * (tl.load(key_units + key_head) * scale * LOG2_E)
        zero = factor * INTEGERS
    else:
        matched = loaded
        factor = tl.full([TILE_M], 1.0, tl.float32) * (scale * LOG2_E)
        zero = tl.zeros([TILE_M], tl.float32)

    maximum = tl.full([TILE_M], LOWEST, tl.float32)
    total = tl.zeros([TILE_M], tl.float32)
    gathered = tl.zeros([TILE_M, HEAD_DIM], tl.float32)
    state_rows = (split * tl.num_programs(1) + head).to(tl.int64) * num_queries + rows
    if num_states > 0:
        # Two [TILE_M] and [TILE_M, HEAD_DIM].
        maximum = tl.load(state_maximum + state_rows, mask=is_query, other=0.0)
        total = tl.load(state_total + state_rows, mask=is_query, other=1.0)
        at_output = state_rows[:, None] * HEAD_DIM + channels[None, :]
        gathered = tl.load(state_output + at_output, mask=is_query[:, None], other=0.0) / value_unit

    start = split * keys_per_split
    # A split of few keys may have none.
    stop = tl.maximum(tl.minimum(start + keys_per_split, num_keys), start)
    whole = start + (stop - start) // TILE_N * TILE_N
    key_row = key_head * pitch
    value_row = key_head * HEAD_DIM if IS_E4M3 else key_row
    maximum, total, gathered = _take_keys(
        matched, factor, zero, maximum, total, gathered, keys, values, key_row, value_row, start, whole, stop,
        IS_INT8, IS_E4M3, False, TILE_M, TILE_N, STAGES,
    )  # fmt: skip
    if whole < stop:
        maximum, total, gathered = _take_keys(
            matched, factor, zero, maximum, total, gathered, keys, values, key_row, value_row,
            whole, stop, stop, IS_INT8, IS_E4M3, True, TILE_M, TILE_N, 1,
        )  # fmt: skip

    tl.store(state_maximum + state_rows, maximum, mask=is_query)
    tl.store(state_total + state_rows, total, mask=is_query)
    at_output = state_rows[:, None] * HEAD_DIM + channels[None, :]
    tl.store(state_output + at_output, gathered * value_unit, mask=is_query[:, None])


@triton.jit
def in_units(rows, factors):
    """Rows `[M, D]` times factors `[D]` in float32 units `[M]` that bring their largest to 127."""
    wide = rows.to(tl.float32) * factors[None, :]
    unit = tl.maximum(tl.max(tl.abs(wide), 1), 1.0e-12) / 127.0
    return wide / unit[:, None], unit


@kernel(do_not_specialize=GROUPED)
def round_queries_kernel(
    query, factors, rounded, units, query_batch, query_head, query_token,
    heads, key_rows, num_queries, pitch, HEAD_DIM: tl.constexpr, TILE_M: tl.constexpr,
):  # fmt: skip
    """Round one head's queries to `[VERSIONS * B * h * pitch, D]`; those beyond the last become zeros."""
    head, num_heads = tl.program_id(1), tl.num_programs(1)
    rows = tl.program_id(0) * TILE_M + tl.arange(0, TILE_M)
    channels = tl.arange(0, HEAD_DIM)
    is_query = rows < num_queries
    at = query + (head // heads).to(tl.int64) * query_batch + (head % heads).to(tl.int64) * query_head
    loaded = tl.load(at + rows[:, None] * query_token + channels[None, :], mask=is_query[:, None], other=0.0)
    # Keys of one item of the batch serve them all.
    scaled, unit = in_units(loaded, tl.load(factors + head % key_rows * HEAD_DIM + channels))
    tl.store(units + head.to(tl.int64) * num_queries + rows, unit, mask=is_query)
    quarter = tl.where(channels % 2 == 0, 0.25, -0.25)[None, :]
    for version in tl.static_range(VERSIONS):
        dithered = scaled + quarter if version == 0 else scaled - quarter
        at = ((version * num_heads + head).to(tl.int64) * pitch + rows)[:, None] * HEAD_DIM + channels[
            None, :
        ]
        tl.store(rounded + at, int8_of(dithered), mask=(rows < pitch)[:, None])
