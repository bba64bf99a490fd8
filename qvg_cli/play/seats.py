"""Who plays and who watches: one player, whose seat waits for a minute when the connection is lost."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

HELD_SECONDS = 60.0
"""How long the seat of a player who is gone stays theirs."""


class Seats:
    """The one seat, by the tickets of the browsers."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._player: str | None = None
        self._left_at: float | None = None

    @property
    def is_free(self) -> bool:
        """Whether anyone may sit down."""
        if self._player is None:
            return True
        return self._left_at is not None and self._clock() - self._left_at >= HELD_SECONDS

    def enter(self, ticket: str | None) -> str:
        """A browser comes, perhaps with the ticket that it was given before; its ticket now.

        The first to come plays, and so does the player who comes back in time.
        """
        if ticket is None or not ticket:
            ticket = secrets.token_urlsafe(16)
        self.sit(ticket)
        return ticket

    def sit(self, ticket: str) -> bool:
        """Take the seat if it is free or one's own; whether it is theirs now."""
        if self.is_free or ticket == self._player:
            self._player, self._left_at = ticket, None
        return self.is_player(ticket)

    def leave(self, ticket: str) -> None:
        if ticket == self._player and self._left_at is None:
            self._left_at = self._clock()

    def is_player(self, ticket: str) -> bool:
        return ticket == self._player
