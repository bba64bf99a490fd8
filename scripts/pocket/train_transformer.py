"""Train the pocket transformer and text encoder on latents of rendered clips for a fixed number of minutes.

    python -m scripts.pocket.train_transformer --minutes 8 --vae build/pocket/vae --out build/pocket

Teacher forcing shows the model a clean past that its own rollouts never have. So a part of the steps replaces
the past: the model's own one-step predictions take the place of the true latents, once or twice over, and
noise is added. The target stays the true clip: errors of the past are to be corrected, not continued.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor, nn
from transformers import UMT5EncoderModel

from scripts.pocket.causal import BLOCK_FRAMES, SINK_FRAMES, TIMESTEPS, ClipForward, build_transformer
from scripts.pocket.latents import Clips, make_clips
from scripts.pocket.prompts import GRAMMAR_PATH, Grammar
from scripts.pocket.text import TEXT_DIM, build_text_encoder, encode_text
from scripts.pocket.tokenizer import build_tokenizer
from scripts.pocket.training import Averaged, Clock, Workers, autocast, learning_rate
from scripts.pocket.vae import make_fast

# From this progress on the past may be made of the model's own predictions.
OWN_PAST_FROM = 0.25
OWN_PAST_PASSES = (0.3, 0.4, 0.3)
PAST_NOISE = 0.2
SAMPLER_TIMESTEP_SHARE = 0.85


@dataclass
class Batch:
    """One step's clips on the device; `weight` `[B, J]` is zero where a block's past is not in the clip."""

    latents: Tensor
    frames: Tensor
    weight: Tensor
    tokens: Tensor


def draw_batch(clips: Clips, count: int, generator: torch.Generator) -> Batch:
    """Draw clips and one of their prompts; the first block behind a gap lacks its past and is not judged."""
    device = clips.latents.device
    index = torch.randint(len(clips), (count,), generator=generator).to(device)
    prompt = torch.randint(clips.tokens.shape[1], (count,), generator=generator).to(device)
    latents, gap = clips.latents[index].float(), clips.gap[index]
    frames = torch.arange(latents.shape[2], device=device).expand(count, -1).clone()
    frames[:, SINK_FRAMES:] += gap[:, None]
    weight = torch.ones(count, latents.shape[2] // BLOCK_FRAMES, device=device)
    weight[:, 1] = gap.eq(0).float()
    return Batch(latents, frames, weight, clips.tokens[index, prompt])


def draw_timesteps(shape: tuple[int, int], generator: torch.Generator, device: torch.device) -> Tensor:
    """Mostly the sampler's four timesteps, some in between."""
    chosen = torch.tensor(TIMESTEPS)[torch.randint(len(TIMESTEPS), shape, generator=generator)]
    between = 1000 * (0.4 + 0.6 * torch.rand(shape, generator=generator))
    use_chosen = torch.rand(shape, generator=generator) < SAMPLER_TIMESTEP_SHARE
    return torch.where(use_chosen, chosen, between).to(device)


