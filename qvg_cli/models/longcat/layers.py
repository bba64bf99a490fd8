"""The parts of the LongCat-Video transformer, under the names of its published checkpoint.

Invariant: norms, modulation, gates and the final layer compute in float32 whatever the dtype of the rest.

Source: meituan-longcat/LongCat-Video, `longcat_video/modules/` (`longcat_video_dit.py`, `attention.py`,
`blocks.py`, `rope_3d.py`), for every formula and name in this file.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.normalization import FP32LayerNorm
from torch import Tensor, nn
from torch.nn import functional

from qvg_cli.cache.kv_cache import LayerCache
from qvg_cli.errors import MissingModelError
from qvg_cli.models.wan.rope import FrameRotation
from qvg_cli.models.wan.transformer import Call

NORM_EPS = 1e-6
_FFN_MULTIPLE = 256
_FFN_TOKENS = 8192


@dataclass(frozen=True)
class TransformerConfig:
    """The fields of `dit/config.json` that change the arithmetic, under their names there.

    Attributes:
        caption_channels: Of the prompt embeddings.
        adaln_tembed_dim: Width of the timestep embedding.
        frequency_embedding_size: Width of the timestep's sinusoid.
        text_tokens_zero_pad: Whether padding is attended to, as zeros after the projection, or masked.
    """

    in_channels: int
    out_channels: int
    hidden_size: int
    depth: int
    num_heads: int
    caption_channels: int
    mlp_ratio: int
    adaln_tembed_dim: int
    frequency_embedding_size: int
    patch_size: tuple[int, int, int]
    text_tokens_zero_pad: bool

    @classmethod
    def read(cls, values: Mapping[str, Any], source: object) -> Self:
        """The fields of `values`, which come from `source`; `MissingModelError` if one is missing."""
        names = [field.name for field in fields(cls)]
        missing = [name for name in names if name not in values]
        if missing:
            raise MissingModelError(
                f"{source} lacks {', '.join(missing)}; it is not that of a LongCat-Video model"
            )
        chosen = {name: values[name] for name in names}
        return cls(**{**chosen, "patch_size": tuple(values["patch_size"])})

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def ffn_size(self) -> int:
        """Width of the gated feed-forward: two thirds of `mlp_ratio * hidden_size`, rounded up."""
        width = int(2 * self.mlp_ratio * self.hidden_size / 3)
        return -(-width // _FFN_MULTIPLE) * _FFN_MULTIPLE


@dataclass(frozen=True)
class ProjectedPrompt:
    """A prompt as the blocks read it.

    Attributes:
        states: `[B, N, D]`, projected.
        mask: `[B, 1, 1, N]`, true where a token is attended to; `None` when all are.
    """

    states: Tensor
    mask: Tensor | None

    def __getitem__(self, rows: slice) -> Self:
        return type(self)(self.states[rows], None if self.mask is None else self.mask[rows])


class PatchEmbedder(nn.Module):
    """Latents to tokens: frame, then row, then column."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        patch = config.patch_size
        self.proj = nn.Conv3d(config.in_channels, config.hidden_size, kernel_size=patch, stride=patch)

    def forward(self, latents: Tensor) -> Tensor:
        """`[B, C, F, h, w]` to `[B, S, D]`."""
        return self.proj(latents).flatten(2).transpose(1, 2)


class TimestepEmbedder(nn.Module):
    """Sinusoid of the timestep, cosines first, and two layers; all float32."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.num_channels = config.frequency_embedding_size
        width = config.adaln_tembed_dim
        self.mlp = nn.Sequential(nn.Linear(self.num_channels, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, timesteps: Tensor) -> Tensor:
        """`[N]` float32 timesteps on the 0..1000 scale to `[N, E]` float32."""
        sinusoid = get_timestep_embedding(
            timesteps, self.num_channels, flip_sin_to_cos=True, downscale_freq_shift=0
        )
        return self.mlp(sinusoid)


class CaptionEmbedder(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.y_proj = nn.Sequential(
            nn.Linear(config.caption_channels, width), nn.GELU(approximate="tanh"), nn.Linear(width, width)
        )

    def forward(self, prompt_embeds: Tensor) -> Tensor:
        """`[B, N, C]` to `[B, N, D]`."""
        return self.y_proj(prompt_embeds)


class SelfAttention(nn.Module):
    """Attention of a call's tokens to the history and each other; a cache-update pass fills the cache."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = nn.RMSNorm(config.head_dim, eps=NORM_EPS)
        self.k_norm = nn.RMSNorm(config.head_dim, eps=NORM_EPS)
        self.proj = nn.Linear(width, width)

    def forward(self, states: Tensor, rotation: FrameRotation, layer: LayerCache, call: Call) -> Tensor:
        """`[B, S, D]` to `[B, S, D]`."""
        query, key, value = self.qkv(states).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = self.q_norm(query), self.k_norm(key)
        query, key, value = call.to_heads(layer, query, key, value)
        if call.commit is not None:
            # Processes that share the guidance would learn from other steps each.
            call.observe(layer, query, rotation)
        attended = call.attend(layer, rotation.rotate(query, call.frames), key, value, rotation)
        call.fill(layer, key, value)
        (joined,) = call.to_tokens(layer, attended.transpose(1, 2))
        return self.proj(joined)


