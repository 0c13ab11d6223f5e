"""How often what was written is made durable, on a clock that only the disks move."""

from __future__ import annotations

import pytest

from dmcopy.io import IoRegion, Op, Reactor
from dmcopy.io.request import Request
from dmcopy.io.simulated import SimulatedBackend, SimulatedDisk
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
