"""Ctrl-C waits for the end of a block, and is not lost."""

import os
import signal
import threading

import pytest

from qvg_cli.errors import shown_error
from qvg_cli.interrupts import Stopped, choose_moments, hold_interrupts, stop_if_asked, stop_on_signals


def interrupt_inside(done):
    with hold_interrupts():
        os.kill(os.getpid(), signal.SIGINT)
        done.append("block")


def test_an_interrupt_is_raised_after_the_block():
    done = []
    with pytest.raises(KeyboardInterrupt):
        interrupt_inside(done)
    assert done == ["block"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_error_of_a_block_wins():
    def fail():
        with hold_interrupts():
            os.kill(os.getpid(), signal.SIGINT)
            raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        fail()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_may_use_it():
    done = []

    def work():
        with hold_interrupts():
            done.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [1]


@pytest.fixture
def signals():
    with stop_on_signals():
        yield
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_stops_at_once_where_nothing_is_in_hand(signals, number):
    with pytest.raises(Stopped, match=number.name):
        os.kill(os.getpid(), number)
    stop_if_asked()


def test_sigterm_stops_at_a_step_and_sigusr1_after_the_chunk(signals):
    with choose_moments():
        os.kill(os.getpid(), signal.SIGUSR1)
        stop_if_asked(in_chunk=True)
        with pytest.raises(Stopped, match="SIGUSR1"):
            stop_if_asked()
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
        with pytest.raises(Stopped, match="SIGTERM"):
            stop_if_asked(in_chunk=True)


def test_what_is_held_ends_complete_and_the_signal_waits(signals):
    done = []
    with hold_interrupts():
        os.kill(os.getpid(), signal.SIGTERM)
        done.append("block")
    done.append("after")
    with pytest.raises(Stopped):
        stop_if_asked()
    assert done == ["block", "after"]


def test_a_signal_that_nobody_followed_is_forgotten_with_its_command():
    with stop_on_signals(), choose_moments():
        os.kill(os.getpid(), signal.SIGTERM)
    with stop_on_signals():
        stop_if_asked()


def test_the_exit_codes_tell_a_person_from_a_scheduler():
    assert shown_error(KeyboardInterrupt()).exit_code == 130
    shown = shown_error(Stopped("SIGTERM"))
    assert (shown.exit_code, str(shown)) == (75, "stopped by SIGTERM")
