"""The end of an attention call: the states of the splits, and what the library made, become the output.

The library's fused attention takes the chunk's own keys, which need no decoding: cuDNN's is a third faster
than `attend_kernel` on Hopper GPUs. No public function of torch returns the logsumexp that merging needs:
`varlen_attn` takes FlashAttention, half as fast there, and `flex_attention` has to be compiled. An output
with its logsumexp is a state too: its maximum is the logsumexp, its total one.
"""

from collections.abc import Callable

import torch
import triton.language as tl
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_cudnn_attention

from qvg_kernels.attention.kernels import LOG2_E, LOWEST, merge_states
from qvg_kernels.runtime.dispatch import is_hopper
from qvg_kernels.runtime.warmup import GROUPED, SLICED, kernel

Fused = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""From queries, keys and values `[B, H, S, D]`, any strides but the last, to the output in their dtype, and
the natural logsumexp `[B, H, S]` float32.
"""


def choose_fused(query: Tensor, key: Tensor, value: Tensor) -> Fused | None:
    """What attends to keys that are as the model made them; `None` where `attend_kernel` does it.

    cuDNN makes 600 TFLOP/s on an H200, where `attend_kernel` makes 440. Nobody has timed it elsewhere.
    """
    if query.device.type == "cpu":
        return _by_torch
    if is_hopper(query.device) and can_use_cudnn_attention(
        SDPAParams(query, key, value, None, 0.0, False, False)
    ):
        return _by_cudnn
    return None


def _by_cudnn(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    found = torch.ops.aten._scaled_dot_product_cudnn_attention(query, key, value, None, True)
    # `[B, H, S, 1]` from torch 2.9 on.
    return found[0], found[1].flatten(2)


def _by_torch(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)
    return found[0], found[1]


@kernel(do_not_specialize=("num_states", *GROUPED), do_not_specialize_on_alignment=SLICED)
def merge_kernel(
    state_maximum, state_total, state_output, own, own_logsumexp, output,
    own_batch, own_head, own_token, logsumexp_batch, logsumexp_head, logsumexp_token,
    output_batch, output_head, output_token, heads, num_queries, num_states,
    HEAD_DIM: tl.constexpr, TILE_M: tl.constexpr,
):  # fmt: skip
    """Merge what TILE_M queries of a head have of all their keys.

    Args:
        own: `[B, h, S, D]`, attention to some of the keys, rounded to its dtype: in bf16 an error of up to
            2**-9 of it, that of any attention with such an output. None leaves it out.
        own_logsumexp: `[B, h, S]`, of those keys, natural.
    """
    head = tl.program_id(1)
    batch_index, head_index = (head // heads).to(tl.int64), (head % heads).to(tl.int64)
    rows = tl.program_id(0) * TILE_M + tl.arange(0, TILE_M)
    channels = tl.arange(0, HEAD_DIM)[None, :]
    is_query = rows < num_queries
    if own is not None:
        at = own_logsumexp + batch_index * logsumexp_batch + head_index * logsumexp_head
        maximum = tl.load(at + rows * logsumexp_token, mask=is_query, other=0.0) * LOG2_E
        total = tl.full([TILE_M], 1.0, tl.float32)
        at = own + batch_index * own_batch + head_index * own_head
        # [TILE_M, HEAD_DIM]
        loaded = tl.load(at + rows[:, None] * own_token + channels, mask=is_query[:, None], other=0.0)
        gathered = loaded.to(tl.float32)
    else:
        maximum = tl.full([TILE_M], LOWEST, tl.float32)
        total = tl.zeros([TILE_M], tl.float32)
        gathered = tl.zeros([TILE_M, HEAD_DIM], tl.float32)
    slot_rows = tl.num_programs(1).to(tl.int64) * num_queries
    at_state = head.to(tl.int64) * num_queries + rows
    for _ in range(num_states):
        # Two [TILE_M] and [TILE_M, HEAD_DIM].
        other_maximum = tl.load(state_maximum + at_state, mask=is_query, other=0.0)
        other_total = tl.load(state_total + at_state, mask=is_query, other=1.0)
        at_output = at_state[:, None] * HEAD_DIM + channels
        other_output = tl.load(state_output + at_output, mask=is_query[:, None], other=0.0)
        maximum, total, gathered = merge_states(
            maximum, total, gathered, other_maximum, other_total, other_output
        )
        at_state += slot_rows
    at = output + batch_index * output_batch + head_index * output_head
    attended = (gathered / total[:, None]).to(output.dtype.element_ty)
    tl.store(at + rows[:, None] * output_token + channels, attended, mask=is_query[:, None])


@kernel(do_not_specialize=("key_rows", *GROUPED))
def shape_kernel(
    state_output, matrix, heads, key_rows, total_heads, first_head, num_queries,
    HEAD_DIM: tl.constexpr, TILE_M: tl.constexpr,
):  # fmt: skip
    """Multiply TILE_M rows of a head's state, in place, by its matrix, which is symmetric.

    Products are of 11 bits, more than the 8 of any output.

    Args:
        matrix: `[b, total_heads, HEAD_DIM, HEAD_DIM]` bf16; one item of the batch serves all of the queries'.
    """
    CHUNK: tl.constexpr = 32
    head, split = tl.program_id(1), tl.program_id(2)
    key_head = head % key_rows
    matrix_head = (key_head // heads).to(tl.int64) * total_heads + first_head + key_head % heads
    rows = tl.program_id(0) * TILE_M + tl.arange(0, TILE_M)
    channels = tl.arange(0, HEAD_DIM)
    is_query = (rows < num_queries)[:, None]
    slot = (split * tl.num_programs(1) + head).to(tl.int64)
    at = state_output + (slot * num_queries + rows)[:, None] * HEAD_DIM
    # [TILE_M, HEAD_DIM]
    gathered = tl.load(at + channels[None, :], mask=is_query, other=0.0)
    for first in tl.static_range(0, HEAD_DIM, CHUNK):
        some = first + tl.arange(0, CHUNK)[None, :]
        # [HEAD_DIM, CHUNK]
        columns = tl.load(matrix + (matrix_head * HEAD_DIM + channels[:, None]) * HEAD_DIM + some)
        tl.store(at + some, tl.dot(gathered, columns.to(tl.float32), input_precision="tf32"), mask=is_query)
