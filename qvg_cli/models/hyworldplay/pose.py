"""The pose grammar: `w-8,right-4` says how the camera moves, move by move. No torch.

A number counts latent frames. Every mistake is found here, before anything is loaded, with its place.

Source: Tencent-Hunyuan/HY-WorldPlay, the pose strings of `hyvideo/generate.py`. It drops fractions and moves
of no frames without a word; here they are noted.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import groupby

from qvg_cli.errors import UsageError

MOVES = ("w", "s", "a", "d", "up", "down", "left", "right")
"""Forward, back, left and right; then turns."""
MAX_POSES = 10_000
"""Latent frames of the longest path, 41 minutes at 16 frames a second; more is a slip of the finger."""
_FORM = f"a move, a hyphen and latent frames, such as w-8,right-4; moves: {', '.join(MOVES)}"
_NUMBER = re.compile(r"[0-9]+(\.[0-9]*)?")


@dataclass(frozen=True)
class Command:
    """One move, the same in each of its latent frames."""

    move: str
    frames: int


@dataclass(frozen=True)
class Pose:
    """A whole pose text, and what of it does not come true as it was written, for the user."""

    commands: tuple[Command, ...]
    notes: tuple[str, ...] = ()

    @property
    def num_poses(self) -> int:
        """Camera poses: one for the start, and one for each latent frame of each move."""
        return 1 + sum(command.frames for command in self.commands)


def parse_pose(text: str) -> Pose:
    """Read moves with their lengths, such as `w-8, right-4`; a `UsageError` names the wrong character."""
    commands: list[Command] = []
    notes: list[str] = []
    start = 0
    for part in text.split(","):
        if part.strip():
            command, note = _parse_command(text, part, start)
            commands.append(command)
            notes += [note] if note else []
        start += len(part) + 1
    if not commands:
        raise UsageError(f"the pose {text!r} holds no move", hint=_FORM)
    pose = Pose(tuple(commands), tuple(notes))
    if (count := pose.num_poses - 1) >= MAX_POSES:
        raise UsageError(f"the pose {text!r} has {count} latent frames, the longest path has {MAX_POSES - 1}")
    return pose


def take_frames(commands: Sequence[Command], num_frames: int) -> tuple[Command, ...]:
    """The moves of the first `num_frames` latent frames."""
    taken: list[Command] = []
    for command in commands:
        frames = min(command.frames, num_frames - sum(before.frames for before in taken))
        if frames > 0:
            taken.append(Command(command.move, frames))
    return tuple(taken)


def format_pose(commands: Sequence[Command]) -> str:
    """The text of some moves, equal ones beside each other as one."""
    moves = groupby((command for command in commands if command.frames), key=lambda command: command.move)
    return ",".join(f"{move}-{sum(command.frames for command in same)}" for move, same in moves)


def _parse_command(text: str, part: str, start: int) -> tuple[Command, str | None]:
    """One command, which begins at `text[start]`, and what is to be said about it."""
    written = part.strip()
    start += part.index(written)
    move, hyphen, number = written.partition("-")
    if not hyphen:
        raise _mistake(text, start, f"{written!r} has no length")
    if move.strip() not in MOVES:
        matches = get_close_matches(move.strip().lower(), MOVES, n=1, cutoff=0.5)
        near = f"nearest: {matches[0]}; " if matches else ""
        raise _mistake(text, start, f"unknown move {move.strip()!r}", near)
    start += len(move) + 1 + len(number) - len(number.lstrip())
    number = number.strip()
    if not number:
        raise _mistake(text, start, f"{written!r} has no length")
    if not _NUMBER.fullmatch(number):
        raise _mistake(text, start, f"{number!r} is not a number of latent frames")
    frames = int(number.partition(".")[0][:9])
    note = None
    if frames == 0:
        note = f"{written!r} in the pose moves nothing: it lasts less than a latent frame"
    elif float(number) != frames:
        note = f"{written!r} in the pose is taken as {frames} whole latent frames"
    return Command(move.strip(), frames), note


def _mistake(text: str, position: int, what: str, near: str = "") -> UsageError:
    return UsageError(f"pose {text!r}, character {position + 1}: {what}", hint=near + _FORM)
