"""From latents to pixels as they come, as if the whole video were decoded at once; and back.

The decoder is causal: it needs the last features of every temporal convolution and nothing else of the past.
Calling `vae.decode` chunk by chunk would forget them at every call, and show a cut at each chunk. The result
does not depend on the chunks; it has the bits of `vae.decode` where the frames of a latent one pass together,
and differs by the rounding of the convolutions where they are large.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, WanResample, unpatchify
from torch import Tensor

from qvg_cli.models.decoder import Decoder, Pixels
from qvg_cli.models.seam import Seam
from qvg_cli.planning.chunks import ChunkPlan, pixel_frames
from qvg_cli.planning.sizes import PASS_PIXELS


class FrameDecoder(Decoder, ABC):
    """Decodes one video, a few latent frames at a time, and remembers what its network has seen.

    Args:
        reach: Latent frames of the past that it can see.
        side: Pixels to a side of a latent position.
        is_beside: Compute on a stream of its own, beside the model; for a network that stays on a GPU.
    """

    def __init__(
        self, device: torch.device, *, num_features: int, reach: int, side: int, is_beside: bool
    ) -> None:
        self._stream = torch.cuda.Stream(device) if is_beside else None
        self._features: list[Tensor | str | None] = [None] * num_features
        self._reach, self._side = reach, side
        self._is_first = True
        self._seam: Seam | None = None
        self._device = torch.device("cpu")
        self._copies: dict[int, Tensor] = {}

    @abstractmethod
    def decode_float(self, latents: Tensor) -> Tensor:
        """As `decode`, but `[B, 3, n, height, width]` in -1 .. 1 and the network's dtype."""

    def recall(self, latents: Tensor) -> Tensor:
        return latents

    def skip(self, chunks: Sequence[ChunkPlan], latents: Tensor, num_shown: int) -> None:
        """Come to where the first chunks would have led; decodes only frames within reach of what follows."""
        reach = self._reach
        if self._seam is not None:
            self._seam.skip(pixel_frames(latents.shape[2]) - pixel_frames(num_shown))
        if latents.shape[2] > reach:
            self._features = [None] * len(self._features)
            self._is_first = True
            num_shown = 0
        with self._own_stream(latents):
            for frame in latents[:, :, num_shown:][:, :, -reach:].split(1, dim=2):
                self.decode_float(frame)

    def decode_each(self, latents: Tensor) -> Iterator[Pixels]:
        """A latent frame at a time."""
        if not latents.shape[2]:
            yield Pixels(no_pixels(latents, self._side))
            return
        for frame in latents.split(1, dim=2):
            with self._own_stream(latents) as began:
                frames = self.decode_float(frame)
                part = send_pixels(frames if self._seam is None else self._seam.fade(frames), began)
            yield part

    def follow(self, frames: Tensor, latents: Tensor) -> None:
        with self._own_stream(frames, latents):
            self._seam = Seam(frames[:, :, -1], self.decode_float(latents)[:, :, -1])

    @contextmanager
    def _own_stream(self, *inputs: Tensor) -> Iterator[torch.cuda.Event | None]:
        """Work on the decoder's stream, if it has one, after what the caller's has been given so far.

        What the decoder remembers must never be touched on another stream: its memory would be given away
        while it is read.
        """
        if self._stream is None:
            yield None
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        for tensor in inputs:
            if tensor.is_cuda:
                tensor.record_stream(self._stream)
        began = torch.cuda.Event(enable_timing=True)
        began.record(self._stream)
        with torch.cuda.stream(self._stream):
            yield began

    def offload(self) -> None:
        for index, feature in enumerate(self._features):
            if isinstance(feature, Tensor):
                copy = self._copies.get(index)
                if copy is None or copy.shape != feature.shape:
                    # Pinned: a GPU reads and writes it at full speed. Made once, since that takes long.
                    is_gpu = feature.device.type == "cuda"
                    copy = torch.empty(feature.shape, dtype=feature.dtype, pin_memory=is_gpu)
                    self._copies[index] = copy
                self._device = feature.device
                self._features[index] = copy.copy_(feature, non_blocking=True)
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()

    def onload(self) -> None:
        for index, feature in enumerate(self._features):
            if isinstance(feature, Tensor):
                self._features[index] = feature.to(self._device, non_blocking=True, copy=True)


