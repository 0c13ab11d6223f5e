"""A back end for stacks: devices that map their I/O to others, above those that do it.

A `StackedDevice` has no descriptor; it takes requests itself. Everything that goes through a
reactor with this back end (kcopyd, exception stores, mirror logs) then works on such devices as on
any other, however high they are stacked.

A target may be told to go past the end of a device: by a store that is damaged, or because a device
below has shrunk. Such a request ends with EIO before it gets anywhere, as in the kernel
(bio_check_eod in block/blk-core.c): a file would grow by it.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EIO
from functools import partial
from typing import Any

from dmcopy.io.backend import IoBackend
from dmcopy.io.parts import Fan, FlushFirst
from dmcopy.io.request import CopyIo, Io, ListCopyIo, Request


class StackedDevice:
    """A `dmcopy.io.Device` that maps its I/O to other devices."""

    write_through = False  # the devices below know, which the flush comes to

    # No abc.ABC: its isinstance is ten times as slow, and every request asks.
    def submit(self, request: Io) -> None:
        """Take a request and have its `notify` called on the reactor, never inside of this call."""
        raise NotImplementedError


class StackBackend:
    """`IoBackend` that gives stacked devices their requests, and all others to `below`.

    What a device raises goes to `report`, and its request ends with EIO, by `call_soon`.
    """

    def __init__(
        self,
        below: IoBackend,
        call_soon: Callable[[Callable[[], object]], None],
        report: Callable[[BaseException], object],
    ) -> None:
        self.below = below
        self.name = below.name
        self.time = below.time
        self.poll = below.poll
        self.fileno = below.fileno
        self.close = below.close
        self.pin, self.unpin = below.pin, below.unpin
        self._submit_below = below.submit
        self._call_soon = call_soon
        self._report = report

    def submit(self, request: Request) -> None:
        """Route a request by its device; a copy that touches a stacked one goes in parts."""
        try:
            if isinstance(request, Io):
                device: Any = request.device
                if request.sector + request.count > device.sectors:
                    self._refuse(request)
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
        except BaseException as error:
            self._refuse(request)
            self._report(error)

    def _refuse(self, request: Request) -> None:
        request.error = EIO
        self._call_soon(partial(request.notify, request))  # type: ignore[misc, arg-type]


def _is_plain(copy: CopyIo) -> bool:
    """Whether a copy can go as a whole: to and from plain devices, and past the end of none."""
    if isinstance(copy, ListCopyIo):
        return False
    for device, sector, count in (copy.source, *copy.dests):
        if isinstance(device, StackedDevice) or sector + count > device.sectors:
            return False
    return True
