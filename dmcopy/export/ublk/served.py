"""A ublk device that is made, served and noted in the ledger, until it is closed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from dmcopy.errors import BusyError, DeadlineError, DeviceError, MissingError, UsageError
from dmcopy.export.aside import aside
from dmcopy.export.ublk.queue import Queue
from dmcopy.export.ublk.requests import DEPTH, MAX_BYTES, UblkRequests
from dmcopy.export.users import check_unused
from dmcopy.io import ublk
from dmcopy.io.reactor import Reactor
from dmcopy.io.region import Device
from dmcopy.ledger import Ledger
from dmcopy.mapper.base import note_failure
from dmcopy.units import PAGE_SIZE

_SECONDS: Final = ublk.SECONDS + 5
_CLOSE_SECONDS: Final = 10.0
_T = TypeVar("_T")


class UblkDevice:
    """`device` as the block device `path`, until `close`. It is in `ledger`, known by its `mark`.

    `recoverable`: where this process is killed, all that is asked of it waits for the next one,
    which takes it over by `left`, its mark; otherwise all fails. Raises UsageError, DeviceError.
    """

    def __init__(
        self,
        reactor: Reactor,
        device: Device,
        *,
        ledger: Ledger,
        recoverable: bool = False,
        left: str = "",
        control: ublk.UblkControl | None = None,
    ) -> None:
        if device.logical_block_size > PAGE_SIZE:
            raise UsageError(
                f"{device.path} has blocks of {device.logical_block_size} bytes, and those of a "
                f"ublk device can have {PAGE_SIZE} at most: serve it by another front end"
            )
        self._reactor = reactor
        self._device = device
        self._ledger = ledger
        self._recoverable = recoverable
        self._control = control or ublk.UblkControl()
        self._number: int | None = None
        self._requests: UblkRequests | None = None
        self._queue: Queue | None = None
        self.mark = left or ublk.new_mark()
        self.path = device.path
        self._entry = ledger.add("ublk", "", uuid=self.mark)
        try:
            found = self._aside(partial(self._control.find, left), "the others") if left else None
            if found is None:
                self._make()
            else:
                self._take_over(found.number)
        except BaseException as error:
            note_failure(error, partial(self.close, force=True))
            raise

    def close(self, *, force: bool = False) -> None:
        """Remove the device. May be called again.

        Raises BusyError naming who uses it; then it is still served. `force` takes it from them:
        all that they do with it from then on fails.
        """
        if self._number is not None:
            if not force:
                self.check_unused()
            try:
                self._remove(wait=not force)
            except MissingError:  # no thread to ask it of while this one answers: so it does not
                if not force:
                    raise
                self._end_queue()
                self._control.delete(self._number, wait=False)
                self._number = None
        self._ledger.cancel(self._entry)

    def let_go(self) -> None:
        """Stop serving it, and leave it in place: its requests wait for the next server."""
        self._end_queue()
        self._number = None

    def check_unused(self) -> None:
        """Raise BusyError naming what is mounted or open."""
        self._aside(partial(check_unused, self.path), f"who uses {self.path}")

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
            self.check_unused()
            self._remove(wait=True)
            self._make(number)

    def _make(self, number: int | None = None) -> None:
        add = partial(
            self._control.add,
            self.mark,
            depth=DEPTH,
            max_bytes=MAX_BYTES,
            recoverable=self._recoverable,
            number=number,
        )
        self._note(self._call(add, "make a ublk device of it").number)
        describe = partial(
            self._control.describe,
            sectors=self._device.sectors,
            block_size=self._device.logical_block_size,
            max_bytes=MAX_BYTES,
            read_only=self._device.read_only,
        )
        self._do(describe, "say what it is")
        self._serve()
        self._do(self._control.start, "start it")
        # One tag stays the driver's, by which it hears of this process's death immediately; where
        # all are taken, it looks after 30 s. (ublk_timeout; measured on 6.12, 29 to 31 s.)
        with contextlib.suppress(OSError):
            queue = Path("/sys/block", Path(self.path).name, "queue/nr_requests")
            self._aside(lambda: queue.write_text(str(DEPTH - 1)), str(queue))

    def _take_over(self, number: int) -> None:
        """Serve what a killed server has left; where that fails it is left as it was."""
        self._note(number)
        try:
            self._do(self._control.begin_recovery, "take it over")
            self._serve()
            self._do(self._control.end_recovery, "continue with it")
        except BaseException:
            self.let_go()
            raise

    def _note(self, number: int) -> None:
        self._number = number
        self.path = ublk.node(number)
        early = self._entry
        self._entry = self._ledger.add("ublk", self.path, uuid=self.mark)
        self._ledger.cancel(early)

    def _serve(self) -> None:
        assert self._number is not None
        requests = self._requests = UblkRequests(self._reactor, self._device)
        queue = Queue(self._reactor, self._number, requests.addresses, requests.arrived)
        self._queue = requests.queue = queue

    def _remove(self, *, wait: bool) -> None:
        self._do(self._control.stop, "stop it")
        queue = self._queue
        if queue is not None:
            with contextlib.suppress(DeadlineError):
                ended = f"the requests of {self.path} to end"
                self._reactor.run_until(lambda: not queue.live, _CLOSE_SECONDS, ended)
        self._end_queue()
        # Where users were cut off, the last of them lets it go.
        self._do(partial(self._control.delete, wait=wait), "remove it")
        self._number = None

    def _end_queue(self) -> None:
        queue, self._queue = self._queue, None
        requests, self._requests = self._requests, None
        if queue is not None:
            queue.close()
        if requests is not None and not requests.under_way:
            requests.release()  # otherwise it keeps its memory

    def _do(self, call: Callable[[int], _T], action: str) -> _T:
        """Have the driver do something about the device. Raises DeviceError."""
        assert self._number is not None
        return self._call(partial(call, self._number), action)

    def _call(self, call: Callable[[], _T], action: str) -> _T:
        try:
            return self._aside(call, f"{self.path}: to {action}")
        except OSError as error:
            raise DeviceError(self.path, action, error.errno or 0) from error

    def _aside(self, call: Callable[[], _T], waiting_for: str) -> _T:
        return aside(self._reactor, call, waiting_for, timeout=_SECONDS)
