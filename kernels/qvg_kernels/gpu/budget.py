"""How one attention call is cut to fit its workspace and fill the device. Integers only.

Heads go in groups, keys in parts, and the keys of a part in splits that run side by side. The workspace holds
the keys and values of two parts, one being attended to and one being decoded, and a state for each query and
split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

PART_ALIGNMENT = 128
"""Keys that parts and splits are a multiple of: the largest block of keys."""

STATE_ALIGNMENT = 512

BUFFERS = 2
"""Parts in the workspace at once."""

MOST_SPLITS = 4
STATE_SHARE = 3
"""States take at most this part of the workspace, one divided by it, so that the keys have room."""


@dataclass(frozen=True)
class Cut:
    """One attention call, cut.

    Attributes:
        heads: Of a group.
        splits: Of each part's keys.
        part_tokens: For each run of keys, tokens of a part.
        state_bytes: Of the workspace for a group's states; the keys come after them.
        part_bytes: For the keys and values of a part.
        workspace_bytes: Of states, keys and values.
    """

    heads: int
    splits: int
    part_tokens: tuple[int, ...]
    state_bytes: int
    part_bytes: int
    workspace_bytes: int


def round_up(count: int, multiple: int) -> int:
    """The least multiple that is not below `count`."""
    return -(-count // multiple) * multiple


def cut_attention(
    batch: int,
    heads: int,
    queries: int,
    head_dim: int,
    runs: Sequence[tuple[int, int]],
    limit_bytes: int,
    block_queries: int,
    programs_at_once: int,
) -> Cut:
    """Cut an attention call.

    Args:
        runs: Tokens of each run of keys, and bytes of an element in all items of the batch that it is for.
        limit_bytes: Of the workspace. A single head's state and 128 keys are taken even if they need more.
        block_queries: Queries of a program.
        programs_at_once: Programs that the device runs at the same time.
    """

    def state_bytes(group: int, splits: int) -> int:
        return round_up(splits * batch * group * queries * (head_dim + 2) * 4, STATE_ALIGNMENT)

    widest = max(element_bytes for _, element_bytes in runs)
    least_keys = BUFFERS * 2 * head_dim * widest * min(1024, max(tokens for tokens, _ in runs))
    group = heads
    while group > 1 and (
        state_bytes(group, 1) * STATE_SHARE > limit_bytes
        or state_bytes(group, 1) + group * least_keys > limit_bytes
    ):
        # The groups come out about equal.
        group = min(group - 1, ceil(heads / (ceil(heads / group) + 1)))
    tiles = batch * group * ceil(queries / block_queries)
    fitting = [
        splits
        for splits in range(1, MOST_SPLITS + 1)
        if splits == 1 or state_bytes(group, splits) * STATE_SHARE <= limit_bytes
    ]
    splits = max(fitting, key=lambda splits: (round(_fill(tiles * splits, programs_at_once), 2), -splits))
    states = state_bytes(group, splits)
    key_bytes = [2 * group * head_dim * element_bytes for _, element_bytes in runs]
    part_tokens = tuple(
        _part_tokens(tokens, (limit_bytes - states) // (BUFFERS * each))
        for (tokens, _), each in zip(runs, key_bytes, strict=True)
    )
    most = max(tokens * each for tokens, each in zip(part_tokens, key_bytes, strict=True))
    return Cut(group, splits, part_tokens, states, most, states + BUFFERS * most)


def _fill(programs: int, at_once: int) -> float:
    """How much of the device's time is used when programs of equal length run in waves."""
    return programs / (at_once * ceil(programs / at_once))


def _part_tokens(tokens: int, most: int) -> int:
    """Tokens of equal parts of at most `most`."""
    most = max(PART_ALIGNMENT, most // PART_ALIGNMENT * PART_ALIGNMENT)
    return round_up(ceil(tokens / max(1, ceil(tokens / most))), PART_ALIGNMENT)
