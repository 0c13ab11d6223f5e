"""What every test of a client on simulated disks runs on."""

from __future__ import annotations

import pytest

from dmcopy.io import Reactor
from dmcopy.io.simulated import SimulatedBackend


@pytest.fixture
def reactor() -> Reactor:
    reactor = Reactor(SimulatedBackend(7))

    def fail(error: BaseException) -> None:
        raise error

    reactor.on_exception = fail
    return reactor
