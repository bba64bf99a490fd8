"""The causal model: diffusers' Wan transformer, its self-attention on a cache and its positions absolute.

Nothing of diffusers' forward is overridden. `model.rope` and the 2 x L attention processors are replaced;
what `rope` returns reaches the self-attention processors untouched, so it carries the rotation of the call.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttention
from torch import Tensor, nn
from torch.nn import functional

from qvg_cli.cache.kv_cache import KVCache, LayerCache
from qvg_cli.models.wan.rope import FrameRotation
from qvg_cli.planning.cache_plan import Commit
from qvg_cli.planning.chunks import ChunkPlan, Frames
from qvg_kernels.rope.tables import RotaryTables


@dataclass
class Call:
    """What the processors of one model call need to know, set by the session before the call.

    Attributes:
        chunk: The plan of the chunk.
        frames: Frames of the input, in order.
        commit: What the call leaves in each layer; `None` leaves nothing.
    """

    chunk: ChunkPlan
    frames: Frames = ()
    commit: Commit | None = None

    @property
    def reads(self) -> Frames:
        """Frames of the history to attend to: not those that pass through the model in this call."""
        return tuple(frame for frame in self.chunk.reads if frame not in self.frames)


class FrameRope(nn.Module):
    """Stands where the model keeps its rotary embedding, and returns the rotation itself."""

    def __init__(self, tables: RotaryTables, patch_size: tuple[int, int, int]) -> None:
        super().__init__()
        self.tables = tables
        self.patch_size = patch_size
        self.call: Call | None = None

    def forward(self, hidden_states: Tensor) -> FrameRotation:
        """The rotation for latents of this height and width, `[B, C, F, h, w]`."""
        _, rows, columns = self.patch_size
        assert self.call is not None
        return FrameRotation(
            self.tables,
            hidden_states.shape[-2] // rows,
            hidden_states.shape[-1] // columns,
            self.call.chunk.view,
            self.call.chunk.positions,
        )


class TimestepSinusoid(nn.Module):
    """Sinusoid of the timestep, cosines first, angles in float64 as in the original model.

    Source: Wan-Video/Wan2.1, `sinusoidal_embedding_1d` in `wan/modules/model.py`. diffusers computes it in
    float32, which alone is most of the difference to the original's output.
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.num_channels = num_channels

    def forward(self, timesteps: Tensor) -> Tensor:
        """`[N]` timesteps to `[N, num_channels]` float32."""
        half = self.num_channels // 2
        exponent = torch.arange(half, dtype=torch.float64, device=timesteps.device) / half
        angles = timesteps.double()[:, None] * torch.exp(-math.log(10000.0) * exponent)
        return torch.cat([angles.cos(), angles.sin()], dim=-1).float()


class CachedSelfAttention:
    """Self-attention processor of one layer: attends to the cache and, in a clean pass, fills it."""

    _attention_backend = None
    _parallel_config = None

    def __init__(self, layer: LayerCache, call: Call) -> None:
        self.layer = layer
        self.call = call

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: FrameRotation | None = None,
    ) -> Tensor:
        """`[B, S, C]` to `[B, S, C]`."""
        assert rotary_emb is not None
        call = self.call
        query = _split_heads(attn.norm_q(attn.to_q(hidden_states)), attn.heads)
        key = _split_heads(attn.norm_k(attn.to_k(hidden_states)), attn.heads)
        value = _split_heads(attn.to_v(hidden_states), attn.heads)
        query = rotary_emb.rotate(query, call.frames)
        attended = self.layer.attend(
            query, key, value, frames=call.frames, reads=call.reads, rotation=rotary_emb
        )
        if call.commit is not None:
            self.layer.commit(key, value, call.frames, call.commit)
        output: Tensor = attn.to_out[0](_join_heads(attended))
        return output


class TextCrossAttention:
    """Cross-attention processor of one layer; the text's keys and values are computed once per prompt."""

    _attention_backend = None
    _parallel_config = None

    def __init__(self) -> None:
        self._text: tuple[Tensor, Tensor] | None = None

    def forget(self) -> None:
        """Compute keys and values anew at the next call, from another prompt."""
        self._text = None

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        rotary_emb: None = None,
    ) -> Tensor:
        """`[B, S, C]` attending to text states `[B, N, C]`, zero rows included, without a mask."""
        if self._text is None:
            key = _split_heads(attn.norm_k(attn.to_k(encoder_hidden_states)), attn.heads)
            value = _split_heads(attn.to_v(encoder_hidden_states), attn.heads)
            self._text = key, value
        query = _split_heads(attn.norm_q(attn.to_q(hidden_states)), attn.heads)
        attended = functional.scaled_dot_product_attention(query, *self._text)
        output: Tensor = attn.to_out[0](_join_heads(attended))
        return output


def prepare(model: WanTransformer3DModel, device: torch.device | None = None) -> None:
    """Give the model absolute positions and the original timestep sinusoid; done once after loading.

    Args:
        device: Where the model will compute; none is where its weights are.
    """
    config = model.config
    tables = RotaryTables.of(
        config.attention_head_dim, config.rope_max_seq_len, device or model.patch_embedding.weight.device
    )
    model.rope = FrameRope(tables, tuple(config.patch_size))
    model.condition_embedder.timesteps_proj = TimestepSinusoid(config.freq_dim)


def attach(model: WanTransformer3DModel, cache: KVCache) -> Call:
    """Make the model read and fill `cache` and forget the last prompt.

    Returns:
        What the session sets before every model call.
    """
    call = Call(ChunkPlan(0, ()))
    model.rope.call = call
    processors: dict[str, object] = {}
    for index, layer in enumerate(cache.layers):
        processors[f"blocks.{index}.attn1.processor"] = CachedSelfAttention(layer, call)
        processors[f"blocks.{index}.attn2.processor"] = TextCrossAttention()
    model.set_attn_processor(processors)
    return call


def forget_text(model: WanTransformer3DModel) -> None:
    """Let every layer of an attached model read the text anew at the next call."""
    for processor in model.attn_processors.values():
        if isinstance(processor, TextCrossAttention):
            processor.forget()


def _split_heads(states: Tensor, heads: int) -> Tensor:
    """`[B, S, H * D]` to `[B, H, S, D]`."""
    split: Tensor = states.unflatten(-1, (heads, -1))
    return split.transpose(1, 2)


def _join_heads(states: Tensor) -> Tensor:
    """`[B, H, S, D]` to `[B, S, H * D]`."""
    return states.transpose(1, 2).flatten(2)
