"""Seats, back-pressure, messages and addresses: the rules of `qvg play` without a server."""

import asyncio

import pytest

from qvg_cli.errors import UsageError
from qvg_cli.planning.chunks import ChunkPlan
from qvg_cli.play.access import is_loopback, page_address
from qvg_cli.play.messages import Hold, World, read_message
from qvg_cli.play.player import recalled
from qvg_cli.play.viewers import HELD_SECONDS, IN_FLIGHT, Seats, Viewer


def test_the_first_to_come_plays_and_the_seat_waits_a_minute():
    now = [0.0]
    seats = Seats(lambda: now[0])
    player, other = seats.enter(None), seats.enter("")
    assert seats.is_player(player)
    assert not seats.is_player(other)
    seats.leave(player)
    now[0] = HELD_SECONDS - 1
    assert not seats.is_free
    seats.sit(other)
    assert not seats.is_player(other)
    assert seats.is_player(seats.enter(player))
    seats.leave(player)
    now[0] += HELD_SECONDS
    assert seats.is_free
    seats.sit(other)
    assert seats.is_player(other)
    assert not seats.is_player(seats.enter(player))


def test_a_slow_browser_is_sent_no_more_than_it_can_show():
    async def sent(viewer):
        found = []
        while True:
            try:
                found.append(await asyncio.wait_for(viewer.next(), 0.01))
            except TimeoutError:
                return found

    async def run():
        viewer = Viewer("ticket")
        for number in range(1, 2 * IN_FLIGHT):
            viewer.add(number, b"jpeg")
        assert len(await sent(viewer)) == IN_FLIGHT
        viewer.tell({"type": "state"})
        assert await sent(viewer) == [{"type": "state"}]
        viewer.has_shown(IN_FLIGHT - 4)
        assert len(await sent(viewer)) == IN_FLIGHT - 4
        # It says that it has shown what it was never sent.
        viewer.has_shown(10**6)
        viewer.add(2 * IN_FLIGHT, b"jpeg")
        assert len(await sent(viewer)) == 4
        for number in range(1000, 2000):
            viewer.add(number, b"jpeg")
        assert len(viewer._frames) < 200
        assert viewer._frames[-1][0] == 1999

    asyncio.run(run())


def test_messages_are_read_field_by_field():
    assert read_message('{"type": "hold", "keys": ["w", "up"]}') == Hold(type="hold", keys=("w", "up"))
    assert read_message('{"type": "world", "seed": 3}') == World(type="world", seed=3)
    with pytest.raises(UsageError, match="keys"):
        read_message('{"type": "hold"}')
    with pytest.raises(UsageError, match="not understood"):
        read_message('{"type": "world", "seed": 3, "more": 1}')


@pytest.mark.parametrize(
    ("host", "is_own"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False)],
)
def test_which_addresses_are_this_machine_alone(host, is_own):
    assert is_loopback(host) == is_own


def test_the_address_of_the_page():
    assert page_address("::1", 8000, None) == "http://[::1]:8000/"
    assert page_address("10.0.0.2", 80, "abc") == "http://10.0.0.2:80/?key=abc"


def test_recalled_frames_are_those_before_the_gap():
    assert recalled(ChunkPlan(4, (16, 17, 18, 19), reads=(0, 1, 2, 3, 12, 13, 14, 15))) == (0, 1, 2, 3)
    assert recalled(ChunkPlan(1, (4, 5, 6, 7), reads=(0, 1, 2, 3))) == ()
