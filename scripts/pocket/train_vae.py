"""Train the pocket VAE on rendered clips for a fixed number of minutes and save it in bf16 with its
statistics.

    python -m scripts.pocket.train_vae --minutes 6 --out build/pocket
    torchrun --nproc-per-node 4 -m scripts.pocket.train_vae --minutes 6 --out build/pocket

Each process renders a pool of clips once and draws windows from it: short ones first, which give the most
different pictures a second, longer ones at the end, so that the decoder meets the steady state of its feature
caches.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from torch import Tensor

from scripts.pocket.prompts import Grammar
from scripts.pocket.scenes import make_scenes, render
from scripts.pocket.training import Clock, Workers, autocast, learning_rate, psnr
from scripts.pocket.vae import build_vae, decode_unclamped, encode_mean, make_fast

POOL_FRAMES = 33
# (progress from which it holds, pixel frames of a clip, clips a process takes a step)
CURRICULUM = ((0.0, 9, 24), (0.45, 17, 13), (0.8, 33, 6))
# A resumed run enters the curriculum here.
RESUMED_STAGE = 0.5
# Latents get noise of up to this share of their spread, so that the decoder forgives a generator's small
# errors.
LATENT_NOISE = 0.06
LATENT_PENALTY = 1e-4
# The object is a few percent of the picture, and its outline is what people look at: saturated colours and
# the pixels around them weigh more, by up to this factor.
OBJECT_WEIGHT = 4.0


def render_clips(
    grammar: Grammar,
    count: int,
    frames: int,
    generator: torch.Generator,
    device: torch.device,
    *,
    held_out: bool,
) -> Tensor:
    """Render `count` clips from random start times, `[count, 3, frames, H, W]` uint8."""
    specs = [grammar.sample_spec(generator, held_out=held_out) for _ in range(count)]
    scenes = make_scenes(specs, generator)
    start = torch.randint(0, 960, (count, 1), generator=generator)
    times = (start + torch.arange(frames)).float()
    clips = []
    for low in range(0, count, 4):
        part = render(scenes[low : low + 4].to(device), times[low : low + 4].to(device))
        clips.append((part * 255).round().byte())
    return torch.cat(clips)


def draw_batch(pool: Tensor, progress: float, generator: torch.Generator) -> Tensor:
    """Cut windows of the length the curriculum asks for out of the pool, in [-1, 1]."""
    _, frames, count = [entry for entry in CURRICULUM if progress >= entry[0]][-1]
    frames = min(frames, pool.shape[2])
    clips = torch.randint(len(pool), (count,), generator=generator).tolist()
    starts = torch.randint(pool.shape[2] - frames + 1, (count,), generator=generator).tolist()
    batch = torch.stack(
        [pool[clip, :, start : start + frames] for clip, start in zip(clips, starts, strict=True)]
    )
    return batch.float() / 127.5 - 1


def object_weight(video: Tensor) -> Tensor:
    """Weights `[B, 1, T, H, W]` of mean 1, large on and around saturated colours."""
    chroma = (video.amax(dim=1) - video.amin(dim=1) - 0.6).clamp(0, 0.4) / 0.4
    near = F.max_pool2d(chroma, kernel_size=9, stride=1, padding=4)
    weight = 1 + (OBJECT_WEIGHT - 1) * near[:, None]
    return weight / weight.mean()


def reconstruction_loss(vae: AutoencoderKLWan, video: Tensor) -> Tensor:
    """Weighted L1 plus half the squared error after a trip through slightly noisy latents."""
    latents = encode_mean(vae, video)
    spread = latents.detach().float().std(dim=(0, 2, 3, 4), keepdim=True)
    strength = LATENT_NOISE * torch.rand(len(video), 1, 1, 1, 1, device=video.device)
    noisy = latents + strength * spread * torch.randn_like(latents)
    difference = decode_unclamped(vae, noisy).float() - video
    error = difference.abs() + 0.5 * difference.square()
    return (error * object_weight(video)).mean() + LATENT_PENALTY * latents.square().mean()


@torch.no_grad()
def evaluate(vae: AutoencoderKLWan, clips: Tensor) -> float:
    """PSNR of `[N, 3, T, H, W]` uint8 clips after encoding and decoding, in dB."""
    errors = []
    for clip in clips.split(2):
        video = clip.float() / 127.5 - 1
        decoded = decode_unclamped(vae, encode_mean(vae, video)).float().clamp(-1, 1)
        errors.append(psnr(video / 2 + 0.5, decoded / 2 + 0.5))
    return sum(errors) / len(errors)


@torch.no_grad()
def measure_statistics(vae: AutoencoderKLWan, pool: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of every latent channel over the pool's first clips."""
    latents = torch.cat([encode_mean(vae, clip.float() / 127.5 - 1).float() for clip in pool[:64].split(8)])
    mean, std = latents.mean(dim=(0, 2, 3, 4)), latents.std(dim=(0, 2, 3, 4))
    return [round(value, 5) for value in mean.tolist()], [round(value, 5) for value in std.tolist()]


