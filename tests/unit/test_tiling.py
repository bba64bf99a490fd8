"""One attention call, cut to fit its workspace."""

import pytest

from qvg_kernels.attention.tiling import cut_attention

H200 = {"tile_queries": 64, "programs_at_once": 264}

SELF_FORCING = {"batch": 1, "heads": 12, "queries": 4680, "head_dim": 128}
HY_WORLDPLAY = {"batch": 1, "heads": 24, "queries": 3520, "head_dim": 128}
LONGCAT = {"batch": 2, "heads": 32, "queries": 7800, "head_dim": 128}


@pytest.mark.parametrize("limit_bytes", [2**26, 2**28, 2**30])
@pytest.mark.parametrize(("pair_bytes", "head_query_bytes"), [(2, 0), (3, 7808 * 132), (4, 0)])
@pytest.mark.parametrize(
    ("shape", "keys"),
    [(SELF_FORCING, 43_680), (SELF_FORCING, 748_800), (HY_WORLDPLAY, 42_240), (LONGCAT, 29_640)],
)
def test_every_model_fits_whatever_its_history(shape, keys, pair_bytes, head_query_bytes, limit_bytes):
    runs = ((keys, pair_bytes), (shape["queries"], 4 * shape["batch"]))
    cut = cut_attention(
        **shape, lists=runs, limit_bytes=limit_bytes, head_query_bytes=head_query_bytes, **H200
    )
    assert cut.workspace_bytes <= limit_bytes


def test_a_tiny_limit_still_gives_one_head_and_one_block_of_keys():
    cut = cut_attention(**SELF_FORCING, lists=((9000, 2),), limit_bytes=1, **H200)
    assert (cut.heads, cut.splits, cut.pass_tokens) == (1, 1, (128,))


def test_parts_are_equal_and_hold_all_keys():
    cut = cut_attention(**SELF_FORCING, lists=((262_080, 2),), limit_bytes=2**28, **H200)
    (part,) = cut.pass_tokens
    assert part % 128 == 0
    parts = -(-262_080 // part)
    assert parts * part - 262_080 < parts * 128


def test_keys_are_split_where_that_fills_the_device():
    # 888 programs at 264 a time leave the fourth wave two thirds empty; twice as many run in 7 waves of 6.7.
    cut = cut_attention(**SELF_FORCING, lists=((262_080, 2),), limit_bytes=2**28, **H200)
    assert (cut.heads, cut.splits) == (12, 2)


def test_heads_are_grouped_where_that_fills_the_device():
    # 24 heads are 672 programs: 132 at a time leave the last wave nearly empty.
    runs = ((42_240, 3), (3520, 4))
    cut = cut_attention(
        **HY_WORLDPLAY, lists=runs, limit_bytes=2**28, tile_queries=128, programs_at_once=132, buffers=1
    )
    assert cut.heads < 24
    waves = -(-cut.heads * 28 * cut.splits // 132)
    assert cut.heads * 28 * cut.splits > 0.94 * 132 * waves


def test_heads_are_not_grouped_where_launching_costs_more():
    # With the rounded queries of 24 heads, half of the keys fit at once: two parts, or three groups in one.
    cut = cut_attention(
        **HY_WORLDPLAY, lists=((42_240, 3), (3520, 4)), limit_bytes=2**28, tile_queries=128,
        programs_at_once=132, buffers=1, head_query_bytes=3584 * 260,
    )  # fmt: skip
    assert (cut.heads, cut.splits, cut.pass_tokens) == (24, 1, (21_120, 3584))


def test_a_short_history_has_no_larger_workspace_than_it_needs():
    cut = cut_attention(**SELF_FORCING, lists=((4680, 4),), limit_bytes=2**28, **H200)
    assert cut.workspace_bytes < 2**27