class CrossAttention(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_heads
        self.q_linear = nn.Linear(width, width)
        self.kv_linear = nn.Linear(width, 2 * width)
        self.q_norm = nn.RMSNorm(config.head_dim, eps=NORM_EPS)
        self.k_norm = nn.RMSNorm(config.head_dim, eps=NORM_EPS)
        self.proj = nn.Linear(width, width)

    def forward(self, states: Tensor, text: ProjectedPrompt) -> Tensor:
        """`[B, S, D]` to `[B, S, D]`."""
        query = self.q_linear(states).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        key, value = self.kv_linear(text.states).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(
            self.q_norm(query), self.k_norm(key), value, attn_mask=text.mask
        )
        return self.proj(attended.transpose(1, 2).flatten(2))


class GatedFeedForward(nn.Module):
    """`w2(silu(w1 x) * w3 x)`, without biases.

    Computed for some tokens at a time: at the published size, the wide layer of a base clip with guidance
    takes 1.6 GB, and three of them would be held at once.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.ffn_size, bias=False)
        self.w2 = nn.Linear(config.ffn_size, config.hidden_size, bias=False)
        self.w3 = nn.Linear(config.hidden_size, config.ffn_size, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        """`[B, S, D]` to `[B, S, D]`."""
        parts = states.split(_FFN_TOKENS, dim=1)
        return torch.cat([self.w2(functional.silu(self.w1(part)) * self.w3(part)) for part in parts], dim=1)


class Block(nn.Module):
    """Self-attention, attention to the text, feed-forward; the timestep modulates the first and the last."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.adaLN_modulation = _modulation(config, 6)
        self.pre_crs_attn_norm = FP32LayerNorm(config.hidden_size, eps=NORM_EPS)
        self.attn = SelfAttention(config)
        self.cross_attn = CrossAttention(config)
        self.ffn = GatedFeedForward(config)

    def forward(
        self,
        states: Tensor,
        time: Tensor,
        text: ProjectedPrompt | None,
        rotation: FrameRotation,
        layer: LayerCache,
        call: Call,
    ) -> Tensor:
        """`[B, S, D]` to `[B, S, D]`.

        Args:
            time: `[B, F, E]` float32.
            text: None leaves out the attention to the text.
        """
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = self.adaLN_modulation(time).chunk(6, dim=-1)
        attended = self.attn(_modulate(states, shift, scale).to(states.dtype), rotation, layer, call)
        states = _add_gated(states, attended, gate)
        if text is not None:
            states = states + self.cross_attn(self.pre_crs_attn_norm(states), text)
        return _add_gated(
            states, self.ffn(_modulate(states, ffn_shift, ffn_scale).to(states.dtype)), ffn_gate
        )


class FinalLayer(nn.Module):
    """Tokens to the channels of their patches; all float32."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        frames, rows, columns = config.patch_size
        self.linear = nn.Linear(config.hidden_size, frames * rows * columns * config.out_channels)
        self.adaLN_modulation = _modulation(config, 2)

    def forward(self, states: Tensor, time: Tensor) -> Tensor:
        """`[B, S, D]` and `[B, F, E]` to `[B, S, pt * ph * pw * C]` float32, channels fastest."""
        shift, scale = self.adaLN_modulation(time).chunk(2, dim=-1)
        return self.linear(_modulate(states, shift, scale))


def _modulation(config: TransformerConfig, num_vectors: int) -> nn.Sequential:
    """The timestep's shifts, scales and gates, one of each a latent frame."""
    return nn.Sequential(nn.SiLU(), nn.Linear(config.adaln_tembed_dim, num_vectors * config.hidden_size))


def _by_frame(states: Tensor, num_frames: int) -> Tensor:
    """`[B, S, D]` to `[B, F, S / F, D]` float32."""
    batch, _, width = states.shape
    return states.float().reshape(batch, num_frames, -1, width)


def _modulate(states: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm without weights, then `scale` and `shift`, `[B, F, D]` each; `[B, S, D]` float32."""
    normed = functional.layer_norm(_by_frame(states, shift.shape[1]), states.shape[-1:], eps=NORM_EPS)
    # In place: at the published size these are 1.2 GB.
    return normed.mul_(1 + scale.unsqueeze(2)).add_(shift.unsqueeze(2)).flatten(1, 2)


def _add_gated(states: Tensor, added: Tensor, gate: Tensor) -> Tensor:
    """`states + gate * added` in float32, rounded to the dtype of `states`; `gate` is `[B, F, D]`."""
    num_frames = gate.shape[1]
    total = torch.addcmul(_by_frame(states, num_frames), gate.unsqueeze(2), _by_frame(added, num_frames))
    return total.flatten(1, 2).to(states.dtype)
