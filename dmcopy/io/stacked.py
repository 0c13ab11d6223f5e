"""A back end for stacks: devices that map their I/O to others, above those that do it.

A `StackedDevice` has no descriptor; it takes requests itself. Everything that goes through a
reactor with this back end (kcopyd, exception stores, mirror logs) then works on such devices as on
any other, however high they are stacked.

A target may be told to go past the end of a device: by a store that is damaged, or because a device
below has shrunk. Such a request ends with EIO before it gets anywhere, as in the kernel
(bio_check_eod in block/blk-core.c): a file would grow by it.
"""

from __future__ import annotations

from errno import EIO
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
        self.fileno = below.fileno
        self.close = below.close
        self._submit_below = below.submit
        self._poll_below = below.poll
        self._refused: list[Request] = []

    def submit(self, request: Request) -> None:
        """Route a request by its device; a copy that touches a stacked one goes in parts."""
        if isinstance(request, Io):
            device: Any = request.device
            if request.sector + request.count > device.sectors:
                request.error = EIO
                self._refused.append(request)
            elif not isinstance(device, StackedDevice):
                self._submit_below(request)
            elif request.preflush:
                FlushFirst(request, self.submit).start()
            else:
                device.submit(request)
        elif _is_plain(request):
            self._submit_below(request)
        else:
            Fan(request, self.submit).start()

    def poll(self, timeout: float | None) -> list[Request]:
        """See `IoBackend.poll`."""
        if not self._refused:
            return self._poll_below(timeout)
        refused, self._refused = self._refused, []
        return refused + self._poll_below(0)


def _is_plain(copy: CopyIo) -> bool:
    """Whether a copy can go as a whole: to and from plain devices, and past the end of none."""
    if isinstance(copy, ListCopyIo):
        return False
    for device, sector, count in (copy.source, *copy.dests):
        if isinstance(device, StackedDevice) or sector + count > device.sectors:
            return False
    return True
