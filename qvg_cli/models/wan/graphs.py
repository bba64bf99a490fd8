"""The blocks of a Wan transformer with fewer kernels, and as CUDA graphs around the attention.

At short histories a model call waits for the host, which launches some 3,000 kernels. Everything but the
self-attention has the same shapes and addresses in every step of every chunk, so it is captured once and
launched as one graph between two attentions: the end of a block and the beginning of the next. Exchanges
among processes are a part of it. The same is computed in the same order, so the results have the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers.models.activations import GELU
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from torch import Tensor, nn
from torch.nn import functional

from qvg_cli.models.wan.rope import FrameRotation
from qvg_kernels.norm.modulate import add_gated, add_norm, norm_modulate
from qvg_kernels.runtime.replay import capture


class BlockGraphs:
    """What the graphs of all blocks share.

    The shape that is captured is the first that two calls in a row have: the steps of a chunk. Calls of other
    shapes, such as a prefill, run without graphs.

    Attributes:
        blocks: All of them, in order.
        is_running: Whether the blocks of the current call run as graphs.
        pool: Memory of what lives inside a graph; one graph runs after the other, so they use the same.
        hidden: `[B, S, C]` between the blocks.
        modulations: Of all blocks, `[L, B, 6, C]`.
        projected: Queries, keys and values of a block.
        attended: What the self-attention of a block has gathered.
    """

    def __init__(self, blocks: Sequence[Any]) -> None:
        self.blocks = blocks
        self.reset()

    def reset(self) -> None:
        """Forget what was captured: another cache is attached."""
        self.is_running = False
        self.pool: Any = None
        self.hidden: Tensor | None = None
        self.modulations: Tensor | None = None
        self.projected: tuple[Tensor, ...] = ()
        self.attended: tuple[Tensor, ...] = ()
        self._tables: Tensor | None = None
        self._last_shape: tuple[int, ...] = ()
        self._is_stale = False

    def forget_text(self) -> None:
        """Run the next call without graphs: it computes the keys and values of another prompt."""
        self._is_stale = True

    def begin(self, hidden: Tensor, time: Tensor) -> None:
        """Take the inputs of a model call, and decide whether its blocks run as graphs."""
        if self.hidden is None and self._last_shape == hidden.shape:
            self.pool = torch.cuda.graph_pool_handle()
            # Kernels write it row by row, however the first block gets it.
            self.hidden = hidden.new_empty(hidden.shape)
            self._tables = torch.stack([block.scale_shift_table for block in self.blocks])
            self.modulations = _modulate(self._tables, time)
            # Compiled before it is captured.
            shift, factor, gate, *_ = self.modulations[0].split(1, dim=1)
            add_norm(hidden, hidden, gate, factor, shift, self.blocks[0].norm1.eps)
        self._last_shape = tuple(hidden.shape)
        self.is_running = not self._is_stale and self.hidden is not None and self.hidden.shape == hidden.shape
        self._is_stale = False
        if self.is_running and self.hidden is not None and self._tables is not None:
            self.hidden.copy_(hidden)
            _modulate(self._tables, time, self.modulations)


class FusedBlock(WanTransformerBlock):  # type: ignore[misc]  # diffusers has no types
    """A block that takes one kernel on a GPU, not six, for what lies between matrices and attention.

    The self-attention processor has three parts: `project`, `attend` and `output`.
    """

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, rotary_emb: FrameRotation
    ) -> Tensor:
        """`[B, S, C]` to `[B, S, C]`."""
        if temb.ndim == 4:
            # Every token has a timestep of its own, as in no call of ours.
            return super().forward(hidden_states, encoder_hidden_states, temb, rotary_emb)
        modulation = _modulate(self.scale_shift_table, temb)
        shift, factor, *_, ffn_gate = modulation.split(1, dim=1)
        processor = self.attn1.processor
        projected = processor.project(self.attn1, norm_modulate(hidden_states, factor, shift, self.norm1.eps))
        attended = processor.attend(*projected, rotary_emb)
        hidden, change = self.after_attention(hidden_states, modulation, attended, encoder_hidden_states)
        return add_gated(hidden, change, ffn_gate)

    def after_attention(
        self, hidden: Tensor, modulation: Tensor, attended: Sequence[Tensor], text: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`[B, S, C]` of what its self-attention has gathered, up to the block's last sum: what is added."""
        _, _, gate, shift, factor, _ = modulation.split(1, dim=1)
        change = self.attn1.processor.output(self.attn1, *attended)
        norm = self.norm2
        hidden, normed = add_norm(hidden, change, gate, norm.weight, norm.bias, norm.eps)
        change = self.attn2(normed, text, None, None)
        hidden, normed = add_norm(hidden, change, None, factor, shift, self.norm3.eps)
        return hidden, self.ffn(normed)


def _modulate(tables: Tensor, time: Tensor, out: Tensor | None = None) -> Tensor:
    """Shift, factor and gate of the self-attention, then of the feed-forward part: `[..., B, 6, C]` float32.

    Args:
        tables: `[..., 1, 6, C]`, of one block or of several.
        time: `[B, 6, C]`.
    """
    states = torch.add(tables, time.float(), out=out)
    states[..., 1::3, :] += 1
    return states


