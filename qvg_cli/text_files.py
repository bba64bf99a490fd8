"""Text files as people's editors write them, and characters that no text can hold. No torch."""

import codecs
import unicodedata
from pathlib import Path

from qvg_cli.errors import UsageError

_WHITE_CONTROLS = "\t\n\v\f\r\x85"
"""Control characters that are white space by Unicode's own table."""
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(path: Path, what: str = "") -> str:
    """The UTF-8 text of a file, which messages call `what`, without a byte-order mark at its begin."""
    named = f"{what} {path}".strip()
    try:
        return decode_text(path.read_bytes(), f"cannot read {named}").removeprefix("\ufeff")
    except (OSError, ValueError) as error:
        # ValueError: a name with a NUL in it.
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"cannot read {named}: {reason}") from error


def decode_text(content: bytes, place: str) -> str:
    """`content` as UTF-8 text; else a `UsageError` that begins with `place`."""
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        looks = "it looks like UTF-16; " if content.startswith(_UTF_16) else ""
        raise UsageError(f"{place}: it is not UTF-8 text", hint=f"{looks}save it as UTF-8") from error


def find_unwritable(text: str) -> str | None:
    """The first lone surrogate of `text`, and where it is, in words; `None` where UTF-8 holds all of it."""
    return _describe_first(text, "Cs")


def find_refused(text: str) -> str | None:
    """The first control character or lone surrogate of `text`, and where it is, in words; `None` without one.

    Everything else is text: joiners, marks of direction, tags of flags, characters newer than this Python.
    """
    return _describe_first(text, "Cs", "Cc")


def _describe_first(text: str, *categories: str) -> str | None:
    for number, character in enumerate(text, start=1):
        category = unicodedata.category(character)
        if category in categories and character not in _WHITE_CONTROLS:
            return f"character {number} is {name_character(character)}"
    return None


def name_character(character: str) -> str:
    """A character that cannot be shown, by its code point and kind."""
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        # Python's stand-in for a byte of an argument or a file name that is not UTF-8.
        return f"the byte 0x{code - 0xDC00:02X}, which is not UTF-8"
    kinds = {"Cs": ", half of a character (a lone surrogate)", "Cc": ", a control character"}
    return f"U+{code:04X}{kinds.get(unicodedata.category(character), '')}"
