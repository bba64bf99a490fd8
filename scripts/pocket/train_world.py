"""Train the pocket world's transformer on latents of rendered walks for a fixed number of minutes.

    python -m scripts.pocket.train_world --minutes 7 --pocket qvg_cli/data/pocket --out build/world

VAE, text encoder and tokenizer are those of the pocket model, frozen; the transformer starts from layers of
the pocket model's. As there, a part of the steps replaces the clean past by the model's own
predictions, with noise added, and keeps the true clip as the target. Writes what the backend loads:
config.json and bf16 safetensors with their index.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, UMT5EncoderModel

from qvg_cli.models.hyworldplay.memory import CHUNK_FRAMES
from qvg_cli.models.hyworldplay.trajectory import camera_path
from scripts.pocket.landscape import Renderer
from scripts.pocket.text import encode_text
from scripts.pocket.training import Averaged, Clock, Workers, autocast, learning_rate
from scripts.pocket.vae import make_fast
from scripts.pocket.walk_clips import Cut, WalkClips
from scripts.pocket.walk_prompts import WORLD_GRAMMAR_PATH
from scripts.pocket.world import (
    CONTEXT_TIMESTEP,
    TIMESTEPS,
    WalkForward,
    build_world,
    camera_matrices,
    world_config,
)

# From this progress on the past may be made of the model's own predictions.
OWN_PAST_FROM = 0.3
OWN_PAST_PASSES = (0.4, 0.35, 0.25)
PAST_NOISE = 0.2
SAMPLER_TIMESTEP_SHARE = 0.85
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"


def focal_lengths() -> tuple[float, float]:
    """fx and fy of the backend's lens, as fractions of the picture."""
    lens = camera_path("w-1").intrinsics[0]
    return float(lens[0, 0]), float(lens[1, 1])


def start_from_pocket(model: WanTransformer3DModel, folder: Path) -> None:
    """Copy what fits of the pocket transformer: evenly spread layers, their strongest hidden units."""
    state = load_file(folder / WEIGHTS_FILE)
    source_layers = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    layers = len(model.blocks)
    chosen = [round(i * (source_layers - 1) / max(1, layers - 1)) for i in range(layers)]
    own = model.state_dict()
    for name, tensor in own.items():
        source = name
        if name.startswith("blocks."):
            _, layer, rest = name.split(".", 2)
            source = f"blocks.{chosen[int(layer)]}.{rest}"
        if source not in state:
            continue
        found = state[source].float()
        if ".ffn." in source:
            prefix = source.partition(".ffn.")[0]
            strength = state[f"{prefix}.ffn.net.0.proj.weight"].float().norm(dim=1)
            strength = strength * state[f"{prefix}.ffn.net.2.weight"].float().norm(dim=0)
            kept = strength.topk(min(len(strength), model.config.ffn_dim)).indices.sort().values
            if source.endswith("net.2.weight"):
                found = found[:, kept]
            elif ".net.0." in source:
                found = found[kept]
        if found.shape == tensor.shape:
            tensor.copy_(found)
    model.load_state_dict(own)


def draw_timesteps(shape: tuple[int, int], generator: torch.Generator, device: torch.device) -> Tensor:
    """A timestep a chunk: mostly the sampler's four, some in between."""
    chosen = torch.tensor(TIMESTEPS)[torch.randint(len(TIMESTEPS), shape, generator=generator)]
    between = 1000 * (0.55 + 0.45 * torch.rand(shape, generator=generator))
    use_chosen = torch.rand(shape, generator=generator) < SAMPLER_TIMESTEP_SHARE
    return torch.where(use_chosen, chosen, between).to(device)


