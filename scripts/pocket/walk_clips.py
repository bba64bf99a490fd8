"""Walks as the world transformer meets them in training: latents, labels and cameras of rendered clips.

A clip is rendered and encoded once and then cut in many ways, as a rollout would see it: from its start, or
late, when the oldest frames in hand are recalled ones and the others the newest.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from qvg_cli.models.hyworldplay.memory import CHUNK_FRAMES
from scripts.pocket.landscape import Renderer, draw_landscape
from scripts.pocket.latents import tokenize
from scripts.pocket.training import autocast
from scripts.pocket.vae import encode_mean, normalize_latents
from scripts.pocket.walk_prompts import WalkGrammar
from scripts.pocket.walks import draw_pose, walk_cameras

# Shares of the cuts that begin where the walk does, and of these, of those whose picture is left out.
START_SHARE, NO_IMAGE_SHARE = 0.5, 0.06


@dataclass
class Cut:
    """One step's clips on the device: `F` frames in hand each.

    Attributes:
        given: `[B]` whether frame 0 is the picture of the walk, and given.
        weight: `[B, F]` what a frame's error counts; 0 where a rollout would have more past.
    """

    latents: Tensor  # [B, 16, F, h, w]
    actions: Tensor  # [B, F]
    viewmats: Tensor  # [B, F, 4, 4]
    tokens: Tensor  # [B, TEXT_LENGTH]
    given: Tensor
    weight: Tensor


class WalkClips:
    """A pool of clips on the device, filled once and then renewed one by one, oldest first."""

    def __init__(
        self,
        vae: AutoencoderKLWan,
        renderer: Renderer,
        tokenizer: PreTrainedTokenizerFast,
        *,
        most: int,
        frames: int,
        generator: torch.Generator,
    ) -> None:
        self.vae, self.renderer, self.tokenizer = vae, renderer, tokenizer
        self.grammar, self.generator = WalkGrammar.load(), generator
        self.frames, self.most, self.made, self.seconds = frames, most, 0, 0.0
        self.device = renderer.device
        self.latents: Tensor | None = None
        self.actions = torch.zeros(most, frames, dtype=torch.long, device=self.device)
        self.viewmats = torch.zeros(most, frames, 4, 4, device=self.device)
        self.tokens: Tensor | None = None

    def __len__(self) -> int:
        return min(self.made, self.most)

    def fill(self, seconds: float, count: int) -> None:
        """Make up to `count` clips, and no more once `seconds` are over."""
        end = time.monotonic() + seconds
        while self.made < 2 or (self.made < count and time.monotonic() < end):
            self.renew()

    def renew(self) -> None:
        """Make one more clip, in place of the oldest if the pool is full."""
        began = time.monotonic()
        spec = self.grammar.sample_spec(self.generator)
        pose = draw_pose(self.frames, self.generator)
        path, cameras = walk_cameras(pose, self.frames)
        scene = draw_landscape(spec, cameras, self.generator)
        video = self.renderer.render(scene, cameras)[None] * 2 - 1
        with torch.no_grad(), autocast(self.device):
            latents = normalize_latents(self.vae, encode_mean(self.vae, video).float())[0]
        tokens = tokenize(self.tokenizer, [self.grammar.sample_prompt(spec, self.generator)])[0]
        if self.latents is None or self.tokens is None:
            self.latents = torch.zeros(self.most, *latents.shape, dtype=torch.bfloat16, device=self.device)
            self.tokens = torch.zeros(self.most, len(tokens), dtype=torch.long, device=self.device)
        at = self.made % self.most
        self.latents[at] = latents
        self.tokens[at] = tokens.to(self.device)
        self.actions[at] = torch.tensor(path.actions).to(self.device)
        self.viewmats[at] = torch.from_numpy(path.viewmats).float().to(self.device)
        self.made += 1
        # Reading a value waits for the device, so that the time is true.
        self.latents[at, 0, 0, 0, 0].item()
        self.seconds += time.monotonic() - began

    def cut(self, count: int, chunks: int) -> Cut:
        """Cut `count` of the clips to `chunks` chunks each."""
        assert self.latents is not None
        assert self.tokens is not None

        def draw(low: int, high: int) -> int:
            return int(torch.randint(low, high, (), generator=self.generator))

        frames, given, weight = [], [], []
        own = torch.arange(CHUNK_FRAMES)
        all_chunks = self.frames // CHUNK_FRAMES
        for _ in range(count):
            counts = torch.ones(chunks, CHUNK_FRAMES)
            start, is_given = 0, False
            if torch.rand((), generator=self.generator) >= START_SHARE:
                start = draw(1, all_chunks - chunks + 2)
                first = draw(0, start)
                # The recalled frames have no past here, and those next to a gap not enough of it.
                counts[: 1 if first == start - 1 else 2] = 0
                chosen = [first, *range(start, start + chunks - 1)]
            else:
                chosen = list(range(chunks))
                is_given = bool(torch.rand((), generator=self.generator) >= NO_IMAGE_SHARE)
                counts[0, 0] = 0.0 if is_given else 1.0
            frames.append(torch.cat([CHUNK_FRAMES * chunk + own for chunk in chosen]))
            given.append(is_given)
            weight.append(counts.flatten())
        which = torch.randint(len(self), (count,), generator=self.generator).to(self.device)[:, None]
        when = torch.stack(frames).to(self.device)
        return Cut(
            latents=self.latents.transpose(1, 2)[which, when].transpose(1, 2).float(),
            actions=self.actions[which, when],
            viewmats=self.viewmats[which, when],
            tokens=self.tokens[which[:, 0]],
            given=torch.tensor(given, device=self.device),
            weight=torch.stack(weight).to(self.device),
        )
