"""Attention over a history that is kept packed: by kernels where they run, else in torch."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from qvg_kernels.attention.history import History, OwnKeys, Workspace
from qvg_kernels.attention.reference import attend_in_torch
from qvg_kernels.codecs.registry import build_codec
from qvg_kernels.codecs.spec import Spec
from qvg_kernels.runtime.dispatch import uses_kernels, why_reference

Arithmetic = Literal["auto", "int8", "fp8", "bf16"]
"""How packed history is multiplied, if its codec is coarser than e4m3; else it is in bf16.

"int8" is that for queries and keys, with bf16 weights and values; "fp8" has e4m3 weights and values beside
them. "auto" is "int8" on Hopper GPUs, which are faster so (docs/results.md), else "fp8" on GPUs that
have it.
"""


def how_attended(
    device: torch.device, dtype: torch.dtype, specs: Sequence[Spec], arithmetic: Arithmetic
) -> str:
    """What `attend` does with a history packed by `specs`, in words that follow "attention by"."""
    reason = why_reference(device)
    if reason is None and dtype == torch.float32:
        reason = "float32"
    if reason is None:
        from qvg_kernels.attention.heads import BF16, choose

        readers = [build_codec(spec).reader(128) for spec in specs]
        if None not in readers:
            is_coarse = all(reader.is_coarse for reader in readers if reader)
            operands = choose(arithmetic, device, dtype) if is_coarse else BF16
            return f"Triton kernels, packed history multiplied in {operands.words}"
        reason = "a scheme without kernels"
    return f"the torch reference ({reason})"


def attend(
    query: Tensor,
    history: History,
    own: OwnKeys,
    workspace: Workspace,
    arithmetic: Arithmetic = "auto",
    out: Tensor | None = None,
) -> Tensor:
    """Softmax attention of all queries to all keys of the history and of the chunk itself, without a mask.

    Args:
        query: `[B, H, S, D]`, placed.
        workspace: Where keys and values are read to; its limit decides the grouping.
        out: As what is returned, which it becomes where kernels run.

    Returns:
        `[B, H, S, D]` in the dtype of `query`; sums are kept in float32. Where the library attends to the
        chunk's own keys (`combine.choose_fused`), its output is rounded to that dtype before it is merged.
    """
    if uses_kernels(query.device) and query.dtype != torch.float32:
        from qvg_kernels.attention import packed
        from qvg_kernels.attention.heads import choose

        operands = choose(arithmetic, query.device, query.dtype)
        output = packed.attend(query, history, own, workspace, operands, out)
        if output is not None:
            return output
    return attend_in_torch(query, [*history.blocks, own], workspace)
