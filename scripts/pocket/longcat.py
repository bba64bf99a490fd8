"""The pocket LongCat: its form, the pass that trains it, and windows sampled many at a time.

The training pass takes whole windows whose first frames are given: the given frames attend to each other
only, at timestep 0 and without text, the new frames to all. That is what the cached inference computes;
tests/unit/pocket holds the two against each other. It reads the weights by name, so that weights with an
adapter added go through the same code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qvg_cli.models.longcat.layers import NORM_EPS, TransformerConfig
from qvg_cli.models.longcat.model import LongCatTransformer
from qvg_cli.models.longcat.schedule import Schedule
from qvg_kernels.rope.tables import RotaryTables
from scripts.pocket.text import TEXT_DIM

WINDOW_FRAMES = 16
NEW_FRAMES = 6
CONDITION_FRAMES = WINDOW_FRAMES - NEW_FRAMES
GUIDANCE = 2.5
CONFIG = TransformerConfig(
    in_channels=16,
    out_channels=16,
    hidden_size=256,
    depth=4,
    num_heads=2,
    caption_channels=TEXT_DIM,
    mlp_ratio=1,
    adaln_tembed_dim=64,
    frequency_embedding_size=256,
    patch_size=(1, 2, 2),
    text_tokens_zero_pad=True,
)

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Prompts:
    """Text states of a batch: `states` `[B, N, C]`, zero where `mask` `[B, N]` is false."""

    states: Tensor
    mask: Tensor

    def __getitem__(self, index: Tensor | slice) -> Prompts:
        return Prompts(self.states[index], self.mask[index])


def build_transformer(config: TransformerConfig = CONFIG) -> LongCatTransformer:
    """Residual branches start open and the output at zero: that trains fast."""
    model = LongCatTransformer(config)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for block in model.blocks:
        modulation = block.adaLN_modulation[1]
        nn.init.normal_(modulation.weight, std=0.02)
        with torch.no_grad():
            # Shift, scale, gate of the attention, then of the feed-forward.
            modulation.bias.view(6, -1)[[2, 5]] = 1.0
    nn.init.normal_(model.final_layer.adaLN_modulation[1].weight, std=0.02)
    nn.init.zeros_(model.final_layer.linear.weight)
    return model


class WindowForward:
    """Predict `clean - noise` of whole windows.

    Args:
        compiled: Whether blocks are compiled; one that does not compile runs as it is written.
    """

    def __init__(self, model: LongCatTransformer, *, compiled: bool = False) -> None:
        self.model = model
        self.tables = RotaryTables.of(model.config.head_dim, WINDOW_FRAMES * 4, torch.device("cpu"))
        self.block = block_pass
        if compiled:
            torch._dynamo.config.suppress_errors = True
            # One variant for each number of given frames, with and without gradients and adapter.
            torch._dynamo.config.recompile_limit = 64
            self.block = torch.compile(block_pass, dynamic=False)

    def weights(self) -> list[Weights]:
        """Those of every block, by the names within it."""
        return [dict(block.named_parameters()) for block in self.model.blocks]

    def __call__(
        self,
        latents: Tensor,
        timesteps: Tensor,
        prompts: Prompts,
        *,
        given: int = 0,
        weights: list[Weights] | None = None,
    ) -> Tensor:
        """Predict the flow.

        Args:
            latents: `[B, C, F, h, w]`, the first `given` frames clean.
            timesteps: `[B]` of the other frames, on the 0..1000 scale.
            weights: Of the blocks; none takes the model's own.

        Returns:
            `[B, C, F - given, h, w]` float32.
        """
        model = self.model
        frames, height, width = latents.shape[2:]
        rows, columns = height // 2, width // 2
        states = model.x_embedder(latents).float().contiguous()
        if torch.is_grad_enabled() and not states.requires_grad:
            # For the first block of a frozen model to be the same compiled one as the others.
            states.requires_grad_()
        by_frame = timesteps.float()[:, None].expand(-1, frames).clone()
        by_frame[:, :given] = 0
        with torch.autocast(latents.device.type, enabled=False):
            time = model.t_embedder(by_frame.flatten()).unflatten(0, by_frame.shape)
        text = model.y_embedder(prompts.states) * prompts.mask.unsqueeze(-1)
        cosine, sine = self._rotation(frames, rows, columns, latents.device)
        num_given = given * rows * columns
        for block in weights or self.weights():
            states = self.block(block, states, time, text, cosine, sine, num_given)
        with torch.autocast(latents.device.type, enabled=False):
            patches = self._final(states[:, num_given:], time[:, given:])
        return model.unpatchify(patches, latents[:, :, given:])

    def _final(self, states: Tensor, time: Tensor) -> Tensor:
        layer = self.model.final_layer
        shift, scale = layer.adaLN_modulation(time).chunk(2, dim=-1)
        return layer.linear(modulate(states, shift, scale))

    def _rotation(self, frames: int, rows: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosines and sines `[F * rows * columns, D / 2]`."""
        if self.tables.cosine.device != device:
            self.tables = RotaryTables(self.tables.cosine.to(device), self.tables.sine.to(device))
        side = 2 * (2 * (self.model.config.head_dim // 6)) // 4
        places = torch.meshgrid(
            *(torch.arange(n, device=device) for n in (frames, rows, columns)), indexing="ij"
        )
        tables = []
        for table in (self.tables.cosine, self.tables.sine):
            time, row, column = table.split([table.shape[1] - 2 * side, side, side], dim=1)
            parts = (time[places[0]], row[places[1]], column[places[2]])
            tables.append(torch.cat(parts, dim=-1).flatten(0, 2))
        return tables[0], tables[1]


def block_pass(
    weights: Weights, states: Tensor, time: Tensor, text: Tensor, cosine: Tensor, sine: Tensor, given: int
) -> Tensor:
    """One block over `[B, S, D]` float32 tokens, the first `given` of them condition.

    Args:
        time: `[B, F, E]` float32.
        text: `[B, N, D]`, projected.
    """
    with torch.autocast(states.device.type, enabled=False):
        vectors = F.linear(
            F.silu(time), weights["adaLN_modulation.1.weight"], weights["adaLN_modulation.1.bias"]
        )
    shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = vectors.chunk(6, dim=-1)
    attended = self_attention(weights, modulate(states, shift, scale), cosine, sine, given)
    states = states + gated(attended, gate)
    new = states[:, given:]
    normed = F.layer_norm(
        new, new.shape[-1:], weights["pre_crs_attn_norm.weight"], weights["pre_crs_attn_norm.bias"], NORM_EPS
    )
    new = new + cross_attention(weights, normed, text)
    states = torch.cat([states[:, :given], new], dim=1) if given else new
    return states + gated(feed_forward(weights, modulate(states, ffn_shift, ffn_scale)), ffn_gate)


def self_attention(weights: Weights, states: Tensor, cosine: Tensor, sine: Tensor, given: int) -> Tensor:
    """Given tokens attend to each other, new ones to all."""
    qkv = F.linear(states, weights["attn.qkv.weight"], weights["attn.qkv.bias"])
    head_dim = 2 * cosine.shape[-1]
    query, key, value = qkv.unflatten(-1, (3, -1, head_dim)).permute(2, 0, 3, 1, 4)
    query = rotate(norm(query, weights["attn.q_norm.weight"]), cosine, sine).to(value.dtype)
    key = rotate(norm(key, weights["attn.k_norm.weight"]), cosine, sine).to(value.dtype)
    attended = F.scaled_dot_product_attention(query[:, :, given:], key, value)
    if given:
        own = [tensor[:, :, :given] for tensor in (query, key, value)]
        attended = torch.cat([F.scaled_dot_product_attention(*own), attended], dim=2)
    return F.linear(
        attended.transpose(1, 2).flatten(2), weights["attn.proj.weight"], weights["attn.proj.bias"]
    )


def cross_attention(weights: Weights, states: Tensor, text: Tensor) -> Tensor:
    """Tokens attend to the text, padding included."""
    head_dim = weights["cross_attn.q_norm.weight"].shape[0]
    query = F.linear(states, weights["cross_attn.q_linear.weight"], weights["cross_attn.q_linear.bias"])
    query = query.unflatten(-1, (-1, head_dim)).transpose(1, 2)
    pairs = F.linear(text, weights["cross_attn.kv_linear.weight"], weights["cross_attn.kv_linear.bias"])
    key, value = pairs.unflatten(-1, (2, -1, head_dim)).permute(2, 0, 3, 1, 4)
    query = norm(query, weights["cross_attn.q_norm.weight"]).to(value.dtype)
    key = norm(key, weights["cross_attn.k_norm.weight"]).to(value.dtype)
    attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    return F.linear(attended, weights["cross_attn.proj.weight"], weights["cross_attn.proj.bias"])


def feed_forward(weights: Weights, states: Tensor) -> Tensor:
    """`w2(silu(w1 x) * w3 x)`."""
    wide = F.silu(F.linear(states, weights["ffn.w1.weight"])) * F.linear(states, weights["ffn.w3.weight"])
    return F.linear(wide, weights["ffn.w2.weight"])


def modulate(states: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm without weights, then a scale and a shift a frame, `[B, F, D]`; float32."""
    normed = F.layer_norm(states, states.shape[-1:], eps=NORM_EPS).unflatten(1, (shift.shape[1], -1))
    return (normed * (1 + scale.unsqueeze(2)) + shift.unsqueeze(2)).flatten(1, 2)


def gated(added: Tensor, gate: Tensor) -> Tensor:
    """`[B, S, D]` times a gate a frame, `[B, F, D]`; float32."""
    return (added.float().unflatten(1, (gate.shape[1], -1)) * gate.unsqueeze(2)).flatten(1, 2)


def norm(states: Tensor, weight: Tensor) -> Tensor:
    """RMS norm over a head; float32."""
    return F.rms_norm(states.float(), states.shape[-1:], weight.float(), NORM_EPS)


def rotate(states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn adjacent pairs of `[B, H, S, D]` by their places."""
    even, odd = states.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], dim=-1).flatten(-2)


def guide(negative: Tensor, positive: Tensor, scale: float) -> Tensor:
    """`qvg_cli.models.longcat.schedule.guide` for many clips, `[B, C, F, h, w]` each."""
    axes = (1, 2, 3, 4)
    factor = (positive * negative).sum(axes, keepdim=True)
    factor = factor / (negative.square().sum(axes, keepdim=True) + 1e-8)
    negative = factor * negative
    return negative + scale * (positive - negative)


@torch.no_grad()
def sample(
    forward: WindowForward,
    schedule: Schedule,
    noise: Tensor,
    prompts: Prompts,
    *,
    condition: Tensor | None = None,
    negative: Prompts | None = None,
    guidance: float = 1.0,
) -> Tensor:
    """New frames of many windows, `[B, C, F, h, w]` float32.

    Args:
        noise: `[B, C, F, h, w]`.
        condition: The frames before them; none for a clip from text.
        negative: With it every step takes a second row and is guided by `guidance`.
    """
    latents, given = noise.float(), 0 if condition is None else condition.shape[2]
    for step in schedule:
        window = latents if condition is None else torch.cat([condition, latents], dim=2)
        timesteps = latents.new_full((len(latents),), step.timestep)
        flow = forward(window, timesteps, prompts, given=given)
        if negative is not None:
            flow = guide(forward(window, timesteps, negative, given=given), flow, guidance)
        latents = step.advance(latents, flow)
    return latents
