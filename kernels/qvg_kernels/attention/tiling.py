"""How one attention call is cut to fit its workspace and fill the device. Integers only.

Heads go in groups, keys in passes, and the keys of a pass in splits that work side by side. The workspace
holds the keys and values of two passes, one being attended to and one being decoded, or of one pass where the
kernel leaves no room beside it on a multiprocessor; a state for each query and split; and the queries
rounded, where the kernel wants them so. The cut is the cheapest of those that fit.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import ceil

from qvg_kernels.runtime.launch import KEY_ALIGNMENT, round_up

STATE_ALIGNMENT = 512

FLAG_QUERIES = 64
"""Queries of a flag."""

MOST_SPLITS = 4
STATE_SHARE = 3
"""States take at most one divided by this of the workspace, so that the keys have room."""

PROGRAM_KEYS, PASS_KEYS = 600, 8000
"""What a program costs beside its keys, as it begins and merges its state, and a pass beside its programs, as
its kernels are launched: estimates, as so many keys of one program. H200, HY-WorldPlay's call: 3.06 ms, and
1.17 ms to launch it, in one group of heads; in three, where a pass costs 2,000, 3.16 and 2.16 ms.
"""


@dataclass(frozen=True)
class Cut:
    """One attention call, cut.

    Attributes:
        heads: Of a group.
        splits: Of each pass's keys.
        pass_tokens: For each list of keys, tokens of a pass.
        query_bytes: Of the workspace for a group's rounded queries; they come first.
        state_bytes: For its states, which come next; the keys come after them.
        pass_bytes: For the keys and values of a pass.
        workspace_bytes: Of all that.
    """

    heads: int
    splits: int
    pass_tokens: tuple[int, ...]
    query_bytes: int
    state_bytes: int
    pass_bytes: int
    workspace_bytes: int


@lru_cache(maxsize=64)
def cut_attention(
    batch: int, heads: int, queries: int, head_dim: int, lists: tuple[tuple[int, int], ...], limit_bytes: int,
    tile_queries: int, programs_at_once: int, buffers: int = 2, head_query_bytes: int = 0,
) -> Cut:  # fmt: skip
    """Cut an attention call.

    Args:
        lists: Tokens of each list of keys, and bytes of a channel of a key and its value in all items of the
            batch that it is for.
        limit_bytes: Of the workspace. A single head's state and 128 keys are taken even if they need more.
        tile_queries: Queries of a program.
        programs_at_once: Programs that the device lists at the same time.
        buffers: Passes in the workspace at once.
        head_query_bytes: Of one head's rounded queries.
    """

    def query_bytes(group: int) -> int:
        return round_up(batch * group * head_query_bytes, STATE_ALIGNMENT)

    def state_bytes(group: int, splits: int) -> int:
        state = queries * (head_dim + 2) * 4 + ceil(queries / FLAG_QUERIES) * 4
        return round_up(splits * batch * group * state, STATE_ALIGNMENT)

    def cut(groups: int, splits: int) -> Cut:
        group = ceil(heads / groups)
        rounded, states = query_bytes(group), state_bytes(group, splits)
        key_bytes = [group * head_dim * pair_bytes for _, pair_bytes in lists]
        # Equal passes of at most as many keys as there is room for.
        rooms = [(limit_bytes - rounded - states) // (buffers * each) for each in key_bytes]
        rooms = [max(KEY_ALIGNMENT, room // KEY_ALIGNMENT * KEY_ALIGNMENT) for room in rooms]
        pass_tokens = tuple(
            round_up(ceil(tokens / max(1, ceil(tokens / room))), KEY_ALIGNMENT)
            for (tokens, _), room in zip(lists, rooms, strict=True)
        )
        most = max(tokens * each for tokens, each in zip(pass_tokens, key_bytes, strict=True))
        return Cut(group, splits, pass_tokens, rounded, states, most, rounded + states + buffers * most)

    def cost(cut: Cut) -> float:
        programs = batch * cut.heads * ceil(queries / tile_queries) * cut.splits
        waves = ceil(heads / cut.heads) * ceil(programs / programs_at_once)
        passes = [ceil(tokens / each) for (tokens, _), each in zip(lists, cut.pass_tokens, strict=True)]
        keys = sum(tokens for tokens, _ in lists) / cut.splits + sum(passes) * PROGRAM_KEYS
        return waves * keys + ceil(heads / cut.heads) * sum(passes) * PASS_KEYS

    cuts = [cut(groups, splits) for groups in range(1, heads + 1) for splits in range(1, MOST_SPLITS + 1)]
    fitting = [
        each
        for each in cuts
        if each.workspace_bytes <= limit_bytes and each.state_bytes * STATE_SHARE <= limit_bytes
    ]
    return min(fitting, key=cost) if fitting else cut(heads, 1)
