"""An option of the command line that one family adds, declared once: its flag, its setting, its help."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
        needs: Another setting and the value without which the option has no effect, and is refused.
        not_in: Commands that have not got it, since it would have no effect there.
    """

    flag: str
    setting: str
    help: str
    metavar: str
    type: type[str] | type[int] | type[float] | type[Path] = str
    parse: Callable[[Any], object] = lambda value: value
    needs: tuple[str, object] | None = None
    not_in: tuple[str, ...] = ()

    def read(self, value: object) -> object:
        """The setting's value; from Python, a number may be given where the command line has its text.

        Raises:
            UsageError: It is none.
        """
        try:
            typed = self.type(value)  # type: ignore[arg-type, call-overload]
        except (TypeError, ValueError) as error:
            raise UsageError(f"{self.flag} {value} is not {_KINDS[self.type]}") from error
        return self.parse(typed)


_KINDS: dict[type, str] = {str: "a text", int: "a whole number", float: "a number", Path: "a path"}


def parse_window(text: str) -> int | None:
    """Latent frames of a `--window`; `None` for "all", the whole history.

    Raises:
        UsageError: It is neither.
    """
    if text.lower() == "all":
        return None
    if not text.isdecimal():
        raise UsageError(f"--window {text} is not a number of latent frames", hint="or all")
    return int(text)


def spaced_steps(count: int) -> tuple[int, ...]:
    """Nominal steps of a `--steps`, evenly spaced on the 1000-step scale.

    Raises:
        UsageError: So many do not fit.
    """
    if not 1 <= count <= 1000:
        raise UsageError(f"--steps {count} is not a number of denoising steps", hint="give 1 to 1000")
    return tuple(round(1000 - 1000 * index / count) for index in range(count))
