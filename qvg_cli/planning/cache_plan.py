"""Which finished chunks become a packed span, and when. Integers only, no torch.

Made from the plan before anything runs, so every layer packs the same frames at the same time, and the bytes
that a run will hold are known in advance. Invariants: a chunk boundary never lies inside a span, sink frames
share a span with no others (a rolling window would keep such a span alive for ever), and a span is packed
once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from qvg_cli.config.schema import CacheConfig
from qvg_cli.planning.chunks import ChunkPlan
from qvg_kernels.spec import Bf16Spec, NoneSpec

Frames = tuple[int, ...]


@dataclass(frozen=True)
class PackPolicy:
    """When finished chunks are packed.

    Attributes:
        keep_recent_chunks: Newest finished chunks that stay unpacked.
        keep_sink: Whether the first committed chunk stays unpacked.
        span_frames: Chunks wait until together they have this many latent frames.
        sink_frames: Frames `0 .. sink_frames - 1` outlive a rolling window and are packed on their own.
    """

    keep_recent_chunks: int = 0
    keep_sink: bool = False
    span_frames: int = 1
    sink_frames: int = 0

    def is_sink(self, frames: Frames) -> bool:
        """Whether a chunk belongs to the sink."""
        return frames[0] < self.sink_frames


def policy_of(config: CacheConfig, *, tokens_per_frame: int, sink_frames: int) -> PackPolicy:
    """What `config` says of packing, for frames of so many tokens."""
    return PackPolicy(
        keep_recent_chunks=config.keep_recent_chunks,
        keep_sink=config.keep_sink,
        span_frames=math.ceil(config.span_tokens / tokens_per_frame),
        sink_frames=sink_frames,
    )


def unpacked_spec(config: CacheConfig) -> NoneSpec | Bf16Spec:
    """How chunks are kept that wait or stay unpacked: in bf16, unless nothing is rounded at all."""
    return NoneSpec() if config.k.scheme == config.v.scheme == "none" else Bf16Spec()


def plan_packs(chunks: Sequence[ChunkPlan], policy: PackPolicy) -> list[tuple[Frames, ...]]:
    """For each chunk, the groups of frames that become a span once the chunk is committed.

    A group waits for `span_frames` frames; a smaller one is packed early when it ends the sink.
    """
    waiting: list[Frames] = []
    packs: list[tuple[Frames, ...]] = []
    gone: set[int] = set()
    is_first = True
    for chunk in chunks:
        gone |= set(chunk.evicts)
        waiting = [frames for frames in waiting if not gone.issuperset(frames)]
        if chunk.commits and not (is_first and policy.keep_sink):
            waiting.append(chunk.commits)
        is_first = is_first and not chunk.commits
        packs.append(tuple(_take_groups(waiting, policy)) if chunk.commits else ())
    return packs


def _take_groups(waiting: list[Frames], policy: PackPolicy) -> list[Frames]:
    """Remove the groups that are ready from the front of `waiting`, oldest first."""
    groups: list[Frames] = []
    group: Frames = ()
    ready = len(waiting) - policy.keep_recent_chunks
    taken = 0
    for position in range(max(0, ready)):
        group += waiting[position]
        ends_sink = (
            policy.is_sink(group)
            and position + 1 < len(waiting)
            and not policy.is_sink(waiting[position + 1])
        )
        if len(group) >= policy.span_frames or ends_sink:
            groups.append(group)
            group = ()
            taken = position + 1
    del waiting[:taken]
    return groups
