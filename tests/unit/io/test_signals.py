"""Signals that a shield holds back: each is heard, whatever the one before it raises."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from types import FrameType

import pytest

from dmcopy.io.signals import Shield

CAUGHT = (signal.SIGUSR1, signal.SIGUSR2)


class HeardError(Exception):
    """What a handler raises."""


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """The signals whose handler was called. The one of SIGUSR2 raises."""
    found: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        del frame
        found.append(number)
        if number == signal.SIGUSR2:
            raise HeardError

    before = {number: signal.signal(number, handler) for number in CAUGHT}
    yield found
    for number, old in before.items():
        signal.signal(number, old)


def test_two_signals_are_both_delivered_though_the_first_raises(heard: list[int]) -> None:
    """A SIGTERM that came beside a Ctrl-C must not be forgotten by what that raises."""
    woken: list[bool] = []
    shield = Shield(lambda: woken.append(True))
    shield.__enter__()
    for number in CAUGHT:
        signal.raise_signal(number)
    assert heard == []
    assert woken
    with pytest.raises(HeardError):
        shield.__exit__()
    assert sorted(heard) == sorted(CAUGHT)
    assert not shield.noted


def test_one_delivery_is_all_that_is_noted(heard: list[int]) -> None:
    """A reactor delivers once a step: what is left would wait for a step that may not come."""
    shield = Shield(lambda: None)
    with shield:
        for number in CAUGHT:
            signal.raise_signal(number)
        with pytest.raises(HeardError):
            shield.deliver()
        assert sorted(heard) == sorted(CAUGHT)


def test_a_signal_that_comes_again_is_as_old_as_the_first(heard: list[int]) -> None:
    """Or who presses Ctrl-C again and again at a callback that hangs would never be heard."""
    woken: list[bool] = []
    shield = Shield(lambda: woken.append(True))
    with shield:
        signal.raise_signal(signal.SIGUSR1)
        first = dict(shield.noted)
        signal.raise_signal(signal.SIGUSR1)
        assert (shield.noted, woken) == (first, [True])
    assert heard == [signal.SIGUSR1]
