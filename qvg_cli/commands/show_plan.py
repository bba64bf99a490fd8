"""What a planned video needs, told before anything is made: `qvg plan`, and `--dry-run`. No torch."""

from __future__ import annotations

import json
from collections.abc import Sequence

from qvg_cli.console import show_data
from qvg_cli.engine.jobs import Planned
from qvg_cli.report.forecasts import make_plan


def show_plan(
    videos: Sequence[Planned], card: str | None, *, num_videos: int, is_json: bool, num_gpus: int = 1
) -> None:
    """Print what the same video needs with each of several caches.

    Args:
        card: A name or a size; `None` takes the card of this machine, if it has one.
        num_videos: That are planned alike.
        num_gpus: That make the video together.

    Raises:
        UsageError: There is no such card, or so many cannot share the video.
        MissingModelError: The model is in a folder of the user's, and that cannot be read.
    """
    plan = make_plan(videos, card, num_videos=num_videos, num_gpus=num_gpus)
    show_data(json.dumps(plan.to_json()) if is_json else str(plan))
