"""How the evaluation of the pocket LongCat counts and reports."""

import numpy as np

from scripts.pocket.evaluate_longcat import jumps, table


def test_a_cut_is_told_from_motion():
    # Two clips whose pixels rise by 2 a frame; one of them jumps by 50 at frame 4.
    video = np.zeros((2, 8, 2, 2, 3), dtype=np.uint8)
    video += 2 * np.arange(8, dtype=np.uint8)[None, :, None, None, None]
    video[1, 4:] += 48
    found = jumps(video, [4, 6])
    assert found == {"inside": 2.0, "at_joints": 14.0, "joints": 4, "joints_above_all_inside": 1}


def test_the_tables_hold_what_was_found():
    counts = {"color": 4, "shape": 2, "motion": 3, "all": 1}
    jump = {"inside": 1.5, "at_joints": 1.75, "joints": 8, "joints_above_all_inside": 1}
    part = {"clips": 4, "found": counts}
    found = {"base": part, "end": part, "jumps": jump, "psnr_to_true_continuation": 25.5}
    lines = table({"guided": found, "distilled": {"base": part}}).splitlines()
    assert lines[2:5] == [
        "| guided: base clip | 4 | 4 | 2 | 3 | 1 |",
        "| guided: end, after the segments | 4 | 4 | 2 | 3 | 1 |",
        "| distilled: base clip | 4 | 4 | 2 | 3 | 1 |",
    ]
    assert lines[-1] == "| guided | 1.5 | 1.75 | 1 of 8 | 25.5 |"
