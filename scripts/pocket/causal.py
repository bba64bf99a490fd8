"""Causal video diffusion with the stock Wan transformer: the training pass and the cached rollout.

Semantics are Self-Forcing's: blocks of three latent frames; a block is denoised while it attends to the clean
past, then runs once more at timestep 0 so that its keys and values become the past. Positions are absolute
frame indices. With a rolling window a block sees the sink (the first block) and the newest `window - sink`
frames, itself included.

The training pass does all blocks of a clip at once: one sequence holds the clean frames and the noisy frames,
and a noisy block sees the clean blocks that the rollout would have cached, and itself. It calls the stock
sub-modules, so that a checkpoint behaves the same under stock inference; tests/unit/pocket holds the two
against each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from torch import Tensor, nn

BLOCK_FRAMES = 3
WINDOW_FRAMES = 21
SINK_FRAMES = 3
# The four steps of the sampler: timestep = 1000 sigma, sigma = 5 u / (1 + 4 u) for u = 1, 3/4, 1/2, 1/4.
TIMESTEPS = (1000.0, 937.5, 833.3333333333334, 625.0)

PAST_BLOCKS = (WINDOW_FRAMES - SINK_FRAMES) // BLOCK_FRAMES - 1


def build_transformer(
    *, num_layers: int = 6, ffn_dim: int = 1024, text_dim: int = 128
) -> WanTransformer3DModel:
    """Two heads of 128 channels, ready to be trained."""
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=128,
        in_channels=16,
        out_channels=16,
        text_dim=text_dim,
        freq_dim=256,
        ffn_dim=ffn_dim,
        num_layers=num_layers,
        cross_attn_norm=True,
        rope_max_seq_len=1024,
    )
    initialize(model)
    return model


def initialize(model: WanTransformer3DModel) -> None:
    """Draw the weights anew; residual branches start open and the output at zero: that trains fast."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.normal_(model.condition_embedder.time_proj.weight, std=0.01)
    nn.init.zeros_(model.proj_out.weight)
    with torch.no_grad():
        model.scale_shift_table.zero_()
        for block in model.blocks:
            block.scale_shift_table.zero_()
            block.scale_shift_table[:, [2, 5]] = 1.0


@cache
def _stock_rope(
    head_dim: int, patch_size: tuple[int, ...], length: int, device: torch.device
) -> WanRotaryPosEmbed:
    """diffusers' rope, which the backend's model has another for."""
    return WanRotaryPosEmbed(head_dim, patch_size, length).to(device)


