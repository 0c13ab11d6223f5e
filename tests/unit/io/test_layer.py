"""Disks over other disks, which change their ways."""

from __future__ import annotations

import errno

import pytest

from dmcopy.io import IoRegion, Reactor
from dmcopy.io.layer import Layer
from dmcopy.io.request import Io
from dmcopy.io.simulated import SimulatedBackend, SimulatedDisk
from dmcopy.kcopyd import Client


class Plain(Layer):
    """Changes nothing."""

    def submit(self, request: Io) -> None:
        request.device = self.below
        self._reactor.submit(request)


def test_each_is_a_disk_of_its_own() -> None:
    """A copy between two is none onto itself; I/O goes through them alone."""
    with Reactor(SimulatedBackend(1), stacked=True) as reactor:
        source, target = SimulatedDisk(8, "source"), SimulatedDisk(8, "target")
        source.load(b"x" * 4096)
        one, two = Plain(source, reactor), Plain(target, reactor)
        with Client(1, reactor=reactor) as client:
            assert client.copy(IoRegion(one, 0, 8), [IoRegion(two, 0, 8)]).wait(10)
        assert target.read(0, 8) == b"x" * 4096
        assert len({one.identity, two.identity, Plain(source, reactor).identity}) == 3
        with pytest.raises(OSError, match="Plain has no descriptor") as refused:
            one.fileno()
        assert refused.value.errno == errno.ENOTBLK
        two.zero_out(0, 4)
        two.flush()
        assert target.read(0, 8) == bytes(2048) + b"x" * 2048
