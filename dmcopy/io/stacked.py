"""A back end for stacks: devices that map their I/O to others, above those that do it.

A `StackedDevice` has no descriptor; it takes requests itself. Everything that goes through a
reactor with this back end (kcopyd, exception stores, mirror logs) then works on such devices as on
any other, however high they are stacked.
"""

from __future__ import annotations

from typing import Any

from dmcopy.io.backend import Fan, FlushFirst, IoBackend
from dmcopy.io.request import CopyIo, Io, ListCopyIo, Request


class StackedDevice:
    """A `dmcopy.io.Device` that maps its I/O to other devices."""

    # No abc.ABC: its isinstance is ten times as slow, and every request asks.
    def submit(self, request: Io) -> None:
        """Take a request and have its `notify` called on the reactor, never inside of this call."""
        raise NotImplementedError


class StackBackend:
    """`IoBackend` that gives stacked devices their requests, and all others to `below`."""

    def __init__(self, below: IoBackend) -> None:
        self.below = below
        self.name = below.name
        self.time = below.time
        self.poll = below.poll
        self.fileno = below.fileno
        self.close = below.close
        self._submit_below = below.submit

    def submit(self, request: Request) -> None:
        """Route a request by its device; a copy that touches a stacked one goes in parts."""
        if isinstance(request, Io):
            device: Any = request.device
            if not isinstance(device, StackedDevice):
                self._submit_below(request)
            elif request.preflush:
                FlushFirst(request, self.submit).start()
            else:
                device.submit(request)
        elif _is_plain(request):
            self._submit_below(request)
        else:
            Fan(request, self.submit).start()


def _is_plain(copy: CopyIo) -> bool:
    if isinstance(copy, ListCopyIo):
        return False
    for device, _, _ in copy.dests:
        if isinstance(device, StackedDevice):
            return False
    return not isinstance(copy.source[0], StackedDevice)