def save(vae: AutoencoderKLWan, pool: Tensor, folder: Path) -> None:
    """Write a stock checkpoint in bf16; fast modules have the stock names, so weights move as they are."""
    mean, std = measure_statistics(vae, pool)
    stock = build_vae()
    stock.load_state_dict(vae.state_dict())
    stock.register_to_config(latents_mean=mean, latents_std=std)
    stock.to(torch.bfloat16).save_pretrained(folder)


def train(arguments: argparse.Namespace) -> None:
    workers, clock = Workers.start(), Clock(arguments.minutes)
    torch.manual_seed(arguments.seed + workers.rank)
    generator = torch.Generator().manual_seed(arguments.seed * 1000 + workers.rank)
    grammar, device = Grammar.load(), workers.device
    vae = AutoencoderKLWan.from_pretrained(arguments.resume) if arguments.resume else build_vae()
    vae = make_fast(vae.float().to(device).train(), compiled=arguments.compile and device.type == "cuda")
    workers.broadcast([vae])
    pool = render_clips(grammar, arguments.pool, POOL_FRAMES, generator, device, held_out=False)
    unseen = render_clips(grammar, 8, 81 if device.type == "cuda" else 9, generator, device, held_out=True)
    workers.log(f"{workers.count} x {device}: pool of {len(pool)} clips after {clock.seconds:.0f} s")

    parameters = list(vae.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=arguments.lr, betas=(0.9, 0.99), weight_decay=0.01)
    progress, step = clock.progress, 0
    while progress < 1:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(arguments.lr, step, progress)
        with autocast(device):
            stage = 1 - (1 - progress) * (1 - RESUMED_STAGE) if arguments.resume else progress
            loss = reconstruction_loss(vae, draw_batch(pool, stage, generator))
        loss.backward()
        progress = workers.average_gradients(parameters, clock.progress)
        torch.nn.utils.clip_grad_norm_(parameters, 0.5)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        step += 1
        if step % arguments.report == 0 and workers.rank == 0:
            with autocast(device):
                quality = evaluate(vae, unseen[:2])
                workers.log(f"step {step} {clock.seconds:.0f} s loss {loss.item():.4f} psnr {quality:.2f} dB")
            save(vae, pool[:8], arguments.out / "vae")
    if workers.rank == 0:
        with autocast(device):
            workers.log(f"final: {step} steps, {evaluate(vae, unseen):.2f} dB on {len(unseen)} unseen clips")
        save(vae, pool, arguments.out / "vae")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder that gets vae/")
    parser.add_argument("--minutes", type=float, default=6.0, help="time budget, the pool included")
    parser.add_argument("--pool", type=int, default=1200, help="clips a process renders")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=int, default=200, help="steps between reports and checkpoints")
    parser.add_argument("--resume", type=Path, help="folder of a saved VAE to go on from")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
