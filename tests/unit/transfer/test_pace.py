"""A limit on how much is begun in a second."""

from __future__ import annotations

import pytest

from dmcopy.io import Reactor
from dmcopy.io.simulated import SimulatedBackend
from dmcopy.transfer.pace import Pace


def test_time_that_was_not_used_is_made_up_for_only_a_little() -> None:
    """A source that hung for a minute must not be followed by a burst of a minute's bytes."""
    reactor, resumed = Reactor(SimulatedBackend()), list[float]()
    pace = Pace(reactor, 100 << 9, lambda: resumed.append(reactor.time()))
    assert pace.may_begin()
    pace.began(100)
    assert not pace.may_begin()
    assert not pace.may_begin()
    reactor.step(60)
    assert resumed == pytest.approx([1.0 - 0.0])
    reactor.step(60)
    now = reactor.time()
    assert pace.may_begin()
    pace.began(100)
    assert not pace.may_begin()
    reactor.step(60)
    assert resumed[1:] == pytest.approx([now + 0.9])


def test_without_a_limit_nothing_waits() -> None:
    pace = Pace(Reactor(SimulatedBackend()), 0, lambda: None)
    pace.began(1 << 40)
    assert pace.may_begin()
