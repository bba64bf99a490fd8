"""Walks with the backend's transformer: the training pass, and a rollout by means of it.

Semantics are those of `--context incremental`: chunks of four latent frames; a chunk is denoised while it
attends to the clean frames before it, then passes once more, clean and told `CONTEXT_TIMESTEP`, so that its
keys and values become the past. The first frame is the picture: given, clean, told the same timestep.
Positions count the frames in hand; cameras are absolute.

The training pass does all chunks of a clip at once: one sequence holds the clean frames and the noisy frames,
and a noisy chunk sees the clean chunks before it, and itself. tests/unit/pocket holds it against the
backend's session.
"""

from __future__ import annotations

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from qvg_cli.models.hyworldplay.memory import CHUNK_FRAMES
from qvg_cli.models.hyworldplay.model import WalkTransformer
from qvg_cli.models.hyworldplay.pipeline import PUBLISHED_TIMESTEPS
from scripts.pocket.causal import attend, attend_text, initialize, rope_tables, rotate, unpatchify

CONTEXT_TIMESTEP = 14.0
TIMESTEPS = PUBLISHED_TIMESTEPS


def world_config(*, num_layers: int = 4, ffn_dim: int = 384, text_dim: int = 128) -> dict[str, object]:
    """Arguments of the transformer: two heads of 128 channels, as the pocket model has."""
    return {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 2,
        "attention_head_dim": 128,
        "in_channels": 16,
        "out_channels": 16,
        "text_dim": text_dim,
        "freq_dim": 256,
        "ffn_dim": ffn_dim,
        "num_layers": num_layers,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "eps": 1e-6,
        "rope_max_seq_len": 1024,
    }


def build_world(config: dict[str, object]) -> WanTransformer3DModel:
    """The backend's transformer, ready to be trained."""
    model = WalkTransformer(**config)
    initialize(model)
    return model


