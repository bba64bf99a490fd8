"""Train the pocket LongCat on windows of rendered scenes, then its distilled adapter, by the clock.

    python -m scripts.pocket.train_longcat --minutes 7 --out build/longcat

VAE, text encoder and tokenizer are those of the pocket model, frozen. Flow matching on whole windows: clips
from text, clips from a first frame, and segments that go on from ten frames. Given frames are never as clean
as rendered ones when a clip goes on from itself; so they get noise here, and a part of them is what the model
makes of them in one step. The target stays the true clip: errors are to be corrected, not continued.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import save_file
from torch import Tensor, nn

from qvg_cli.models.longcat.model import LongCatTransformer, open_longcat
from scripts.pocket.adapter import Adapter
from scripts.pocket.distill import SHIFT, Rollouts, spoil
from scripts.pocket.longcat import CONDITION_FRAMES, Prompts, WindowForward, build_transformer
from scripts.pocket.prompts import Grammar
from scripts.pocket.training import Averaged, Clock, Workers, autocast, learning_rate
from scripts.pocket.vae import make_fast
from scripts.pocket.windows import TextReader, Windows, draw_prompts, make_windows

POCKET = Path(__file__).resolve().parents[2] / "qvg_cli" / "data" / "pocket"
ADAPTER = Path("lora", "cfg_step_lora.safetensors")
# Given frames of a window, and how often.
GIVEN, GIVEN_SHARES = (0, 1, CONDITION_FRAMES), (0.45, 0.10, 0.45)
PROMPT_DROPOUT = 0.1
# The sampler's shift leaves few levels to the lower half, where a gentler one puts every second clip.
GENTLE_SHIFT = 3.0
# The error on a cell of the object counts this much more: it is a few percent of the picture.
OBJECT_WEIGHT = 8.0
OWN_PAST_FROM, OWN_PAST_SHARE = 0.25, 0.5
OWN_PAST_LEVELS = (0.5, 0.85)


def draw_levels(count: int, generator: torch.Generator) -> Tensor:
    """Noise levels `[count]`, spread evenly before the shift warps them."""
    places = {"generator": generator, "device": generator.device}
    even = (torch.randperm(count, **places) + torch.rand(count, **places)) / count
    shift = torch.where(torch.rand(count, **places) < 0.5, GENTLE_SHIFT, SHIFT)
    return shift * even / (1 + (shift - 1) * even)


def weighted_error(error: Tensor, objects: Tensor) -> Tensor:
    """Mean of `[B, C, F, h, w]` errors in which the `objects` `[B, F, h, w]` weigh more."""
    weight = 1 + OBJECT_WEIGHT * objects
    return (error.mean(dim=1) * weight).sum() / weight.sum()


class Trainer:
    """Transformer, adapter and optimizers of one run."""

    def __init__(self, arguments: argparse.Namespace, workers: Workers) -> None:
        self.arguments, self.device = arguments, workers.device
        if arguments.resume:
            checkpoint = open_longcat(arguments.resume / "dit")
            model = checkpoint.load(dtype=torch.float32, device=self.device).train().requires_grad_(True)
        else:
            model = build_transformer().to(self.device)
        self.model = model
        on_gpu = self.device.type == "cuda"
        self.forward = WindowForward(model, compiled=arguments.compile and on_gpu)
        self.averaged = Averaged({"dit": model})
        self.optimizer = self._optimizer(model, arguments.lr)
        self.generator = torch.Generator().manual_seed(arguments.seed)
        # On the device, so that a step does not wait for its numbers to be copied there.
        self.draws = torch.Generator(self.device).manual_seed(arguments.seed)
        self.reader = TextReader(arguments.pocket, self.device)
        self.empty = self.reader.read([""])

    def _optimizer(self, module: nn.Module, peak: float) -> torch.optim.AdamW:
        is_fused = self.device.type == "cuda"
        return torch.optim.AdamW(
            module.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=0.01, fused=is_fused
        )

    def load_windows(self) -> Windows:
        arguments = self.arguments
        vae = AutoencoderKLWan.from_pretrained(arguments.pocket / "vae").float().to(self.device).eval()
        return make_windows(
            make_fast(vae, compiled=arguments.compile and self.device.type == "cuda"),
            Grammar.load(),
            self.reader,
            count=arguments.windows,
            seconds=arguments.window_seconds,
            batch=arguments.encode_batch,
            generator=self.generator,
        )

    def loss(self, windows: Windows, progress: float) -> Tensor:
        """Flow-matching loss of one batch, all of it with the same number of given frames."""
        given, count = GIVEN[self._choose()], self.arguments.batch
        among = len(windows) if given else windows.num_starts
        index = torch.randint(among, (count,), generator=self.draws, device=self.device)
        prompts = draw_prompts(windows, index, self.draws, self.empty, PROMPT_DROPOUT)
        clean = windows.latents[index].float()
        condition = clean[:, :, :given]
        if given > 1 and progress >= OWN_PAST_FROM and self._chance() < OWN_PAST_SHARE:
            condition = self._own_past(clean, prompts)[:, :, :given]
        new, level = clean[:, :, given:], draw_levels(count, self.draws)
        noise, share = torch.randn_like(new), level.view(-1, 1, 1, 1, 1)
        window = torch.cat([spoil(condition), (1 - share) * new + share * noise], dim=2)
        flow = self.forward(window, 1000 * level, prompts, given=given)
        return weighted_error((flow - (new - noise)).square(), windows.objects[index][:, given:])

    def _chance(self) -> float:
        return float(torch.rand(1, generator=self.generator))

    def _choose(self) -> int:
        """Which of `GIVEN` a step takes."""
        return int(torch.multinomial(torch.tensor(GIVEN_SHARES), 1, generator=self.generator))

    @torch.no_grad()
    def _own_past(self, clean: Tensor, prompts: Prompts) -> Tensor:
        """What the model makes of windows in one step from some noise level."""
        low, high = OWN_PAST_LEVELS
        level = low + (high - low) * torch.rand(len(clean), generator=self.draws, device=self.device)
        share = level.view(-1, 1, 1, 1, 1)
        noisy = (1 - share) * clean + share * torch.randn_like(clean)
        return noisy + share * self.forward(noisy, 1000 * level, prompts)

    def train_model(self, windows: Windows, clock: Clock, end: float, log: Log) -> None:
        """Train the transformer until `end` of the time is used, and take its averaged weights."""
        step, begin = 0, clock.progress
        while clock.progress < end:
            progress = (clock.progress - begin) / max(end - begin, 1e-6)
            with autocast(self.device):
                loss = self.loss(windows, max(progress, OWN_PAST_FROM) if self.arguments.resume else progress)
            self._step(loss, self.optimizer, self.model, self.arguments.lr, step, progress)
            self.averaged.update(step)
            step += 1
            log.add("model", step, clock, loss)
            if step % self.arguments.save_every == 0:
                self.averaged.swap()
                self.save_model()
                self.averaged.swap()
        self.averaged.swap()
        self.model.requires_grad_(False)
        self.save_model()

    def train_adapter(self, windows: Windows, clock: Clock, log: Log) -> None:
        """Train the adapter of the frozen transformer until the time is used."""
        adapter = Adapter(self.model).to(self.device)
        if self.arguments.resume and (path := self.arguments.resume / ADAPTER).exists():
            adapter.load(path)
        averaged, step = Averaged({"lora": adapter}, decay=0.99), 0
        optimizer = self._optimizer(adapter, self.arguments.adapter_lr)
        count = self.arguments.batch
        pools = [
            Rollouts(windows, self.empty, given=given, batch=count, generator=self.draws) for given in GIVEN
        ]
        begin = clock.progress
        while step == 0 or clock.progress < 1:
            progress = (clock.progress - begin) / max(1 - begin, 1e-6)
            with autocast(self.device):
                loss = pools[self._choose()].loss(self.forward, adapter)
            self._step(loss, optimizer, adapter, self.arguments.adapter_lr, step, progress)
            averaged.update(step)
            step += 1
            log.add("adapter", step, clock, loss)
        averaged.swap()
        adapter.save(self.arguments.out / ADAPTER)

    def _step(
        self,
        loss: Tensor,
        optimizer: torch.optim.Optimizer,
        module: nn.Module,
        peak: float,
        step: int,
        progress: float,
    ) -> None:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(peak, step, progress)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    def save_model(self) -> None:
        save_transformer(self.model, self.arguments.out / "dit")


def save_transformer(model: LongCatTransformer, folder: Path) -> None:
    """Write a transformer in the published layout, bf16."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {"_class_name": "LongCatVideoTransformer3DModel", **asdict(model.config)}
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    tensors = {name: tensor.to("cpu", torch.bfloat16) for name, tensor in model.state_dict().items()}
    # Renamed when whole: a run may be cut off at any time.
    save_file(tensors, folder / "part")
    (folder / "part").replace(folder / "diffusion_pytorch_model.safetensors")


