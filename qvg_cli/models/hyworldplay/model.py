"""The world model: Wan's transformer conditioned on the camera, with a second stream of attention.

The model's own forward runs unchanged. The frames of a call go through it as a batch of single frames, so
that every frame has its own timestep and action; attention joins them again. One set of projections gives the
query, key and value of both streams, each stream has its own output projection.

Source: Tencent-Hunyuan/HY-WorldPlay, `wan/models`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.transformers.transformer_wan import WanTimeTextImageEmbedding
from torch import Tensor, nn

from qvg_cli.cache.kv_cache import KVCache
from qvg_cli.models.hyworldplay.trajectory import Trajectory
from qvg_cli.models.wan.rope import FrameRotation
from qvg_cli.models.wan.transformer import (
    CachedSelfAttention,
    Call,
    CausalWanTransformer,
    TextCrossAttention,
    split_heads,
)
from qvg_cli.planning.chunks import ChunkPlan, Frames
from qvg_kernels.rope.placement import FrameMatrices


@dataclass(frozen=True, eq=False)
class Cameras:
    """Camera matrices of all frames of a video, `[F, 4, 4]` float32 whatever the model's dtype.

    The matrix of a frame is `P = lift(K) @ viewmat`, with `lift(K) = diag(fx, fy, 1, 1)`: the centre of the
    lens is left out. Of every group of 4 neighbouring channels, queries are multiplied by `P` transposed,
    keys and values by `P` inverted, and what a query has gathered by `P`.

    Source: Tencent-Hunyuan/HY-WorldPlay, `hyvideo/prope`; PRoPE, arXiv 2507.10496.
    """

    project: Tensor
    unproject: Tensor
    unproject_gain: float
    tokens_per_frame: int

    @classmethod
    def of(cls, trajectory: Trajectory, tokens_per_frame: int, device: torch.device) -> Self:
        viewmats = torch.from_numpy(trajectory.viewmats)
        intrinsics = torch.from_numpy(trajectory.intrinsics)
        focal = torch.ones(len(trajectory), 4, dtype=torch.float64)
        focal[:, :2] = intrinsics.diagonal(dim1=-2, dim2=-1)[:, :2]
        inverse = torch.zeros_like(viewmats)
        inverse[:, :3, :3] = viewmats[:, :3, :3].transpose(-1, -2)
        inverse[:, :3, 3:] = -inverse[:, :3, :3] @ viewmats[:, :3, 3:]
        inverse[:, 3, 3] = 1
        project = focal[:, :, None] * viewmats
        unproject = inverse / focal[:, None, :]
        # The largest of four values grows by at most the largest sum of a row.
        gain = float(unproject.abs().sum(-1).max())
        return cls(project.float().to(device), unproject.float().to(device), gain, tokens_per_frame)

    def placement(self, frames: Frames) -> FrameMatrices:
        """What keys and values of `frames` are multiplied by."""
        return self._matrices(self.unproject, frames)

    def rotate_query(self, query: Tensor, frames: Frames) -> Tensor:
        """All queries `[B, H, S, D]` of `frames`."""
        matrices = self._matrices(self.project.transpose(-1, -2).contiguous(), frames)
        return matrices.apply(query, slice(0, query.shape[2]))

    def restore(self, output: Tensor, frames: Frames) -> Tensor:
        """What the queries of `frames` have gathered, `[B, H, S, D]`, back in the axes of their cameras."""
        return self._matrices(self.project, frames).apply(output, slice(0, output.shape[2]))

    def _matrices(self, matrices: Tensor, frames: Frames) -> FrameMatrices:
        return FrameMatrices(matrices, self.unproject_gain, self.tokens_per_frame, frames)


@dataclass
class WalkCall(Call):
    """What the parts of the model need to know about a call, set by the denoiser before it.

    Attributes:
        actions: `[B * F]` action labels of the input's frames.
    """

    cameras: Cameras | None = None
    actions: Tensor | None = None


class ActionConditioning(WanTimeTextImageEmbedding):  # type: ignore[misc]  # diffusers has no types
    """The model's conditioning on time and text, with the action added to the time, for each frame.

    The sum also modulates the output norm, as time alone does in the stock model.
    """

    def __init__(self, dim: int, freq_dim: int, text_dim: int) -> None:
        super().__init__(dim=dim, time_freq_dim=freq_dim, time_proj_dim=6 * dim, text_embed_dim=text_dim)
        self.action_embedder = TimestepEmbedding(in_channels=freq_dim, time_embed_dim=dim)
        self.call: WalkCall | None = None

    def forward(
        self,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_image: None = None,
        timestep_seq_len: None = None,
    ) -> tuple[Tensor, Tensor, Tensor, None]:
        """`[B * F]` timesteps and `[B, N, C]` embeddings to `[B * F, C]`, `[B * F, 6 * C]` and the text."""
        assert self.call is not None
        actions = self.call.actions
        assert actions is not None
        time = self._embed(self.time_embedder, timestep)
        states = (time + self._embed(self.action_embedder, actions)).type_as(encoder_hidden_states)
        return states, self.time_proj(self.act_fn(states)), self.text_embedder(encoder_hidden_states), None

    def _embed(self, embedder: TimestepEmbedding, numbers: Tensor) -> Tensor:
        sinusoid = self.timesteps_proj(numbers).to(embedder.linear_1.weight.dtype)
        return embedder(sinusoid)


class TwoStreamSelfAttention(CachedSelfAttention[WalkCall]):
    """Self-attention processor of a layer: both streams attend to the cache, a cache-update pass fills it."""

    def by_head(self, states: Tensor, heads: int) -> Tensor:
        """`[B * F, P, H * D]` to `[B, H, F * P, D]`."""
        joined = states.unflatten(0, (-1, len(self.call.frames))).flatten(1, 2)
        return split_heads(joined, heads)

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rotary_emb: FrameRotation,
        out: Sequence[Tensor] = (),
    ) -> tuple[Tensor, ...]:
        """What both streams gather, `[B, F * P, H, D]` each: by place and time, then by camera."""
        call, layer, cameras = self.call, self.layer, self.call.cameras
        assert cameras is not None
        call.observe(layer, query, rotary_emb, cameras)
        timed = call.attend(layer, rotary_emb.rotate(query, call.frames), key, value, rotary_emb)
        # Copied before the other stream attends: both may be gathered in the same workspace.
        timed = timed.transpose(1, 2)
        timed = out[0].copy_(timed) if out else timed.clone(memory_format=torch.contiguous_format)
        seen = call.attend(layer, cameras.rotate_query(query, call.frames), key, value, cameras, cameras)
        seen = cameras.restore(seen, call.frames).transpose(1, 2)
        call.fill(layer, key, value)
        return timed, seen

    def output(self, attn: Any, *attended: Tensor) -> Tensor:
        joined = self.call.to_tokens(self.layer, *attended)
        timed, seen = (each.unflatten(1, (len(self.call.frames), -1)).flatten(0, 1) for each in joined)
        return attn.to_out[0](timed) + attn.to_out_prope[0](seen)


class FramewiseCrossAttention(TextCrossAttention):
    """Cross-attention of the frames of a call, as one sequence a video."""

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        rotary_emb: None = None,
    ) -> Tensor:
        """`[B * F, P, C]` attending to prompt embeddings `[B, N, C]`."""
        joined = hidden_states.reshape(encoder_hidden_states.shape[0], -1, hidden_states.shape[-1])
        return super().__call__(attn, joined, encoder_hidden_states).view_as(hidden_states)


class WalkTransformer(CausalWanTransformer):
    """The causal Wan transformer with an action embedding and the camera stream's output projections."""

    _keep_in_fp32_modules: ClassVar = [*WanTransformer3DModel._keep_in_fp32_modules, "action_embedder"]
    self_attention = TwoStreamSelfAttention
    cross_attention = FramewiseCrossAttention

    def adapt(self) -> None:
        config = self.config
        dim = config.num_attention_heads * config.attention_head_dim
        self.condition_embedder = ActionConditioning(dim, config.freq_dim, config.text_dim)
        for block in self.blocks:
            block.attn1.to_out_prope = nn.ModuleList([nn.Linear(dim, dim)])

    def attach(self, cache: KVCache) -> WalkCall:
        return self.attach_call(WalkCall(ChunkPlan(0, ())), cache)

    def use(self, call: Any) -> None:
        super().use(call)
        self.condition_embedder.call = call
