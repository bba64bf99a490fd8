"""An option of the command line that one family adds, declared once: its flag, its setting, its help."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from qvg_cli.errors import UsageError


@dataclass(frozen=True)
class FamilyOption:
    """One option, and the setting that its value becomes.

    Attributes:
        flag: As it is written, such as "--window". Families may share a flag, each with its own setting.
        setting: Dotted name of the setting.
        help: For `--help`.
        metavar: What `--help` shows in the value's place.
        type: That the command line is read as.
        parse: From that value to the setting's; a wrong one is a `UsageError`.
        is_repeatable: Whether it may be given several times: the setting is the list of all values, parsed.
    """

    flag: str
    setting: str
    help: str
    metavar: str
    type: type[str] | type[int] | type[Path] = str
    parse: Callable[[Any], object] = lambda value: value
    is_repeatable: bool = False


def parse_window(text: str) -> int | None:
    """Latent frames of a `--window`; None for "all", the whole history.

    Raises:
        UsageError: It is neither.
    """
    if text.lower() == "all":
        return None
    if not text.isdecimal():
        raise UsageError(f"--window {text} is not a number of latent frames", hint="or all")
    return int(text)


def parse_lora(text: str) -> dict[str, object]:
    """The setting of a `--lora`: FILE, or FILE:WEIGHT; a file whose name ends like the latter is taken first.

    Raises:
        UsageError: There is no file, or no number after it.
    """
    file, separator, weight = text.rpartition(":")
    if not separator or Path(text).expanduser().is_file():
        file, weight = text, "1"
    try:
        number = float(weight)
    except ValueError as error:
        raise UsageError(
            f"--lora {text}: {weight!r} is not a weight", hint="for example --lora style.safetensors:0.8"
        ) from error
    if not file or not isfinite(number):
        raise UsageError(f"--lora {text} is not FILE or FILE:WEIGHT", hint="for example --lora a.safetensors")
    return {"file": file, "weight": number}