def add_noise(cut: Cut, timesteps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Noise every chunk to its timestep `[B, J]`, but for a given first frame.

    Returns:
        The noisy latents, the flow to predict, and the timesteps `[B, F]` that the frames are told.
    """
    noise = torch.randn_like(cut.latents)
    told = timesteps.repeat_interleave(CHUNK_FRAMES, dim=1)
    sigma = told / 1000
    sigma[:, 0] = torch.where(cut.given, 0.0, sigma[:, 0])
    told[:, 0] = torch.where(cut.given, CONTEXT_TIMESTEP, told[:, 0])
    sigma = sigma[:, None, :, None, None]
    return (1 - sigma) * cut.latents + sigma * noise, noise - cut.latents, told


class Trainer:
    """Transformer and optimizer of one run; everything else is frozen."""

    def __init__(self, arguments: argparse.Namespace, workers: Workers) -> None:
        self.arguments, self.workers, self.device = arguments, workers, workers.device
        compiled = arguments.compile and self.device.type == "cuda"
        pocket = arguments.pocket
        tokenizer = AutoTokenizer.from_pretrained(pocket / "tokenizer")
        vae = AutoencoderKLWan.from_pretrained(pocket / "vae").float().to(self.device).eval()
        self.encoder = UMT5EncoderModel.from_pretrained(pocket / "text_encoder").float().to(self.device)
        self.encoder.eval().requires_grad_(False)
        self.config = world_config(num_layers=arguments.layers, ffn_dim=arguments.ffn)
        self.model = build_world(self.config)
        if arguments.resume:
            state = load_file(arguments.resume / WEIGHTS_FILE)
            self.model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
        elif arguments.start:
            start_from_pocket(self.model, pocket / "transformer")
        self.model.to(self.device).train()
        self.forward = WalkForward(self.model, compiled=compiled)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=arguments.lr,
            betas=(0.9, 0.99),
            weight_decay=0.01,
            fused=self.device.type == "cuda",
        )
        self.averaged = Averaged({"transformer": self.model})
        self.generator = torch.Generator().manual_seed(arguments.seed * 1000 + workers.rank)
        self.focal = focal_lengths()
        self.clips = WalkClips(
            make_fast(vae, compiled=compiled),
            Renderer(self.device, compiled=compiled and arguments.compile_renderer),
            tokenizer,
            most=arguments.clips,
            frames=arguments.frames,
            generator=self.generator,
        )

    def loss(self, progress: float) -> Tensor:
        """Flow-matching loss of one batch, with a spoilt past in the later part of the run."""
        cut = self.clips.cut(self.arguments.batch, self.arguments.chunks)
        text = encode_text(self.encoder, cut.tokens)
        cameras = camera_matrices(cut.viewmats, self.focal)
        passes = 0
        if progress >= OWN_PAST_FROM or self.arguments.resume:
            passes = int(torch.multinomial(torch.tensor(OWN_PAST_PASSES), 1, generator=self.generator))
        past = self.own_past(cut, cameras, text, passes)
        strength = PAST_NOISE * torch.rand(len(past), 1, 1, 1, 1, device=past.device).square()
        spoilt = past + strength * torch.randn_like(past)
        past = torch.cat([torch.where(_wide(cut.given), past, spoilt)[:, :, :1], spoilt[:, :, 1:]], dim=2)
        timesteps = draw_timesteps((len(past), self.arguments.chunks), self.generator, self.device)
        noisy, target, told = add_noise(cut, timesteps)
        error = (self.forward(past, noisy, told, cut.actions, cameras, text) - target).square()
        return (error.mean(dim=(1, 3, 4)) * cut.weight).sum() / cut.weight.sum()

    @torch.no_grad()
    def own_past(self, cut: Cut, cameras: tuple[Tensor, Tensor], text: Tensor, passes: int) -> Tensor:
        """The clean frames, replaced `passes` times by what the model makes of them in the last step.

        Frames that nothing is learned of keep their true latents: a given picture, and recalled ones.
        """
        past = cut.latents
        timesteps = torch.full((len(past), self.arguments.chunks), TIMESTEPS[-1], device=self.device)
        made = cut.weight[:, None, :, None, None] > 0
        for _ in range(passes):
            noisy, _, told = add_noise(cut, timesteps)
            flow = self.forward(past, noisy, told, cut.actions, cameras, text)
            past = torch.where(made, noisy - TIMESTEPS[-1] / 1000 * flow, cut.latents)
        return past

    def step(self, step: int, progress: float) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.arguments.lr, step, progress)
        with autocast(self.device):
            loss = self.loss(progress)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)
        self.averaged.update(step)
        return loss.detach()

    def save(self, folder: Path) -> None:
        """Write the averaged weights as the backend loads them."""
        self.averaged.swap()
        save_world(self.model, self.config, folder)
        self.averaged.swap()


def save_world(model: WanTransformer3DModel, config: dict[str, object], folder: Path) -> None:
    """Write config, bf16 weights, their index and the grammar."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: tensor.to("cpu", torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()
    }
    save_file(state, folder / WEIGHTS_FILE)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    index = json.dumps({"weight_map": dict.fromkeys(state, WEIGHTS_FILE)}, indent=2)
    (folder / f"{WEIGHTS_FILE}.index.json").write_text(index + "\n", encoding="utf-8")
    if folder.resolve() != WORLD_GRAMMAR_PATH.parent.resolve():
        shutil.copyfile(WORLD_GRAMMAR_PATH, folder / "grammar.yaml")