def rope_tables(
    model: WanTransformer3DModel, frames: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """Cosines and sines `[B, F * height * width, 1, 64]` for absolute frame indices `frames` `[B, F]`.

    Heads hold 44 channels for time, 42 for rows and 42 for columns, in adjacent pairs, as in diffusers' rope.
    """
    config = model.config
    rope = _stock_rope(
        config.attention_head_dim, tuple(config.patch_size), config.rope_max_seq_len, frames.device
    )
    tables = []
    for values in (rope.freqs_cos, rope.freqs_sin):
        time, row, column = values[:, 0::2].split([rope.t_dim // 2, rope.h_dim // 2, rope.w_dim // 2], dim=1)
        shape = (*frames.shape, height, width, -1)
        parts = [
            time[frames][:, :, None, None].expand(shape),
            row[:height][None, None, :, None].expand(shape),
            column[:width][None, None, None].expand(shape),
        ]
        tables.append(torch.cat(parts, dim=-1).flatten(1, 3)[:, :, None])
    return tables[0], tables[1]


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Apply RoPE to `[B, S, H, D]`, pairs of adjacent channels, in fp32."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return (
        torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], dim=-1).flatten(-2).type_as(x)
    )


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Plain attention over `[B, S, H, D]`."""
    heads_first = (tensor.transpose(1, 2) for tensor in (query, key, value))
    return F.scaled_dot_product_attention(*heads_first).transpose(1, 2)


def attend_text(attention: nn.Module, hidden: Tensor, text: Tensor) -> Tensor:
    """Stock cross-attention of `[B, ..., C]` tokens to text `[B, L, C]`."""
    query = attention.norm_q(attention.to_q(hidden)).flatten(1, -2).unflatten(-1, (attention.heads, -1))
    key = attention.norm_k(attention.to_k(text)).unflatten(-1, (attention.heads, -1))
    value = attention.to_v(text).unflatten(-1, (attention.heads, -1))
    mixed = attend(query.to(value.dtype), key.to(value.dtype), value).flatten(-2).view(hidden.shape)
    return attention.to_out[0](mixed)


def unpatchify(patches: Tensor, frames: int, rows: int, columns: int) -> Tensor:
    """`[B, ..., 4 * C]` patches of 2x2, channels fastest, to `[B, C, frames, 2 * rows, 2 * columns]`."""
    x = patches.reshape(len(patches), frames, rows, columns, 2, 2, -1)
    return x.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)


def visible_blocks(block: int) -> list[int]:
    """The blocks before `block` that it sees: the sink and those of the window."""
    recent = range(max(1, block - PAST_BLOCKS), block)
    return [0, *recent] if block else []


def attend_clip(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of a training clip, `[B, 2, J, S, H, D]`: clean and noisy halves, J blocks of S tokens.

    Both halves of block j attend to the clean past of block j and to their own tokens of block j. Blocks with
    equally long pasts go through together, so there is no mask and no wasted product.
    """
    batch, halves, blocks = query.shape[:3]
    outputs = []
    first_full = PAST_BLOCKS + 1
    groups = [[j] for j in range(min(first_full, blocks))]
    if blocks > first_full:
        groups.append(list(range(first_full, blocks)))
    for group in groups:

        def gather(source: Tensor, group: list[int] = group) -> Tensor:
            per_block = []
            for block in group:
                own = source[:, :, block]
                past = [source[:, :1, seen].expand_as(own) for seen in visible_blocks(block)]
                per_block.append(torch.cat([*past, own], dim=2))
            return torch.stack(per_block, dim=2).flatten(0, 2)

        queries = query[:, :, group[0] : group[-1] + 1]
        result = attend(queries.flatten(0, 2), gather(key), gather(value))
        outputs.append(result.unflatten(0, (batch, halves, len(group))))
    return torch.cat(outputs, dim=2)


def _clip_block(
    block: nn.Module, x: Tensor, text: Tensor, modulation: Tensor, cosine: Tensor, sine: Tensor
) -> Tensor:
    """One transformer block on `[B, 2, J, S, C]` with a modulation per block `[B, 2, J, 1, 6, C]`."""
    table = block.scale_shift_table + modulation.float()
    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = table.unbind(-2)
    attention = block.attn1
    hidden = block.norm1(x) * (1 + scale_1) + shift_1
    shape = (*x.shape[:-1], attention.heads, -1)
    query = rotate(attention.norm_q(attention.to_q(hidden)).view(shape), cosine, sine)
    key = rotate(attention.norm_k(attention.to_k(hidden)).view(shape), cosine, sine)
    value = attention.to_v(hidden).view(shape)
    dtype = value.dtype
    mixed = attend_clip(query.to(dtype), key.to(dtype), value).flatten(-2)
    x = x + attention.to_out[0](mixed) * gate_1

    x = x + attend_text(block.attn2, block.norm2(x), text)
    return x + block.ffn(block.norm3(x) * (1 + scale_2) + shift_2) * gate_2


class ClipForward:
    """The training pass; `compiled` fuses the element-wise work of a block."""

    def __init__(self, model: WanTransformer3DModel, *, compiled: bool = False) -> None:
        self.model = model
        self.run_block = torch.compile(_clip_block, dynamic=False) if compiled else _clip_block

    def __call__(
        self, clean: Tensor, noisy: Tensor, frames: Tensor, timesteps: Tensor, text: Tensor
    ) -> Tensor:
        """Predict the flow of every noisy block.

        Args:
            clean, noisy: `[B, 16, F, h, w]` normalised latents; the clean ones are the past.
            frames: `[B, F]` absolute latent frame indices.
            timesteps: `[B, J]` of the noisy blocks, J = F / 3; the clean half is at timestep 0.
            text: `[B, L, text_dim]`, rows beyond the prompt zero.

        Returns:
            `[B, 16, F, h, w]` flow, noise minus data, in fp32.
        """
        model = self.model
        batch, _, count, height, width = clean.shape
        blocks, rows, columns = count // BLOCK_FRAMES, height // 2, width // 2
        x = model.patch_embedding(torch.cat([clean, noisy], dim=2)).float()
        x = x.flatten(2).transpose(1, 2).contiguous()
        x = x.unflatten(1, (2, blocks, BLOCK_FRAMES * rows * columns))
        cosine, sine = rope_tables(model, frames, rows, columns)
        cosine, sine = (t.unflatten(1, (1, blocks, -1)) for t in (cosine, sine))

        all_timesteps = torch.stack([torch.zeros_like(timesteps), timesteps], dim=1)
        temb, modulation, text, _ = model.condition_embedder(all_timesteps.flatten(), text)
        temb = temb.unflatten(0, (batch, 2, blocks)).unsqueeze(-2)
        modulation = modulation.unflatten(0, (batch, 2, blocks)).unflatten(-1, (6, -1)).unsqueeze(-3)
        for block in model.blocks:
            x = self.run_block(block, x, text, modulation, cosine, sine)

        shift, scale = (model.scale_shift_table.view(1, 1, 1, 1, 2, -1) + temb[:, 1:].unsqueeze(-2)).unbind(
            -2
        )
        x = model.proj_out(model.norm_out(x[:, 1:]) * (1 + scale) + shift).float()
        return unpatchify(x, count, rows, columns)