def camera_matrices(viewmats: Tensor, focal: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """The backend's `P` and its inverse, `[B, F, 4, 4]`, of world-to-camera matrices of the same shape.

    Only where cameras are to each other matters, so all are moved to where the last one is the origin: small
    numbers survive bf16.
    """
    inverse = torch.linalg.inv(viewmats)
    viewmats, inverse = viewmats @ inverse[:, -1:], viewmats[:, -1:] @ inverse
    lens = viewmats.new_tensor([*focal, 1.0, 1.0])
    return lens[:, None] * viewmats, inverse / lens


def by_camera(states: Tensor, matrices: Tensor) -> Tensor:
    """Multiply every group of 4 channels of `[B, 2, J, 4, P, H, D]` by its frame's matrix, in fp32.

    `matrices` are `[B, 1, J, 4, 1, 1, 1, 4, 4]`.
    """
    groups = states.float().unflatten(-1, (-1, 4))
    return (groups.unsqueeze(-2) * matrices).sum(-1).flatten(-2).type_as(states)


def attend_clip(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of a training clip, `[B, 2, J, S, H, D]`: clean and noisy halves, J chunks of S tokens.

    Both halves of chunk j attend to the clean chunks before it and to their own tokens of chunk j.
    """
    batch, halves, chunks = query.shape[:3]
    outputs = []
    for chunk in range(chunks):

        def gather(source: Tensor, chunk: int = chunk) -> Tensor:
            own = source[:, :, chunk]
            past = source[:, :1, :chunk].flatten(2, 3).expand(-1, halves, -1, -1, -1)
            return torch.cat([past, own], dim=2).flatten(0, 1)

        result = attend(query[:, :, chunk].flatten(0, 1), gather(key), gather(value))
        outputs.append(result.unflatten(0, (batch, halves)))
    return torch.stack(outputs, dim=2)


def _clip_block(
    block: nn.Module,
    x: Tensor,
    text: Tensor,
    modulation: Tensor,
    rotary: tuple[Tensor, Tensor],
    cameras: tuple[Tensor, Tensor],
) -> Tensor:
    """One transformer block on `[B, 2, J, 4, P, C]` with a modulation a frame, `[B, 2, J, 4, 1, 6, C]`."""
    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = (
        block.scale_shift_table + modulation.float()
    ).unbind(-2)
    attention = block.attn1
    hidden = block.norm1(x) * (1 + scale_1) + shift_1
    shape = (*x.shape[:-1], attention.heads, -1)
    value = attention.to_v(hidden).view(shape)
    query = attention.norm_q(attention.to_q(hidden)).view(shape).type_as(value)
    key = attention.norm_k(attention.to_k(hidden)).view(shape).type_as(value)
    project, unproject = cameras

    # Both streams go through attention as one batch.
    def streams(by_place: Tensor, by_view: Tensor) -> Tensor:
        return torch.cat([by_place, by_view]).flatten(3, 4)

    mixed = attend_clip(
        streams(rotate(query, *rotary), by_camera(query, project.transpose(-1, -2))),
        streams(rotate(key, *rotary), by_camera(key, unproject)),
        streams(value, by_camera(value, unproject)),
    ).unflatten(3, (CHUNK_FRAMES, -1))
    by_place, by_view = mixed.chunk(2)
    x = x + gate_1 * (
        attention.to_out[0](by_place.flatten(-2))
        + attention.to_out_prope[0](by_camera(by_view, project).flatten(-2))
    )

    x = x + attend_text(block.attn2, block.norm2(x), text)
    return x + block.ffn(block.norm3(x) * (1 + scale_2) + shift_2) * gate_2


class WalkForward:
    """The training pass; `compiled` fuses the element-wise work of a block."""

    def __init__(self, model: WanTransformer3DModel, *, compiled: bool = False) -> None:
        self.model = model
        self.run_block = torch.compile(_clip_block, dynamic=False) if compiled else _clip_block

    def __call__(
        self,
        clean: Tensor,
        noisy: Tensor,
        timesteps: Tensor,
        actions: Tensor,
        cameras: tuple[Tensor, Tensor],
        text: Tensor,
    ) -> Tensor:
        """Predict the flow of every noisy frame.

        Args:
            clean, noisy: `[B, 16, F, h, w]` normalised latents, F = 4 J; the clean ones are the past.
            timesteps: `[B, F]` of the noisy frames; the clean half is at `CONTEXT_TIMESTEP`.
            actions: `[B, F]` labels.
            cameras: See `camera_matrices`.
            text: `[B, L, text_dim]`, rows beyond the prompt zero.

        Returns:
            `[B, 16, F, h, w]` flow, noise minus data, in fp32.
        """
        model = self.model
        batch, _, count, height, width = clean.shape
        chunks, rows, columns = count // CHUNK_FRAMES, height // 2, width // 2
        x = model.patch_embedding(torch.cat([clean, noisy], dim=2)).float()
        x = x.flatten(3).permute(0, 2, 3, 1).contiguous()
        x = x.unflatten(1, (2, chunks, CHUNK_FRAMES))
        tables = rope_tables(model, torch.arange(count, device=x.device)[None], rows, columns)
        rotary = tuple(table.view(1, 1, chunks, CHUNK_FRAMES, rows * columns, 1, -1) for table in tables)
        lenses = tuple(
            matrix.float().view(batch, 1, chunks, CHUNK_FRAMES, 1, 1, 1, 4, 4) for matrix in cameras
        )

        told = torch.cat([torch.full_like(timesteps, CONTEXT_TIMESTEP), timesteps], dim=1).flatten()
        embedder = model.condition_embedder
        states = embedder.time_embedder(embedder.timesteps_proj(told))
        states = states + embedder.action_embedder(
            embedder.timesteps_proj(actions.float().repeat(1, 2).flatten())
        )
        modulation = embedder.time_proj(embedder.act_fn(states))
        shape = (batch, 2, chunks, CHUNK_FRAMES, 1)
        modulation, states = modulation.view(*shape, 6, -1), states.view(*shape, -1)
        text = embedder.text_embedder(text)
        for block in model.blocks:
            x = self.run_block(block, x, text, modulation, rotary, lenses)

        shift, scale = (model.scale_shift_table.unsqueeze(1) + states[:, 1:].unsqueeze(-2)).unbind(-2)
        x = model.proj_out(model.norm_out(x[:, 1:]) * (1 + scale) + shift).float()
        return unpatchify(x, count, rows, columns)


@torch.no_grad()
def rollout(
    forward: WalkForward,
    image: Tensor,
    actions: Tensor,
    cameras: tuple[Tensor, Tensor],
    text: Tensor,
    *,
    generator: torch.Generator,
) -> Tensor:
    """Walk into pictures `[B, 16, 1, h, w]`: latents `[B, 16, F, h, w]`, F as `actions` `[B, F]` has.

    Every call of the model computes all chunks anew, those to come too: simple, and for short walks only.
    """
    batch, count = actions.shape
    shape = (batch, image.shape[1], count, *image.shape[3:])
    noise = torch.randn(shape, generator=generator).to(image)
    done, state = torch.zeros_like(noise), noise
    done[:, :, :1] = image
    sigmas = [*(timestep / 1000 for timestep in TIMESTEPS), 0.0]
    for start in range(0, count, CHUNK_FRAMES):
        own = slice(start, start + CHUNK_FRAMES)
        for timestep, sigma, following in zip(TIMESTEPS, sigmas[:-1], sigmas[1:], strict=True):
            told = torch.full((batch, count), timestep, device=image.device)
            told[:, 0] = CONTEXT_TIMESTEP
            state = torch.cat([image, state[:, :, 1:]], dim=2)
            flow = forward(done, state, told, actions, cameras, text)
            state = state.clone()
            state[:, :, own] += (following - sigma) * flow[:, :, own]
        done[:, :, own] = state[:, :, own]
        done[:, :, :1] = image
    return done