def _wide(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1, 1)


def train(arguments: argparse.Namespace) -> Trainer:
    clock, workers = Clock(arguments.minutes), Workers.start()
    torch.manual_seed(arguments.seed * 1000 + workers.rank)
    trainer = Trainer(arguments, workers)
    clips = trainer.clips
    clips.fill(arguments.fill_seconds, arguments.clips)
    workers.log(f"{workers.device}: {len(clips)} clips after {clock.seconds:.0f} s")
    clips.seconds, began = 0.0, clock.seconds
    step, mean, last_save = 0, torch.zeros((), device=workers.device), clock.seconds
    while clock.progress < 1 and step < arguments.steps:
        loss = trainer.step(step, clock.progress)
        step += 1
        mean = torch.lerp(mean, loss, max(0.02, 1 / step))
        if clips.seconds < arguments.fresh * (clock.seconds - began):
            clips.renew()
        if step % arguments.report == 0 or step == 1:
            workers.log(
                f"step {step} {clock.seconds:.0f} s loss {mean.item():.4f} clips {clips.made} "
                f"{step / (clock.seconds - began):.2f} steps/s"
            )
        if clock.seconds - last_save > 60:
            trainer.save(arguments.out)
            last_save = clock.seconds
    trainer.save(arguments.out)
    workers.log(f"final: {step} steps, {clock.seconds:.0f} s, loss {mean.item():.4f}")
    return trainer


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pocket", type=Path, required=True, help="folder of the pocket model")
    parser.add_argument("--out", type=Path, required=True, help="gets what the backend loads")
    parser.add_argument("--resume", type=Path, help="folder of an earlier --out to go on from")
    parser.add_argument("--start", action=argparse.BooleanOptionalAction, default=True,
                        help="start from layers of the pocket model's transformer")  # fmt: skip
    parser.add_argument("--minutes", type=float, default=7.0, help="time budget, the clips included")
    parser.add_argument("--steps", type=int, default=10**9, help="stop after so many")
    parser.add_argument("--clips", type=int, default=1500, help="clips held at a time")
    parser.add_argument("--fill-seconds", type=float, default=45.0, help="time for the first ones")
    parser.add_argument("--fresh", type=float, default=0.1, help="share of the time that new clips get")
    parser.add_argument("--frames", type=int, default=40, help="latent frames of a clip")
    parser.add_argument("--chunks", type=int, default=6, help="chunks of a clip that a step takes")
    parser.add_argument("--batch", type=int, default=24, help="clips a step")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--ffn", type=int, default=384)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=int, default=100, help="steps between progress lines")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--compile-renderer", action=argparse.BooleanOptionalAction, default=True)
    return parser.parse_args(words)


if __name__ == "__main__":
    train(parse_arguments())