@dataclass
class RolloutState:
    """What the cached self-attention of all layers shares: the current block, and whether it is kept."""

    frames: Tensor  # [n] absolute indices of the current block
    rows: int
    columns: int
    block: int
    is_commit: bool


class CachedSelfAttention:
    """Attention processor that keeps the rotated keys and the values of every block still to be seen."""

    _attention_backend = None
    _parallel_config = None

    def __init__(self, model: WanTransformer3DModel, state: RolloutState) -> None:
        self.model, self.state = model, state
        self.past: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        state = self.state
        shape = (*hidden_states.shape[:2], attn.heads, -1)
        cosine, sine = rope_tables(self.model, state.frames[None], state.rows, state.columns)
        query = rotate(attn.norm_q(attn.to_q(hidden_states)).view(shape), cosine, sine)
        key = rotate(attn.norm_k(attn.to_k(hidden_states)).view(shape), cosine, sine)
        value = attn.to_v(hidden_states).view(shape)
        query, key = query.type_as(value), key.type_as(value)
        seen = [self.past[block] for block in visible_blocks(state.block)]
        if state.is_commit:
            self.past[state.block] = (key, value)
            for block in [b for b in self.past if b not in visible_blocks(state.block + 1)]:
                del self.past[block]
        keys = torch.cat([*(k for k, _ in seen), key], dim=1)
        values = torch.cat([*(v for _, v in seen), value], dim=1)
        return attn.to_out[0](attend(query, keys, values).flatten(2, 3))


@torch.no_grad()
def rollout(
    model: WanTransformer3DModel,
    text: Tensor,
    *,
    frames: int,
    height: int,
    width: int,
    generator: torch.Generator,
) -> Tensor:
    """Generate `[B, 16, frames, height, width]` latents with the stock forward and cached self-attention.

    The noise comes from `generator` (on the CPU, per block), so the first seconds do not depend on the
    length.
    """
    batch, device = len(text), text.device
    if frames % BLOCK_FRAMES:
        raise ValueError(f"frames={frames} is not a multiple of {BLOCK_FRAMES} latent frames")
    state = RolloutState(torch.zeros(0), height // 2, width // 2, 0, False)
    stock = model.attn_processors
    cached = {name: CachedSelfAttention(model, state) for name in stock if ".attn1." in name}
    model.set_attn_processor({**stock, **cached})

    def noise() -> Tensor:
        return torch.randn(batch, 16, BLOCK_FRAMES, height, width, generator=generator).to(device)

    def flow(x: Tensor, timestep: float) -> Tensor:
        return model(x, torch.full((batch,), timestep, device=device), text, return_dict=False)[0].float()

    sigmas = [t / 1000 for t in TIMESTEPS]
    output = []
    try:
        for block in range(frames // BLOCK_FRAMES):
            state.block, state.is_commit = block, False
            state.frames = block * BLOCK_FRAMES + torch.arange(BLOCK_FRAMES, device=device)
            x = noise()
            for step, sigma in enumerate(sigmas):
                clean = x - sigma * flow(x, TIMESTEPS[step])
                if step + 1 < len(sigmas):
                    x = (1 - sigmas[step + 1]) * clean + sigmas[step + 1] * noise()
            state.is_commit = True
            flow(clean, 0.0)
            output.append(clean)
    finally:
        model.set_attn_processor(stock)
    return torch.cat(output, dim=2)
