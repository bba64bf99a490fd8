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
        type: That the command line is read as.
        parse: From that value to the setting's; a wrong one is a `UsageError`.
        needs: Another setting and the value without which the option has no effect, and is refused.
        not_in: Commands that have not got it, since it would have no effect there.
        is_repeatable: Whether it may be given several times: the setting is the list of all values, parsed.
    """

    flag: str
    setting: str
    help: str
    metavar: str
    type: type[str] | type[int] | type[float] | type[Path] = str
    parse: Callable[[Any], object] = lambda value: value
    needs: tuple[str, object] | None = None
    not_in: tuple[str, ...] = ()
    is_repeatable: bool = False

    @property
    def keyword(self) -> str:
        """Its name in Python."""
        return self.flag.removeprefix("--").replace("-", "_")

    def read(self, value: Any) -> object:
        """The setting's value, or a `UsageError`; from Python, a number may stand for the text of one."""
        if self.is_repeatable:
            return [self._read_one(each) for each in ([value] if isinstance(value, str | Path) else value)]
        return self._read_one(value)

    def _read_one(self, value: Any) -> object:
        try:
            typed = self.type(value)
        except (TypeError, ValueError) as error:
            raise UsageError(f"{self.flag} {value} is not {_KINDS[self.type]}") from error
        return self.parse(typed)


_KINDS: dict[type, str] = {str: "a text", int: "a whole number", float: "a number", Path: "a path"}


def parse_window(text: str) -> int | None:
    """Latent frames of a `--window`; `None` for "all", the whole history; `UsageError` if it is neither."""
    if text.lower() == "all":
        return None
    if not text.isdecimal():
        raise UsageError(
            f"--window {text} is not a number of latent frames", hint="use a whole number, or all"
        )
    return int(text)


def spaced_steps(count: int) -> tuple[int, ...]:
    """Nominal steps of a `--steps`, evenly spaced on the 1000-step scale; `UsageError` beyond 1 to 1000."""
    if not 1 <= count <= 1000:
        raise UsageError(f"--steps {count} is not a valid number of denoising steps", hint="use 1 to 1000")
    return tuple(round(1000 - 1000 * index / count) for index in range(count))


_STEPS = "Denoising steps per chunk, evenly spaced [default: 4]."
STEPS = FamilyOption("--steps", "sampler.steps", _STEPS, "N", int, spaced_steps)


def parse_lora(text: str) -> dict[str, object]:
    """The setting of a `--lora`: FILE, or FILE:WEIGHT; a file whose name ends like that is taken first."""
    file, separator, weight = text.rpartition(":")
    if not separator or Path(text).expanduser().is_file():
        file, weight = text, "1"
    try:
        number = float(weight)
    except ValueError as error:
        raise UsageError(
            f"--lora {text}: {weight!r} is not a weight", hint="e.g. --lora style.safetensors:0.8"
        ) from error
    if not file or not isfinite(number):
        raise UsageError(f"--lora {text} is not FILE or FILE:WEIGHT", hint="e.g. --lora style.safetensors")
    return {"file": file, "weight": number}
