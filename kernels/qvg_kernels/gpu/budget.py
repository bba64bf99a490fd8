"""How one attention call is cut to fit its workspace and fill the device. Integers only.

Heads go in groups, keys in parts, and the keys of a part in splits that run side by side. The workspace holds
the keys and values of two parts, one being attended to and one being decoded, a state for each query and
split, and, where a kernel wants them so, the queries rounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

PART_ALIGNMENT = 128
"""Keys that parts and splits are a multiple of: the largest block of keys."""

STATE_ALIGNMENT = 512

FLAG_QUERIES = 64
"""Queries of a flag."""

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
        query_bytes: Of the workspace for a group's rounded queries; they come first.
        state_bytes: For its states, which come next; the keys come after them.
        part_bytes: For the keys and values of a part.
        workspace_bytes: Of all that.
    """

    heads: int
    splits: int
    part_tokens: tuple[int, ...]
    query_bytes: int
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
    head_query_bytes: int = 0,
) -> Cut:
    """Cut an attention call.

    Args:
        runs: Tokens of each run of keys, and bytes of a channel of a key and its value in all items of the
            batch that it is for.
        limit_bytes: Of the workspace. A single head's state and 128 keys are taken even if they need more.
        block_queries: Queries of a program.
        programs_at_once: Programs that the device runs at the same time.
        head_query_bytes: Of one head's rounded queries.
    """

    def query_bytes(group: int) -> int:
        return round_up(batch * group * head_query_bytes, STATE_ALIGNMENT)

    def state_bytes(group: int, splits: int) -> int:
        state = queries * (head_dim + 2) * 4 + ceil(queries / FLAG_QUERIES) * 4
        return round_up(splits * batch * group * state, STATE_ALIGNMENT)

    widest = max(pair_bytes for _, pair_bytes in runs)
    least_keys = BUFFERS * head_dim * widest * min(1024, max(tokens for tokens, _ in runs))
    group = heads
    while group > 1 and (
        state_bytes(group, 1) * STATE_SHARE > limit_bytes
        or query_bytes(group) + state_bytes(group, 1) + group * least_keys > limit_bytes
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
    states, rounded = state_bytes(group, splits), query_bytes(group)
    key_bytes = [group * head_dim * pair_bytes for _, pair_bytes in runs]
    part_tokens = tuple(
        _part_tokens(tokens, (limit_bytes - rounded - states) // (BUFFERS * each))
        for (tokens, _), each in zip(runs, key_bytes, strict=True)
    )
    most = max(tokens * each for tokens, each in zip(part_tokens, key_bytes, strict=True))
    return Cut(group, splits, part_tokens, rounded, states, most, rounded + states + BUFFERS * most)


def _fill(programs: int, at_once: int) -> float:
    """How much of the device's time is used when programs of equal length run in waves."""
    return programs / (at_once * ceil(programs / at_once))


def _part_tokens(tokens: int, most: int) -> int:
    """Tokens of equal parts of at most `most`."""
    most = max(PART_ALIGNMENT, most // PART_ALIGNMENT * PART_ALIGNMENT)
    return round_up(ceil(tokens / max(1, ceil(tokens / most))), PART_ALIGNMENT)
