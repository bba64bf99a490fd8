"""A loaded Wan model: text encoder, transformer and VAE of one weights folder. A family says what differs.

The text encoder is larger than most transformers: it is loaded for prompts and dropped again, and the
transformer is read when the first video begins, so that they never lie on the device beside each other.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

from qvg_cli.cache.kv_cache import KVCache
from qvg_cli.config.resources import find_taehv, weights_folder
from qvg_cli.config.schema import RunConfig
from qvg_cli.device import model_dtype
from qvg_cli.errors import MissingModelError
from qvg_cli.models.base import Denoiser, Pipeline, Planner
from qvg_cli.models.decoder import Decoder, WrappedDecoder
from qvg_cli.models.offload import STORAGE_DTYPE, Offload
from qvg_cli.models.parallel import Rows, Tokens
from qvg_cli.models.taehv import SmallDecoder, SmallNetwork, network_dtype, read_network
from qvg_cli.models.text import PromptEncoder
from qvg_cli.models.vae import FrameDecoder, StreamingDecoder, encode_frames
from qvg_cli.models.vae_gpu import speed_up
from qvg_cli.models.wan.checkpoint import Checkpoint
from qvg_cli.models.wan.transformer import CausalWanTransformer
from qvg_cli.planning.cache_forecast import CacheShape
from qvg_cli.randomness import derive_seed

ConfigT = TypeVar("ConfigT", bound=RunConfig)
ModelT = TypeVar("ModelT", bound=nn.Module)


class Models(Generic[ModelT]):
    """What stays loaded, each part read when it is first needed.

    Attributes:
        tokens: Who computes the tokens of a call; set before the first video.
        rows: Who computes the rows of a guided step.

    Args:
        config: Names the weights folder, and what is held where.
        open_checkpoint: Finds the transformer in the weights folder and checks it.

    Raises:
        UsageError: The device cannot hold it so.
        MissingModelError: There is no such folder, or a part is missing or does not fit.
    """

    def __init__(
        self, config: RunConfig, device: torch.device, open_checkpoint: Callable[[Path], Checkpoint[ModelT]]
    ) -> None:
        self.offload = Offload(config.memory, device)
        self.weights = weights_folder(config.model.weights)
        self.device = device
        self.dtype = model_dtype(config.model, device)
        self.prompts = PromptEncoder(self.weights, config.model.text_tokens, device, self.dtype)
        self.tokens = Tokens()
        self.rows = Rows()
        self._checkpoint = open_checkpoint(self.weights)
        if config.video.decoder == "taehv":
            # Read at once, being small: what is missing or broken is found before a prompt is encoded.
            _ = self.small_decoder

    @cached_property
    def transformer(self) -> ModelT:
        """Ready to be attached to a cache, adapters merged."""
        offload = self.offload
        matrix_dtype = STORAGE_DTYPE if offload.is_fp8 else None
        model = self._checkpoint.load(
            self.dtype, offload.load_device, matrix_dtype=matrix_dtype, shard=offload.shard
        )
        place_transformer(model, offload, self.dtype, self.tokens)
        return model

    @cached_property
    def vae(self) -> AutoencoderKLWan:
        """From latents to pixels and back.

        Raises:
            MissingModelError: It is missing or broken.
        """
        vae = self.read_vae().eval().requires_grad_(False).to(self.offload.vae_load_device)
        place_vae(vae, self.offload)
        return vae

    @cached_property
    def small_decoder(self) -> SmallNetwork:
        """What decodes in place of the VAE, on the device.

        Raises:
            UsageError: There is none for the latents of this VAE.
            MissingModelError: It is missing or broken.
        """
        return read_network(find_taehv(self.weights)).to(self.device, network_dtype(self.dtype))

    def read_vae(self) -> AutoencoderKLWan:
        """The VAE in CPU memory."""
        folder = self.weights / "vae"
        try:
            return AutoencoderKLWan.from_pretrained(
                folder, torch_dtype=self.dtype, local_files_only=True, use_safetensors=True
            )
        except (OSError, ValueError) as error:
            raise MissingModelError(f"cannot load {folder}: {error}") from error


def place_transformer(model: Any, offload: Offload, dtype: torch.dtype, tokens: Tokens) -> None:
    """Make a transformer that was just read ready to be attached to a cache."""
    is_wan = isinstance(model, CausalWanTransformer)
    if is_wan and offload.device.type == "cuda" and not offload.memory.weights_sharded:
        model.join_projections()
        # As its convolution computes: else what comes in and goes out is copied to another order.
        model.patch_embedding.to(memory_format=torch.channels_last_3d)
    offload.place_transformer(model, dtype)
    if tokens.size > 1:
        model.share_tokens(tokens)
    if offload.is_fixed and is_wan:
        model.capture_blocks()


def place_vae(vae: AutoencoderKLWan, offload: Offload) -> None:
    """Make a VAE that was just read ready to work."""
    offload.place_vae(vae)
    if offload.device.type == "cuda":
        speed_up(vae)


class WanPipeline(Pipeline, Generic[ConfigT, ModelT]):
    """What the Wan families share.

    Attributes:
        clip_purpose: Purpose of the seed with which pictures are drawn from the encoder's posterior; `None`
            takes the posterior's mean.
    """

    clip_purpose: ClassVar[str | None] = None

    def __init__(self, config: ConfigT, models: Models[ModelT]) -> None:
        self._config = config
        self._models = models

    def with_config(self, config: ConfigT) -> Self:
        return type(self)(config, self._models)

    def share(self, tokens: Tokens, rows: Rows) -> None:
        self._models.tokens, self._models.rows = tokens, rows

    @property
    def cache_shape(self) -> CacheShape:
        whole = self.whole_cache()
        tokens = self._models.tokens
        return replace(whole, heads=whole.heads // tokens.size, num_parts=tokens.size, part=tokens.rank)

    def whole_cache(self) -> CacheShape:
        """Keys and values of one video, of all heads."""
        model: Any = self._models.transformer.config
        return CacheShape(model.num_layers, model.num_attention_heads, model.attention_head_dim)

    @property
    def latents_dtype(self) -> torch.dtype:
        return torch.float32

    def read_prompts(self, prompts: Sequence[str]) -> None:
        self._models.prompts.prepare([text for prompt in prompts for text in self.texts(prompt)])

    def encode_prompt(self, prompt: str) -> Tensor:
        self.read_prompts([prompt])
        return torch.cat([self._models.prompts.encode(text) for text in self.texts(prompt)])

    def texts(self, prompt: str) -> list[str]:
        """What is encoded for a prompt, one row each."""
        return [prompt]

    def encode_frames(self, frames: Tensor, seed: int) -> Tensor:
        generator = None
        if self.clip_purpose is not None:
            generator = torch.Generator().manual_seed(derive_seed(seed, self.clip_purpose))
        # Read before there is room for it: what is read late stays where it waits.
        vae = self._models.vae
        with self._models.offload.pixels():
            return encode_frames(vae, frames, generator).to(self.latents_dtype)

    def open_decoder(self, *, is_beside: bool = False) -> FrameDecoder:
        """What `video.decoder` names, at the beginning of a video."""
        if self._config.video.decoder == "taehv":
            return SmallDecoder(self._models.small_decoder, is_beside=is_beside)
        return StreamingDecoder(self._models.vae, is_beside=is_beside)

    def decoder(self) -> Decoder:
        offload = self._models.offload
        decoder = self.open_decoder(is_beside=offload.is_resident)
        return WrappedDecoder(decoder, lambda: offload.pixels(decoder))

    @abstractmethod
    def denoiser(self, cache: KVCache, planner: Planner, prompt_embeds: Tensor, seed: int) -> Denoiser: ...
