"""The LongCat-Video transformer, its self-attention reading and filling the cache.

A timestep belongs to a latent frame, not to a video: condition frames pass with timestep 0 and without text,
so what they leave in the cache depends neither on the prompt nor on the step.

Source: meituan-longcat/LongCat-Video, `longcat_video/modules/longcat_video_dit.py`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from qvg_cli.cache.kv_cache import LayerCache
from qvg_cli.models.longcat.layers import (
    Block,
    CaptionEmbedder,
    FinalLayer,
    PatchEmbedder,
    ProjectedPrompt,
    TimestepEmbedder,
    TransformerConfig,
)
from qvg_cli.models.parallel import Tokens
from qvg_cli.models.wan.checkpoint import Checkpoint, read_folder
from qvg_cli.models.wan.lora import Lora
from qvg_cli.models.wan.transformer import Call, FrameRope
from qvg_cli.planning.sizes import read_layout

MAX_POSITIONS = 1024
"""Largest position of each axis; the published model has no limit of its own."""


class LongCatTransformer(nn.Module):
    """The whole transformer; call `embed_text` once a prompt and the model once a step.

    Attributes:
        stays_on_device: Parts beside the blocks that never wait elsewhere: small, and needed outside a call.
    """

    stays_on_device: ClassVar = ("x_embedder", "y_embedder", "final_layer")
    # Their inputs are float32 whatever the model's dtype; the name is diffusers'.
    _keep_in_fp32_modules: ClassVar = ("t_embedder", "adaLN_modulation", "final_layer")

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.x_embedder = PatchEmbedder(config)
        self.t_embedder = TimestepEmbedder(config)
        self.y_embedder = CaptionEmbedder(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final_layer = FinalLayer(config)
        self.tokens = Tokens()
        self.rope = FrameRope(config.head_dim, MAX_POSITIONS, config.patch_size)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of weights and activations, but for the parts that stay float32."""
        return self.x_embedder.proj.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.x_embedder.proj.weight.device

    def share_tokens(self, tokens: Tokens) -> None:
        """Let only some tokens of a call pass the blocks here, from now on."""
        self.tokens = tokens

    @torch.no_grad()
    def embed_text(self, prompt_embeds: Tensor, mask: Tensor | None = None) -> ProjectedPrompt:
        """Project the text encoder's states.

        Args:
            prompt_embeds: `[B, N, C]`.
            mask: `[B, N]`, true or 1 for the prompt's tokens, else padding; `None` counts all as prompt.
        """
        states = self.y_embedder(prompt_embeds.to(self.dtype))
        if mask is None:
            return ProjectedPrompt(states, None)
        if self.config.text_tokens_zero_pad:
            # Zero rows still have keys and values, the biases, and the model was trained to attend to them.
            return ProjectedPrompt(states * mask.unsqueeze(-1).to(states.dtype), None)
        return ProjectedPrompt(states, mask[:, None, None, :].bool())

    @torch.no_grad()
    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        text: ProjectedPrompt | None,
        call: Call,
        layers: Sequence[LayerCache],
    ) -> Tensor:
        """Predict `clean - noise`, `[B, C, F, h, w]` float32, of latent frames.

        Args:
            latents: `[B, C, F, h, w]`; the frames named in `call`.
            timesteps: `[B, F]` on the 0..1000 scale.
            text: `None` for condition frames, which never see it.
            layers: The cache, one entry a block.
        """
        states = self.x_embedder(latents.to(self.dtype))
        # The timestep is rounded to the model's dtype first: 998.27 becomes 1000 in bf16, as in training.
        rounded = timesteps.to(self.dtype).float()
        time = self.t_embedder(rounded.flatten()).unflatten(0, rounded.shape)
        self.rope.call = call
        rotation = self.rope(latents)
        frame_tokens = rotation.tokens_per_frame
        states = call.tokens.split(states, frame_tokens)
        for block, layer in zip(self.blocks, layers, strict=True):
            states = block(states, time, text, rotation, layer, call)
        states = call.tokens.gather(states, frame_tokens)
        return self.unpatchify(self.final_layer(states, time), latents)

    def unpatchify(self, patches: Tensor, like: Tensor) -> Tensor:
        """`[B, S, pt * ph * pw * C]` to `[B, C, F, h, w]`, the size of `like`."""
        batch, _, *size = like.shape
        patch, channels = self.config.patch_size, self.config.out_channels
        grid = [length // part for length, part in zip(size, patch, strict=True)]
        pixels = patches.reshape(batch, *grid, *patch, channels)
        # [B, F, h, w, pt, ph, pw, C] to [B, C, F, pt, h, ph, w, pw]
        return pixels.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(batch, channels, *size)


def open_longcat(folder: Path, adapters: Sequence[Lora] = ()) -> Checkpoint[LongCatTransformer]:
    """The checkpoint of a published `dit` folder, float32 or bf16; `MissingModelError` says what is wrong."""
    config = TransformerConfig.read(read_layout(folder), folder / "config.json")
    return Checkpoint(lambda: LongCatTransformer(config), read_folder(folder), folder, adapters)