class FusedGelu(GELU):  # type: ignore[misc]  # diffusers has no types
    """A projection and GELU, in its tanh form, of which the product is a part on a GPU."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`[..., C]` to `[..., N]`."""
        states: Tensor = self.proj(hidden_states)
        return states


class GeluLinear(nn.Linear):
    """The projection in it."""

    def forward(self, input: Tensor) -> Tensor:
        """`[..., C]` to `[..., N]`."""
        # The fused product has no derivative, which training takes.
        if not input.is_cuda or torch.is_grad_enabled():
            return functional.gelu(super().forward(input), approximate="tanh")
        product = torch._addmm_activation(self.bias, input.flatten(0, -2), self.weight.t(), use_gelu=True)
        states: Tensor = product.unflatten(0, input.shape[:-1])
        return states


def fuse(block: Any) -> None:
    """Turn a stock block into a `FusedBlock`."""
    gelu = block.ffn.net[0]
    block.__class__, gelu.__class__, gelu.proj.__class__ = FusedBlock, FusedGelu, GeluLinear


class GraphedBlock(FusedBlock):
    """A block whose end is one graph with the beginning of the next; that of the first is another."""

    graphs: BlockGraphs
    index: int
    captured: _Captured

    @classmethod
    def take(cls, blocks: Any) -> BlockGraphs:
        """Turn blocks into such; what they share is returned."""
        graphs = BlockGraphs(blocks)
        for index, block in enumerate(blocks):
            block.__class__ = cls
            block.graphs, block.index, block.captured = graphs, index, _Captured()
        return graphs

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, rotary_emb: FrameRotation
    ) -> Tensor:
        """`[B, S, C]` to `[B, S, C]`; between graphed blocks always the same tensor."""
        graphs = self.graphs
        if self.index == 0:
            graphs.begin(hidden_states, temb)
        if not graphs.is_running:
            return super().forward(hidden_states, encoder_hidden_states, temb, rotary_emb)
        assert graphs.hidden is not None
        captured = self.captured
        if captured.pool is not graphs.pool:
            self.captured = captured = _Captured(graphs.pool)
        if self.index == 0:
            if captured.before is None:
                captured.before, _ = capture(self._launch_before, graphs.pool, hidden_states.device)
            captured.before.replay()
        processor, projected = self.attn1.processor, graphs.projected
        if processor.call.commit is not None:
            # The cache may keep them as they are, and the next block writes its own there.
            projected = tuple(part.clone() for part in projected)
        attended = processor.attend(*projected, rotary_emb, graphs.attended)
        if not graphs.attended:
            graphs.attended = tuple(torch.empty_like(part.contiguous()) for part in attended)
        for buffer, part in zip(graphs.attended, attended, strict=True):
            if buffer.data_ptr() != part.data_ptr():
                buffer.copy_(part)
        if captured.after is None:
            launch = partial(self._launch_after, encoder_hidden_states)
            captured.after, _ = capture(launch, graphs.pool, hidden_states.device)
        captured.after.replay()
        return graphs.hidden

    def _launch_before(self) -> None:
        graphs = self.graphs
        assert graphs.hidden is not None
        assert graphs.modulations is not None
        shift, factor, *_ = graphs.modulations[self.index].split(1, dim=1)
        self._launch_project(norm_modulate(graphs.hidden, factor, shift, self.norm1.eps))

    def _launch_project(self, normed: Tensor) -> None:
        graphs = self.graphs
        projected = self.attn1.processor.project(self.attn1, normed, graphs.projected)
        # Those of the first block stay: as long as they are held, no other graph uses their memory.
        graphs.projected = graphs.projected or projected
        for buffer, part in zip(graphs.projected, projected, strict=True):
            if buffer.data_ptr() != part.data_ptr():
                buffer.copy_(part)

    def _launch_after(self, encoder_hidden_states: Tensor) -> None:
        graphs = self.graphs
        assert graphs.hidden is not None
        assert graphs.modulations is not None
        modulation = graphs.modulations[self.index]
        hidden, change = self.after_attention(
            graphs.hidden, modulation, graphs.attended, encoder_hidden_states
        )
        gate = modulation[:, 5:]
        if self.index + 1 == len(graphs.blocks):
            add_gated(hidden, change, gate, out=graphs.hidden)
            return
        following = graphs.blocks[self.index + 1]
        shift, factor, *_ = graphs.modulations[following.index].split(1, dim=1)
        _, normed = add_norm(hidden, change, gate, factor, shift, following.norm1.eps, out=graphs.hidden)
        following._launch_project(normed)


@dataclass
class _Captured:
    """The graphs of one block, and the pool that they belong to; `before` in the first block alone."""

    pool: Any = None
    before: torch.cuda.CUDAGraph | None = None
    after: torch.cuda.CUDAGraph | None = None
