"""A ublk device that is made, served and noted in the ledger, until it is closed."""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path
from typing import ClassVar, Final

from dmcopy.errors import BusyError, DeadlineError
from dmcopy.export.lasting import SECONDS, LastingDevice
from dmcopy.export.ublk.queue import Queue
from dmcopy.export.ublk.requests import DEPTH, MAX_BYTES, UblkRequests
from dmcopy.io import ublk
from dmcopy.ledger import Kind
from dmcopy.mapper.waiting import drive
from dmcopy.thread import Thread

_CLOSE_SECONDS: Final = 10.0


class UblkDevice(LastingDevice):
    """A device as one of the ublk driver's. See `LastingDevice`."""

    kind: ClassVar[Kind] = "ublk"
    _requests: UblkRequests | None = None
    _queue: Queue | None = None

    @property
    def _control(self) -> ublk.UblkControl:
        return ublk.UblkControl()

    def resize(self) -> None:
        """Give it the size of the device.

        A driver before Linux 6.16 cannot change that: the device is removed and made again. One
        that is in use keeps its size then.
        """
        if self._aside(lambda: self._control.can_resize, "what the ublk driver can do"):
            call = partial(self._control.resize, sectors=self._device.sectors)
            self._do(call, "give it another size")
            return
        number = self._number
        with contextlib.suppress(BusyError):
            drive(self._reactor, self._make_anew(number), SECONDS)

    async def _make_anew(self, number: int | None) -> None:
        await self.check_unused()
        await self._remove(wait=True)
        await self._make(number)

    async def _make(self, number: int | None = None) -> None:
        add = partial(
            self._control.add,
            self.mark,
            depth=DEPTH,
            max_bytes=MAX_BYTES,
            recoverable=self._recoverable,
            number=number,
        )
        self._note((await self._calling(add, "make a ublk device of it")).number)
        describe = partial(
            self._control.describe,
            sectors=self._device.sectors,
            block_size=self._device.logical_block_size,
            max_bytes=MAX_BYTES,
            read_only=self._device.read_only,
        )
        await self._doing(describe, "say what it is")
        self._serve()
        await self._doing(self._control.start, "start it")
        _leave_a_tag(self.path)

    def _new_mark(self) -> str:
        return ublk.new_mark()

    def _find(self, mark: str) -> int | None:
        found = self._control.find(mark)
        return found.number if found else None

    def _node(self, number: int) -> str:
        return ublk.node(number)

    async def _continue(self) -> None:
        await self._doing(self._control.begin_recovery, "take it over")
        self._serve()
        await self._doing(self._control.end_recovery, "continue with it")

    def _serve(self) -> None:
        assert self._number is not None
        requests = self._requests = UblkRequests(self._reactor, self._device)
        queue = Queue(self._reactor, self._number, requests.addresses, requests.arrived)
        self._queue = requests.queue = queue

    async def _remove(self, *, wait: bool) -> None:
        await self._doing(self._control.stop, "stop it")
        queue = self._queue
        if queue is not None:
            with contextlib.suppress(DeadlineError):
                ended = f"the requests of {self.path} to end"
                self._reactor.run_until(lambda: not queue.live, _CLOSE_SECONDS, ended)
        self._end()
        # Where users were cut off, the last of them lets it go.
        await self._doing(partial(self._control.delete, wait=wait), "remove it")
        self._number = None

    def _cut_off(self, number: int) -> None:
        self._control.delete(number, wait=False)

    def _end(self) -> None:
        queue, self._queue = self._queue, None
        requests, self._requests = self._requests, None
        if queue is not None:
            queue.close()
        if requests is not None and not requests.under_way:
            requests.release()  # otherwise it keeps its memory


def _leave_a_tag(path: str) -> None:
    """Have one tag stay the driver's, by which it hears of this process's death immediately.

    Where all are taken, it looks after 30 s. (ublk_timeout; measured on 6.12, 29 to 31 s.) It is
    not waited for: the kernel freezes the queue, in a fifth of the time that all else takes (6.12).
    """
    with contextlib.ExitStack() as exits, contextlib.suppress(OSError, RuntimeError, MemoryError):
        place = Path("/sys/block", Path(path).name, "queue/nr_requests")
        queue = exits.enter_context(place.open("wb", buffering=0))

        def write() -> None:
            with queue, contextlib.suppress(OSError):
                queue.write(b"%d" % (DEPTH - 1))

        Thread(write, "dmcopy-aside").start()
        exits.pop_all()
