"""diffusers' Wan transformer made causal: its self-attention on a cache, its positions those of a plan.

diffusers' forward is not overridden. `rope`, the 2 x L attention processors and what a block computes between
them are replaced; what `rope` returns reaches the self-attention processors untouched, so it carries the
rotation of the call.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, ClassVar, Generic, TypeVar

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttention
from torch import Tensor, nn
from torch.nn import functional

from qvg_cli.cache.kv_cache import KVCache, LayerCache, Rotation
from qvg_cli.models.parallel import Tokens
from qvg_cli.models.wan.graphs import BlockGraphs, GraphedBlock, fuse
from qvg_cli.models.wan.rope import FrameRotation
from qvg_cli.planning.cache_plan import Commit
from qvg_cli.planning.chunks import ChunkPlan, Frames
from qvg_kernels.norm.modulate import norm_joined
from qvg_kernels.rope.tables import RotaryTables

CallT = TypeVar("CallT", bound="Call")


@dataclass
class Call:
    """What the layers need to know of one model call, set by the denoiser before it.

    Attributes:
        frames: Frames of the input, in order.
        commit: What the call leaves in each layer; `None` leaves nothing.
        processors: Attention of the layers, by name.
    """

    chunk: ChunkPlan
    frames: Frames = ()
    commit: Commit | None = None
    tokens: Tokens = field(default_factory=Tokens)
    processors: dict[str, Any] = field(default_factory=dict)

    @property
    def reads(self) -> Frames:
        """Frames of the history to attend to: not those that pass through the model in this call."""
        return tuple(frame for frame in self.chunk.reads if frame not in self.frames)

    def to_heads(self, layer: LayerCache, *states: Tensor) -> tuple[Tensor, ...]:
        """Each `[B, H, S, D]` of the tokens that pass here for the heads that attend here, and all tokens."""
        return self.tokens.to_heads(states, layer.tokens_per_frame)

    def observe(self, layer: LayerCache, query: Tensor, *rotations: Rotation) -> None:
        """Let `layer` learn from queries `[B, H, S, D]` of the heads that attend here, not rotated."""
        if layer.is_observing:
            (query,) = self.tokens.to_held((query,))
            layer.observe(query, self.frames, *rotations)

    def attend(
        self,
        layer: LayerCache,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rotation: Rotation,
        value_rotation: Rotation | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """What rotated queries gather from the history of `layer` and the call, `[B, H, S, D]` each."""
        return layer.attend(
            query,
            key,
            value,
            frames=self.frames,
            reads=self.reads,
            rotation=rotation,
            value_rotation=value_rotation,
            out=out,
        )

    def to_tokens(self, layer: LayerCache, *states: Tensor) -> tuple[Tensor, ...]:
        """Each `[B, S, H, D]` of the heads that attend here as `[B, S, C]` of the tokens that pass here."""
        return self.tokens.to_tokens(states, layer.tokens_per_frame)

    def fill(self, layer: LayerCache, key: Tensor, value: Tensor) -> None:
        """Leave in `layer` what the call commits, if it does."""
        if self.commit is not None:
            key, value = self.tokens.to_held((key, value))
            layer.commit(key, value, self.frames, self.commit)


class FrameRope(nn.Module):
    """Stands where a model keeps its rotary embedding, and returns the rotation itself.

    Args:
        max_positions: Of each axis.

    Attributes:
        call: Of which the rotation is, where the model calls this module itself.
    """

    def __init__(self, head_dim: int, max_positions: int, patch_size: tuple[int, int, int]) -> None:
        super().__init__()
        self.call: Call | None = None
        self._head_dim = head_dim
        self._max_positions = max_positions
        self._patch_size = patch_size
        self._tables: RotaryTables | None = None

    def forward(self, latents: Tensor) -> FrameRotation:
        """The rotation for `[B, C, F, h, w]` latents of the call."""
        assert self.call is not None
        if self._tables is None:
            self._tables = RotaryTables.of(self._head_dim, self._max_positions, latents.device)
        _, rows, columns = self._patch_size
        chunk = self.call.chunk
        height, width = latents.shape[-2] // rows, latents.shape[-1] // columns
        return FrameRotation(self._tables, height, width, chunk.view, chunk.positions)


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


class CachedSelfAttention(Generic[CallT]):
    """Self-attention processor of one layer: attends to the cache and, in a cache-update pass, fills it.

    In three parts: the middle one alone depends on the history, the others exchange tokens for heads.
    """

    _attention_backend = None
    _parallel_config = None

    def __init__(self, layer: LayerCache, call: CallT) -> None:
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
        query, key, value = self.project(attn, hidden_states)
        return self.output(attn, *self.attend(query, key, value, rotary_emb))

    def project(
        self, attn: WanAttention, hidden_states: Tensor, out: Sequence[Tensor] = ()
    ) -> tuple[Tensor, ...]:
        """Queries, keys and values `[B, H, S, D]` of the heads that attend here, not rotated.

        Args:
            out: What an earlier call has returned, to be overwritten if nothing is exchanged.
        """
        if not attn.fused_projections:
            query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
            states: tuple[Tensor, ...] = (attn.norm_q(query), attn.norm_k(key), value)
        else:
            held = [join_heads(each) for each in out] if self.call.tokens.size == 1 else []
            norms = attn.norm_q.weight, attn.norm_k.weight, attn.norm_q.eps
            states = norm_joined(attn.to_qkv(hidden_states), *norms, held)
        return self.call.to_heads(self.layer, *(self.by_head(each, attn.heads) for each in states))

    def by_head(self, states: Tensor, heads: int) -> Tensor:
        """`[B, S, H * D]` to `[B, H, S, D]`."""
        return split_heads(states, heads)

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rotary_emb: FrameRotation,
        out: Sequence[Tensor] = (),
    ) -> tuple[Tensor, ...]:
        """What the queries gather from the history and the call, `[B, S, H, D]`; fills the cache.

        Args:
            out: As what is returned, to be overwritten where that saves a copy.
        """
        call, layer = self.call, self.layer
        call.observe(layer, query, rotary_emb)
        query = rotary_emb.rotate(query, call.frames)
        held = out[0].transpose(1, 2) if out else None
        attended = call.attend(layer, query, key, value, rotary_emb, out=held)
        call.fill(layer, key, value)
        return (attended.transpose(1, 2),)

    def output(self, attn: WanAttention, *attended: Tensor) -> Tensor:
        """`[B, S, C]` of what was gathered."""
        (joined,) = self.call.to_tokens(self.layer, *attended)
        return attn.to_out[0](joined)


class TextCrossAttention:
    """Cross-attention processor of one layer; the text's keys and values are computed once per prompt."""

    _attention_backend = None
    _parallel_config = None

    def __init__(self) -> None:
        self._text: tuple[Tensor, Tensor] | None = None
        self._is_stale = True

    def forget(self) -> None:
        """Compute keys and values anew at the next call, from another prompt."""
        self._is_stale = True

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        rotary_emb: None = None,
    ) -> Tensor:
        """`[B, S, C]` attending to prompt embeddings `[B, N, C]`, zero rows included, without a mask."""
        if self._is_stale or self._text is None:
            key = split_heads(attn.norm_k(attn.to_k(encoder_hidden_states)), attn.heads)
            value = split_heads(attn.to_v(encoder_hidden_states), attn.heads)
            if self._text is None:
                self._text = key, value
            else:
                # In their places: captured graphs read them there.
                for held, new in zip(self._text, (key, value), strict=True):
                    held.copy_(new)
            self._is_stale = False
        query = split_heads(attn.norm_q(attn.to_q(hidden_states)), attn.heads)
        attended = functional.scaled_dot_product_attention(query, *self._text)
        return attn.to_out[0](join_heads(attended))


