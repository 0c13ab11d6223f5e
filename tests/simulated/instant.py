"""A back end for disks that are looked at after a power cut, where no order is under test."""

from __future__ import annotations

from dmcopy.io.request import CopyIo, Request
from dmcopy.io.simulated import SimulatedBackend, _perform


class InstantBackend(SimulatedBackend):
    """Does requests in the order in which they come, without a delay."""

    name = "instant"

    def __init__(self) -> None:
        super().__init__(0)
        self._done: list[Request] = []

    def submit(self, request: Request) -> None:
        if isinstance(request, CopyIo) or request.preflush:
            super().submit(request)
        else:
            _perform(request, getattr(request.device, "writes", 0))
            self._done.append(request)

    def poll(self, timeout: float | None) -> list[Request]:
        done, self._done = self._done, []
        return done or super().poll(timeout)

    def close(self) -> None:
        self._done.clear()
