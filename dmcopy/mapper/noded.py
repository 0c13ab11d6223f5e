"""What engines have in common whose devices are opened through their nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmcopy.mapper.base import Mapper

if TYPE_CHECKING:
    from dmcopy.io.reactor import Reactor


class NodedMapper(Mapper):
    """An engine elsewhere: in the kernel or another process. `reactor`: the caller's, if any."""

    def __init__(self, reactor: Reactor | None) -> None:
        self._reactor = reactor
        self._owns_reactor = reactor is None

    @property
    def reactor(self) -> Reactor:
        """Where the I/O of open devices is done, made on the thread that first asks for it."""
        if self._reactor is None:
            from dmcopy.io.reactor import Reactor

            self._reactor = Reactor(stacked=True)
        return self._reactor

    def close(self) -> None:
        if self._owns_reactor and self._reactor is not None:
            self._reactor.close()
            self._reactor = None
