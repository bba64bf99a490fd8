"""What a planned video needs, told before anything is made: `qvg plan`, and `--dry-run`. No torch."""

from __future__ import annotations

import json
from collections.abc import Sequence

from qvg_cli.config.cache_presets import cache_label
from qvg_cli.console import show_data
from qvg_cli.engine.jobs import Planned
from qvg_cli.engine.suggestions import find_remedies, forecast_run, verdict
from qvg_cli.planning.cards import Card, find_card, parse_card
from qvg_cli.planning.forecast import is_for_gpu
from qvg_cli.report.forecasts import Planning, plan_json, plan_text


def show_plan(arms: Sequence[Planned], card: str | None, *, num_videos: int, is_json: bool) -> None:
    """Print what the videos of `arms` need, the same with several caches.

    Args:
        card: A name or a size; none takes the card of this machine, if it has one.
        num_videos: That are planned alike.

    Raises:
        UsageError: There is no such card.
        MissingModelError: The model is in a folder of the user's, and that cannot be read.
    """
    found = parse_card(card) if card is not None else find_card()
    plan = arms[0].plan
    if arms[0].config.device == "cpu":
        found = None
    plannings = [_planning(arm, found) for arm in arms]
    if is_json:
        show_data(json.dumps(plan_json(plan, plannings, found, num_videos)))
    else:
        show_data(plan_text(plan, plannings, found, num_videos))


def _planning(arm: Planned, card: Card | None) -> Planning:
    is_gpu = is_for_gpu(arm.config, has_card=card is not None)
    found = forecast_run(arm.config, arm.plan, is_gpu=is_gpu)
    said = None if card is None else verdict(found, card)
    remedies = {}
    if card is not None and said != "fits":
        remedies = {
            remedy.options: remedy.device_bytes
            for remedy in find_remedies(arm.config, arm.plan, card.usable_bytes, is_gpu=is_gpu)
        }
    return Planning(cache_label(arm.config.cache), arm.config, found, said, remedies)