class CausalWanTransformer(WanTransformer3DModel):  # type: ignore[misc]  # diffusers has no types
    """What the Wan families share; `from_pretrained` loads each of them.

    Attributes:
        stays_on_device: Parts beside the blocks that never wait elsewhere: small, and at work in every call.
        self_attention: Processor of each layer, made of its cache and the call.
    """

    stays_on_device: ClassVar = ("patch_embedding", "condition_embedder", "norm_out", "proj_out")
    self_attention: ClassVar[type[Any]] = CachedSelfAttention
    cross_attention: ClassVar[type[TextCrossAttention]] = TextCrossAttention

    # Under the signature of diffusers, which reads the names of the settings from it.
    @wraps(WanTransformer3DModel.__init__)  # type: ignore[misc]
    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._graphs: BlockGraphs | None = None
        self._tokens = Tokens()
        for block in self.blocks:
            fuse(block)
        config = self.config
        self.rope = FrameRope(config.attention_head_dim, config.rope_max_seq_len, tuple(config.patch_size))
        self.adapt()

    def adapt(self) -> None:
        """Replace or add what a family has otherwise, once the stock model is built."""

    def attach(self, cache: KVCache) -> Call:
        """Read and fill `cache`, and forget the last prompt; returns what is to be set before every call."""
        return self.attach_call(Call(ChunkPlan(0, ())), cache)

    def attach_call(self, call: CallT, cache: KVCache) -> CallT:
        """`attach`, with a call of the family's own kind."""
        call.tokens = self._tokens
        for index, layer in enumerate(cache.layers):
            call.processors[f"blocks.{index}.attn1.processor"] = self.self_attention(layer, call)
            call.processors[f"blocks.{index}.attn2.processor"] = self.cross_attention()
        self.use(call)
        return call

    def use(self, call: Call) -> None:
        """Read and fill the cache that was attached for `call`, though others were attached since."""
        if self.rope.call is not call:
            self.rope.call = call
            if self._graphs is not None:
                self._graphs.reset()
            # diffusers empties what it is given.
            self.set_attn_processor(dict(call.processors))

    def share_tokens(self, tokens: Tokens) -> None:
        """Let only some tokens of a call pass the blocks here, from now on."""
        self._tokens = tokens

        def split(block: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            states, *others, rotation = arguments
            return (tokens.split(states, rotation.tokens_per_frame), *others, rotation)

        def gather(block: nn.Module, arguments: tuple[Any, ...], states: Tensor) -> Tensor:
            return tokens.gather(states, arguments[-1].tokens_per_frame)

        self.blocks[0].register_forward_pre_hook(split)
        self.blocks[-1].register_forward_hook(gather)

    def join_projections(self) -> None:
        """Compute queries, keys and values of a block in one product from now on, in as much memory."""
        for block in self.blocks:
            attention = block.attn1
            attention.fuse_projections()
            # diffusers keeps them beside the joined ones.
            del attention.to_q, attention.to_k, attention.to_v

    def capture_blocks(self) -> None:
        """Launch the blocks as CUDA graphs from now on; their weights stay where they are."""
        self._graphs = GraphedBlock.take(self.blocks)

    def forget_text(self) -> None:
        """Let every layer of an attached model read the prompt embeddings anew at the next call."""
        if self._graphs is not None:
            self._graphs.forget_text()
        for processor in self.attn_processors.values():
            if isinstance(processor, TextCrossAttention):
                processor.forget()


def split_heads(states: Tensor, heads: int) -> Tensor:
    """`[B, S, H * D]` to `[B, H, S, D]`."""
    return states.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(states: Tensor) -> Tensor:
    """`[B, H, S, D]` to `[B, S, H * D]`."""
    return states.transpose(1, 2).flatten(2)