class Log:
    """Progress lines: steps, seconds, a running mean of the loss and the pace since the line before."""

    def __init__(self, workers: Workers, every: int) -> None:
        self.workers, self.every = workers, every
        self.part, self.mean, self.last = "", torch.zeros((), device=workers.device), (0, 0.0)

    def add(self, part: str, step: int, clock: Clock, loss: Tensor) -> None:
        if part != self.part:
            self.part, self.mean, self.last = part, loss.detach().clone(), (0, clock.seconds)
        self.mean = torch.lerp(self.mean, loss.detach(), max(0.01, 1 / step))
        if step % self.every and step != 1:
            return
        value, seconds = self.mean.item(), clock.seconds
        pace = (step - self.last[0]) / max(seconds - self.last[1], 1e-6)
        self.workers.log(f"{part} step {step} {seconds:.0f} s loss {value:.4f} {pace:.1f} steps/s")
        self.last = (step, seconds)


def train(arguments: argparse.Namespace) -> None:
    workers, clock = Workers.start(), Clock(arguments.minutes)
    torch.manual_seed(arguments.seed)
    trainer = Trainer(arguments, workers)
    windows = trainer.load_windows()
    workers.log(f"{workers.device}: {len(windows)} windows after {clock.seconds:.0f} s")
    log = Log(workers, arguments.report)
    trainer.train_model(windows, clock, arguments.adapter_from, log)
    trainer.train_adapter(windows, clock, log)
    workers.log(f"final: {clock.seconds:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="gets dit/ and lora/")
    parser.add_argument("--pocket", type=Path, default=POCKET, help="folder of the VAE and the text side")
    parser.add_argument("--resume", type=Path, help="folder with dit/ and lora/ to go on from")
    parser.add_argument("--minutes", type=float, default=7.0, help="time budget, the windows included")
    parser.add_argument(
        "--adapter-from",
        type=float,
        default=0.78,
        help="share of the time before the adapter",
    )
    parser.add_argument("--windows", type=int, default=6000, help="windows to render and encode")
    parser.add_argument("--window-seconds", type=float, default=60.0, help="and the seconds they may take")
    parser.add_argument("--encode-batch", type=int, default=8, help="windows encoded together")
    parser.add_argument("--batch", type=int, default=64, help="windows a step")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--adapter-lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=int, default=200, help="steps between progress lines")
    parser.add_argument("--save-every", type=int, default=1000, help="steps between checkpoints")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
