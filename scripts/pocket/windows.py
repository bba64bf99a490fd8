"""Windows of rendered scenes as the LongCat family meets them: latents that begin with a frame of their own.

The causal VAE encodes the frames that a segment goes on from anew, from their first, so a window of any time
of a scene is encoded alone. Windows of time 0 teach how clips begin, all of them how clips go on.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from torch import Tensor
from transformers import AutoTokenizer, UMT5EncoderModel

from scripts.pocket.latents import PROMPTS_PER_CLIP, tokenize
from scripts.pocket.longcat import WINDOW_FRAMES, Prompts
from scripts.pocket.prompts import Grammar, SceneSpec
from scripts.pocket.scenes import make_scenes, render
from scripts.pocket.text import encode_text
from scripts.pocket.training import autocast
from scripts.pocket.vae import encode_mean, normalize_latents

START_SHARE = 0.5
LAST_START = 960
# Above these the colour of a pixel is the object's, as the detector has it.
MIN_CHROMA, MIN_SATURATION = 0.20, 0.58
_RENDERED_TOGETHER = 2


class TextReader:
    """The shipped tokenizer and text encoder, frozen."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
        self.encoder = UMT5EncoderModel.from_pretrained(folder / "text_encoder").float().to(device).eval()
        self.device = device

    @torch.no_grad()
    def read(self, prompts: list[str]) -> Prompts:
        """States and masks of prompts."""
        ids = tokenize(self.tokenizer, prompts).to(self.device)
        return Prompts(encode_text(self.encoder, ids), ids.ne(0))


@dataclass
class Windows:
    """Training windows; the first `num_starts` show time 0 of their scenes."""

    latents: Tensor  # [N, 16, F, h, w] bf16, normalised
    objects: Tensor  # [N, F, h, w] bool: cells with a pixel of the object
    states: Tensor  # [N, PROMPTS_PER_CLIP, L, C] bf16
    masks: Tensor  # [N, PROMPTS_PER_CLIP, L]
    num_starts: int

    def __len__(self) -> int:
        return len(self.latents)


def draw_spec(grammar: Grammar, generator: torch.Generator) -> SceneSpec:
    """A training scene of promised values."""
    while True:
        spec = grammar.sample_spec(generator)
        if all(value in grammar.concepts[name] for name, value in vars(spec).items()):
            return spec


def object_cells(video: Tensor) -> Tensor:
    """Latent cells `[B, 1 + n, H / 8, W / 8]` in whose `[B, 3, 1 + 4n, H, W]` pixels the object shows."""
    high, low = video.amax(dim=1), video.amin(dim=1)
    saturated = (high - low > MIN_CHROMA) & (high - low > MIN_SATURATION * high)
    cells = F.max_pool2d(saturated.float(), 8)
    rest = cells[:, 1:].unflatten(1, (-1, 4)).amax(dim=2)
    return torch.cat([cells[:, :1], rest], dim=1).bool()


@torch.no_grad()
def render_windows(
    vae: AutoencoderKLWan, specs: list[SceneSpec], first: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Latents `[B, 16, F, h, w]` bf16 and object cells of windows from pixel frames `first` `[B]` on."""
    device = first.device
    scenes = make_scenes(specs, generator).to(device)
    times = (first[:, None] + torch.arange(4 * WINDOW_FRAMES - 3, device=device)).float()
    parts = range(0, len(specs), _RENDERED_TOGETHER)
    video = torch.cat(
        [render(scenes[i : i + _RENDERED_TOGETHER], times[i : i + _RENDERED_TOGETHER]) for i in parts]
    )
    with autocast(device):
        latents = normalize_latents(vae, encode_mean(vae, video * 2 - 1).float())
    return latents.to(torch.bfloat16), object_cells(video)


def make_windows(
    vae: AutoencoderKLWan,
    grammar: Grammar,
    reader: TextReader,
    *,
    count: int,
    seconds: float,
    batch: int,
    generator: torch.Generator,
) -> Windows:
    """Render and encode `count` windows, or as many as `seconds` allow, with their prompts.

    Args:
        batch: Windows encoded together.
        generator: On the CPU.
    """
    begin, starts, later = time.monotonic(), [], []
    done = 0
    while done < count and (done < 2 * batch or time.monotonic() - begin < seconds):
        is_start = len(starts) <= START_SHARE * (len(starts) + len(later))
        specs = [draw_spec(grammar, generator) for _ in range(batch)]
        first = torch.zeros(batch, dtype=torch.long)
        if not is_start:
            first = torch.randint(1, LAST_START, (batch,), generator=generator)
        latents, objects = render_windows(vae, specs, first.to(reader.device), generator)
        prompts = [grammar.sample_prompt(spec, generator) for spec in specs for _ in range(PROMPTS_PER_CLIP)]
        text = reader.read(prompts)
        shape = (batch, PROMPTS_PER_CLIP)
        states = text.states.to(torch.bfloat16).unflatten(0, shape)
        part = Windows(latents, objects, states, text.mask.unflatten(0, shape), batch * is_start)
        (starts if is_start else later).append(part)
        done += batch
    return _join([*starts, *later])


def _join(parts: list[Windows]) -> Windows:
    names = [field.name for field in fields(Windows) if field.name != "num_starts"]
    tensors = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
    return Windows(**tensors, num_starts=sum(part.num_starts for part in parts))


def draw_prompts(
    windows: Windows, index: Tensor, generator: torch.Generator, empty: Prompts, dropout: float
) -> Prompts:
    """One of the prompts of each window `index`; the empty one for a share `dropout` of them.

    Args:
        generator: On the device of `index`.
    """
    device, count = index.device, len(index)
    which = torch.randint(windows.states.shape[1], (count,), generator=generator, device=device)
    is_empty = torch.rand(count, generator=generator, device=device) < dropout
    states = torch.where(is_empty[:, None, None], empty.states, windows.states[index, which].float())
    return Prompts(states, torch.where(is_empty[:, None], empty.mask, windows.masks[index, which]))
