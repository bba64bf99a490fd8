"""Ctrl-C waits for the end of a block, and is not lost."""

import os
import signal
import threading

import pytest

from qvg_cli.interrupts import hold_interrupts


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