class StreamingDecoder(FrameDecoder):
    """The VAE's decoder; several may share the VAE, which is not changed."""

    def __init__(self, vae: AutoencoderKLWan, *, is_beside: bool = False) -> None:
        num_convolutions = sum(isinstance(module, WanCausalConv3d) for module in vae.decoder.modules())
        super().__init__(
            vae.device,
            num_features=num_convolutions,
            # A convolution sees two frames of the past: this is the farthest that all of them together see.
            reach=2 * num_convolutions,
            side=vae.config.scale_factor_spatial,
            is_beside=is_beside,
        )
        self._vae = vae
        shape = (1, -1, 1, 1, 1)
        self._mean = torch.tensor(vae.config.latents_mean).view(shape)
        self._std = torch.tensor(vae.config.latents_std).view(shape)
        self._num_adding = 1 + max(
            index
            for index, block in enumerate(vae.decoder.up_blocks)
            if any(isinstance(part, WanResample) and part.mode == "upsample3d" for part in block.modules())
        )

    @torch.no_grad()
    def decode_float(self, latents: Tensor) -> Tensor:
        mean, std = (numbers.to(latents.device, non_blocking=True) for numbers in (self._mean, self._std))
        latents = (latents.to(mean) * std + mean).to(self._vae.dtype)
        decoded = []
        for frame in latents.split(1, dim=2):
            # Frame by frame: on some processors, the last bits of a product depend on how many rows it has.
            decoded.append(self._decode_frame(self._vae.post_quant_conv(frame)))
            self._is_first = False
        pixels = torch.cat(decoded, dim=2)
        if self._vae.config.patch_size is not None:
            pixels = unpatchify(pixels, patch_size=self._vae.config.patch_size)
        return pixels.clamp(-1.0, 1.0)

    def _decode_frame(self, latents: Tensor) -> Tensor:
        """As `WanDecoder3d.forward` on one latent frame, but for the blocks after the last that adds frames.

        Frames meet there in causal convolutions alone, which remember what they need: a few frames can pass
        after each other.
        """
        decoder, at = self._vae.decoder, [0]
        memory = {"feat_cache": self._features, "feat_idx": at, "first_chunk": self._is_first}
        states = self._convolve(decoder.conv_in, latents, at)
        states = decoder.mid_block(states, feat_cache=self._features, feat_idx=at)
        for block in decoder.up_blocks[: self._num_adding]:
            states = block(states, **memory)
        first, parts = at[0], []
        together = max(1, PASS_PIXELS // (latents.shape[-2] * latents.shape[-1] * self._side**2))
        for part in states.split(together, dim=2):
            at[0] = first
            for block in decoder.up_blocks[self._num_adding :]:
                part = block(part, **memory)
            part = decoder.nonlinearity(decoder.norm_out(part))
            parts.append(self._convolve(decoder.conv_out, part, at))
        return torch.cat(parts, dim=2)

    def _convolve(self, convolution: WanCausalConv3d, states: Tensor, at: list[int]) -> Tensor:
        """A causal convolution that goes on after the frames it has seen, and remembers its last two."""
        before = self._features[at[0]]
        newest = states[:, :, -2:].clone()
        if newest.shape[2] < 2 and isinstance(before, Tensor):
            newest = torch.cat([before[:, :, -1:], newest], dim=2)
        convolved: Tensor = convolution(states, before)
        self._features[at[0]] = newest
        at[0] += 1
        return convolved


@torch.no_grad()
def encode_frames(vae: AutoencoderKLWan, frames: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Normalised latents of pixel frames.

    Args:
        frames: `[B, 3, 4 F - 3, height, width]` in -1 .. 1.
        generator: On the CPU, so that the draw from the encoder's posterior is the same on every device;
            `None` takes the posterior's mean.

    Returns:
        `[B, C, F, h, w]` float32.
    """
    posterior = vae.encode(frames.to(vae.device, vae.dtype)).latent_dist
    latents = (posterior.mean if generator is None else posterior.sample(generator)).float()
    shape = (1, -1, 1, 1, 1)
    mean = torch.tensor(vae.config.latents_mean, device=latents.device).view(shape)
    std = torch.tensor(vae.config.latents_std, device=latents.device).view(shape)
    return (latents - mean) / std


def no_pixels(latents: Tensor, side: int) -> Tensor:
    """`[B, 0, height, width, 3]` uint8 pixels: those of no latent frame, of `side` pixels to a position."""
    height, width = latents.shape[-2] * side, latents.shape[-1] * side
    return torch.empty(len(latents), 0, height, width, 3, dtype=torch.uint8)


def send_pixels(frames: Tensor, began: torch.cuda.Event | None = None) -> Pixels:
    """`[B, 3, n, height, width]` in -1 .. 1 as uint8, rounded to nearest, on their way to the CPU.

    Args:
        began: When a stream of the decoder's own began with them.
    """
    levels = ((frames.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    levels, is_nan = levels.permute(0, 2, 3, 4, 1).contiguous(), frames.isnan().any()
    if not frames.is_cuda:
        return Pixels(levels, is_nan)
    # To pinned memory, without waiting.
    levels, is_nan = levels.to("cpu", non_blocking=True), is_nan.to("cpu", non_blocking=True)
    done = torch.cuda.Event(enable_timing=True, blocking=True)
    done.record()
    return Pixels(levels, is_nan, began, done)
