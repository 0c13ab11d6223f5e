"""How often what was written is made durable, on a clock that only the disks move."""

from __future__ import annotations

import pytest

from dmcopy.errors import DeadlineError
from dmcopy.io import IoRegion, Op, Reactor
from dmcopy.io.request import Request
from dmcopy.io.simulated import SimulatedBackend, SimulatedDisk
from dmcopy.ranges import RangeSet
from dmcopy.transfer.destination import Destination
from dmcopy.transfer.durability import SHARE, Durability


class Recording(SimulatedBackend):
    """Notes when each flush was submitted."""

    def __init__(self) -> None:
        super().__init__(5)
        self.began: list[float] = []

    def submit(self, request: Request) -> None:
        if request.op == Op.FLUSH:
            self.began.append(self.time())
        super().submit(request)


@pytest.mark.parametrize("interval", [1.0, 1e-6])
def test_checkpoints_take_a_small_share_of_the_time(interval: float) -> None:
    """A disk whose flushes take longer than the interval would do little but flush."""
    backend, ended = Recording(), list[float]()
    dest = Destination(IoRegion(SimulatedDisk(8), 0, 8))

    def saved() -> None:
        ended.append(backend.time())
        dest.wrote(0, 8)

    with Reactor(backend) as reactor:
        durability = Durability(reactor, [dest], saved, lambda *_: None)
        dest.wrote(0, 8)
        durability.start(interval)
        reactor.run_until(lambda: len(ended) == 8, 60, "eight flushes")
        durability.stop()
    for began, end, following in zip(backend.began, ended, backend.began[1:], strict=False):
        assert end > began
        assert following - end == pytest.approx(max(interval, SHARE * (end - began)))


def test_there_are_no_more_rounds_after_the_last_flush() -> None:
    """What comes after it may close the disk."""
    backend, said = Recording(), list[str]()
    dest = Destination(IoRegion(SimulatedDisk(8), 0, 8))
    with Reactor(backend) as reactor:
        durability = Durability(reactor, [dest], lambda: said.append("saved"), lambda *_: None)
        dest.wrote(0, 8)
        durability.start(5.0)
        durability.flush(lambda: said.append("then"))
        reactor.run_until(lambda: "then" in said, 60, "the last flush")
        dest.wrote(0, 8)
        with pytest.raises(DeadlineError):
            reactor.run_until(lambda: False, 60)
    assert (said, len(backend.began)) == (["saved", "then"], 1)


def test_a_last_flush_covers_what_was_written_while_another_was_under_way() -> None:
    backend, ended = Recording(), list[str]()
    dest = Destination(IoRegion(SimulatedDisk(16), 0, 16))
    with Reactor(backend) as reactor:
        durability = Durability(reactor, [dest], lambda: None, lambda *_: None)
        dest.wrote(0, 8)
        durability.start(1.0)
        while not backend.began:
            reactor.step(1)
        dest.wrote(8, 16)
        durability.flush(lambda: ended.append("then"))
        reactor.run_until(lambda: ended, 60, "the last flush")
    assert len(backend.began) == 2
    assert dest.durable == dest.written == RangeSet([(0, 16)])