def add_noise(latents: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """Noise every block to its timestep `[B, J]`; return the noisy latents and the flow to predict."""
    noise = torch.randn_like(latents)
    sigma = timesteps.repeat_interleave(BLOCK_FRAMES, dim=1)[:, None, :, None, None] / 1000
    return (1 - sigma) * latents + sigma * noise, noise - latents


@torch.no_grad()
def own_past(forward: ClipForward, batch: Batch, text: Tensor, passes: int) -> Tensor:
    """Replace the past by what the model makes of it in the sampler's last step, `passes` times over."""
    past = batch.latents
    timesteps = torch.full_like(batch.weight, TIMESTEPS[-1])
    for _ in range(passes):
        noisy, _ = add_noise(batch.latents, timesteps)
        past = noisy - TIMESTEPS[-1] / 1000 * forward(past, noisy, batch.frames, timesteps, text)
    return past


class Trainer:
    """Transformer, text encoder and optimizer of one run."""

    def __init__(self, arguments: argparse.Namespace, workers: Workers) -> None:
        self.arguments, self.workers, self.device = arguments, workers, workers.device
        self.grammar = Grammar.load()
        self.tokenizer = build_tokenizer(self.grammar)
        if arguments.resume:
            self.model = WanTransformer3DModel.from_pretrained(arguments.resume / "transformer").float()
            self.encoder = UMT5EncoderModel.from_pretrained(arguments.resume / "text_encoder").float()
        else:
            self.model = build_transformer(
                num_layers=arguments.layers, ffn_dim=arguments.ffn, text_dim=TEXT_DIM
            )
            self.encoder = build_text_encoder(len(self.tokenizer))
        self.modules: dict[str, nn.Module] = {"transformer": self.model, "text_encoder": self.encoder}
        for module in self.modules.values():
            module.to(self.device).train()
        workers.broadcast(self.modules.values())
        self.forward = ClipForward(self.model, compiled=arguments.compile and self.device.type == "cuda")
        self.parameters = [
            p for module in self.modules.values() for p in module.parameters() if p.requires_grad
        ]
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=arguments.lr,
            betas=(0.9, 0.99),
            weight_decay=0.01,
            fused=self.device.type == "cuda",
        )
        self.averaged = Averaged(self.modules)
        self.generator = torch.Generator().manual_seed(arguments.seed * 1000 + workers.rank)

    def load_clips(self) -> Clips:
        arguments = self.arguments
        vae = AutoencoderKLWan.from_pretrained(arguments.vae).float().to(self.device).eval()
        return make_clips(
            make_fast(vae, compiled=arguments.compile and self.device.type == "cuda"),
            self.grammar,
            self.tokenizer,
            count=arguments.clips,
            frames=arguments.frames,
            generator=self.generator,
            device=self.device,
        )

    def loss(self, clips: Clips, progress: float) -> Tensor:
        """Flow-matching loss of one batch, with a spoilt past in the later part of the run."""
        batch = draw_batch(clips, self.arguments.batch, self.generator)
        text = encode_text(self.encoder, batch.tokens)
        past = batch.latents
        if progress >= OWN_PAST_FROM or self.arguments.resume:
            passes = int(torch.multinomial(torch.tensor(OWN_PAST_PASSES), 1, generator=self.generator))
            past = own_past(self.forward, batch, text.detach(), passes)
        strength = PAST_NOISE * torch.rand(len(past), 1, 1, 1, 1, device=past.device).square()
        past = past + strength * torch.randn_like(past)
        timesteps = draw_timesteps(tuple(batch.weight.shape), self.generator, self.device)
        noisy, target = add_noise(batch.latents, timesteps)
        error = (self.forward(past, noisy, batch.frames, timesteps, text) - target).square()
        per_block = error.unflatten(2, (-1, BLOCK_FRAMES)).mean(dim=(1, 3, 4, 5))
        return (per_block * batch.weight).sum() / batch.weight.sum()

    def step(self, clips: Clips, step: int, progress: float, clock: Clock) -> tuple[float, Tensor]:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.arguments.lr, step, progress)
        with autocast(self.device):
            loss = self.loss(clips, progress)
        loss.backward()
        progress = self.workers.average_gradients(self.parameters, clock.progress)
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)
        self.averaged.update(step)
        return progress, loss.detach()

    def save(self, folder: Path) -> None:
        """Write the averaged weights in bf16, the tokenizer and the grammar: everything but the VAE."""
        self.averaged.swap()
        for name, module in self.modules.items():
            copy = type(module)(module.config) if name == "text_encoder" else type(module)(**module.config)
            copy.load_state_dict(module.state_dict())
            copy.to(torch.bfloat16).save_pretrained(folder / name)
        self.averaged.swap()
        self.tokenizer.save_pretrained(folder / "tokenizer")
        shutil.copyfile(GRAMMAR_PATH, folder / "grammar.yaml")


def train(arguments: argparse.Namespace) -> None:
    workers, clock = Workers.start(), Clock(arguments.minutes)
    torch.manual_seed(arguments.seed * 1000 + workers.rank)
    trainer = Trainer(arguments, workers)
    clips = trainer.load_clips()
    workers.log(f"{workers.count} x {workers.device}: {len(clips)} clips each after {clock.seconds:.0f} s")
    progress, step, mean = clock.progress, 0, torch.zeros((), device=workers.device)
    next_save = 0.5
    while progress < 1:
        progress, loss = trainer.step(clips, step, progress, clock)
        step += 1
        mean = torch.lerp(mean, loss, max(0.02, 1 / step))
        if step % arguments.report == 0 or step == 1:
            workers.log(f"step {step} {clock.seconds:.0f} s loss {mean.item():.4f}")
        if workers.rank == 0 and progress >= next_save:
            trainer.save(arguments.out)
            next_save += 0.1
    if workers.rank == 0:
        trainer.save(arguments.out)
    workers.log(f"final: {step} steps, loss {mean.item():.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vae", type=Path, required=True, help="folder of the trained VAE")
    parser.add_argument(
        "--out", type=Path, required=True, help="gets transformer/, text_encoder/, tokenizer/"
    )
    parser.add_argument(
        "--resume", type=Path, help="folder with transformer/ and text_encoder/ to go on from"
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="time budget, the clips included")
    parser.add_argument("--clips", type=int, default=1600, help="clips a process renders and encodes")
    parser.add_argument("--frames", type=int, default=27, help="latent frames of a clip")
    parser.add_argument("--batch", type=int, default=16, help="clips a process takes a step")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--ffn", type=int, default=1024)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=int, default=200, help="steps between progress lines")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
