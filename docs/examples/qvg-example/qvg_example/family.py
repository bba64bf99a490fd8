"""Self-Forcing whose memory is given in seconds. Imports no torch, since `qvg --help` imports it."""

from __future__ import annotations

from math import ceil

from qvg_cli.config.options import FamilyOption
from qvg_cli.errors import UsageError
from qvg_cli.models.self_forcing.family import SelfForcing

FRAMES_PER_CHUNK, LATENT_FRAMES_PER_SECOND = 3, 4


def frames_of_memory(seconds: float) -> int:
    """Latent frames of a window that holds `seconds` of video and the chunk that is made, in whole chunks.

    Raises:
        UsageError: It is not a length.
    """
    if not 0 < seconds < 60:
        raise UsageError(f"--memory {seconds:g} is not a length", hint="use seconds, e.g. --memory 2")
    chunks = ceil(seconds * LATENT_FRAMES_PER_SECOND / FRAMES_PER_CHUNK)
    return FRAMES_PER_CHUNK * (chunks + 1)


class ShortMemory(SelfForcing):
    """The models of Self-Forcing, with `--memory` in place of `--window`."""

    name = "short-memory"
    options = (
        FamilyOption(
            "--memory",
            "sampler.window",
            "Seconds of video that the KV cache holds [default: 2].",
            metavar="SECONDS",
            type=float,
            parse=frames_of_memory,
        ),
        *(option for option in SelfForcing.options if option.flag != "--window"),
    )
