"""Clips as the transformer meets them in a rollout: latents of a sink block and of a window somewhere behind
it.

The latents come from the trained VAE, encoded once; training then runs on latents alone. The window starts
right behind the sink for a part of the clips, else at a random later frame, rendered at that absolute time.
The causal VAE is warmed up on the frames before it, as it is in one long video.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from scripts.pocket.causal import BLOCK_FRAMES, SINK_FRAMES
from scripts.pocket.prompts import Grammar, SceneSpec
from scripts.pocket.scenes import Scenes, make_scenes, render
from scripts.pocket.tokenizer import TEXT_LENGTH
from scripts.pocket.training import autocast
from scripts.pocket.vae import encode_mean, normalize_latents

WARM_UP_FRAMES = 4
PROMPTS_PER_CLIP = 8
# Shares of the clips whose window follows the sink directly, and whose window lies within the first minute;
# the rest lies anywhere up to the last position of the transformer's table.
ADJACENT_SHARE, MINUTE_SHARE = 0.4, 0.45
MINUTE_FRAMES, LAST_FRAME = 240, 1020


@dataclass
class Clips:
    """Training clips; `gap` is the number of latent frames left out between sink and window."""

    latents: Tensor  # [N, 16, F, h, w] bf16, normalised
    gap: Tensor  # [N]
    tokens: Tensor  # [N, PROMPTS_PER_CLIP, TEXT_LENGTH]

    def __len__(self) -> int:
        return len(self.latents)


def render_latents(vae: AutoencoderKLWan, scenes: Scenes, first: Tensor, frames: int) -> Tensor:
    """Encode pixel frames `first` `[B]` and the 4 * (frames - 1) after it to `[B, 16, frames, h, w]`."""
    times = first[:, None] + torch.arange(1 + 4 * (frames - 1), device=first.device)
    clips = [
        render(scenes[low : low + 2], times[low : low + 2].float()).to(torch.bfloat16)
        for low in range(0, len(first), 2)
    ]
    video = torch.cat(clips).float() * 2 - 1
    with torch.no_grad(), autocast(video.device):
        return normalize_latents(vae, encode_mean(vae, video).float())


def draw_gap(generator: torch.Generator, window: int) -> int:
    """Draw how many latent frames, a multiple of the block, lie between the sink and the window."""
    kind = float(torch.rand(1, generator=generator))
    if kind < ADJACENT_SHARE:
        return 0
    last = MINUTE_FRAMES if kind < ADJACENT_SHARE + MINUTE_SHARE else LAST_FRAME
    # The VAE needs its warm-up frames before the window.
    low = -(-(WARM_UP_FRAMES + 1) // BLOCK_FRAMES)
    high = (last - window - SINK_FRAMES) // BLOCK_FRAMES
    return BLOCK_FRAMES * int(torch.randint(low, high, (1,), generator=generator))


def encode_batch(vae: AutoencoderKLWan, scenes: Scenes, gaps: list[int], frames: int) -> Tensor:
    """Latents `[B, 16, frames, h, w]` of clips that share nothing but being adjacent or not."""
    device = scenes.phase.device
    zero = torch.zeros(len(gaps), dtype=torch.long, device=device)
    if not any(gaps):
        return render_latents(vae, scenes, zero, frames)
    window = frames - SINK_FRAMES
    start = torch.tensor(gaps, device=device) + SINK_FRAMES - WARM_UP_FRAMES
    late = render_latents(vae, scenes, 4 * start, window + WARM_UP_FRAMES)[:, :, WARM_UP_FRAMES:]
    return torch.cat([render_latents(vae, scenes, zero, SINK_FRAMES), late], dim=2)


def make_clips(
    vae: AutoencoderKLWan,
    grammar: Grammar,
    tokenizer: PreTrainedTokenizerFast,
    *,
    count: int,
    frames: int,
    generator: torch.Generator,
    device: torch.device,
    batch: int = 8,
) -> Clips:
    """Render and encode `count` clips of `frames` latent frames, adjacent ones first, prompts tokenised."""
    gaps = sorted(draw_gap(generator, frames - SINK_FRAMES) for _ in range(count))
    specs = [grammar.sample_spec(generator) for _ in range(count)]
    scenes = make_scenes(specs, generator).to(device)
    parts = []
    low = 0
    while low < count:
        high = min(low + batch, count)
        if gaps[low] == 0:
            high = next((i for i in range(low, high) if gaps[i]), high)
        parts.append(encode_batch(vae, scenes[low:high], gaps[low:high], frames).to(torch.bfloat16))
        low = high
    tokens = torch.stack([prompt_tokens(grammar, tokenizer, spec, generator) for spec in specs])
    return Clips(torch.cat(parts), torch.tensor(gaps, device=device), tokens.to(device))


def prompt_tokens(
    grammar: Grammar, tokenizer: PreTrainedTokenizerFast, spec: SceneSpec, generator: torch.Generator
) -> Tensor:
    """Several ways to say the same scene, `[PROMPTS_PER_CLIP, TEXT_LENGTH]` int32."""
    prompts = [grammar.sample_prompt(spec, generator) for _ in range(PROMPTS_PER_CLIP)]
    return tokenize(tokenizer, prompts).to(torch.int32)


def tokenize(tokenizer: PreTrainedTokenizerFast, prompts: list[str]) -> Tensor:
    """Token ids `[B, TEXT_LENGTH]`, closed by `</s>` and padded with 0."""
    rows = tokenizer(
        prompts, padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt"
    )
    return rows["input_ids"]
