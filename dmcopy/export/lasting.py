"""Block devices of drivers that keep them where their server is killed: for the next one.

Each is in the ledger by its mark, a word that its driver keeps and shows, so that it is known from
others of its number.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from functools import partial
from typing import ClassVar, Final, TypeVar

from dmcopy.errors import DeviceError, MissingError, UsageError
from dmcopy.export.aside import aside, beside
from dmcopy.export.base import FrontEnd, Place, close_each
from dmcopy.export.users import check_unused
from dmcopy.io.reactor import Reactor
from dmcopy.io.region import Device
from dmcopy.ledger import Kind, Ledger
from dmcopy.mapper.base import note_failure
from dmcopy.mapper.waiting import drive
from dmcopy.units import PAGE_SIZE

SECONDS: Final = 65.0
"""How long a driver may take to do something."""
_T = TypeVar("_T")


class LastingDevice(abc.ABC):
    """`device` as the block device `path`, until `close`; in `ledger` it is known by its `mark`.

    `recoverable`: where this process is killed, all that is asked of it waits for the next one,
    which takes it over by its mark; otherwise all fails. `begin` makes it. Raises UsageError.
    """

    kind: ClassVar[Kind]
    """What the ledger and --via call the driver."""

    def __init__(
        self,
        reactor: Reactor,
        device: Device,
        *,
        ledger: Ledger,
        recoverable: bool = False,
    ) -> None:
        if device.logical_block_size > PAGE_SIZE:
            raise UsageError(
                f"{device.path} has blocks of {device.logical_block_size} bytes, and those of "
                f"{self.kind} devices can have {PAGE_SIZE} at most: serve it by another front end"
            )
        self._reactor = reactor
        self._device = device
        self._ledger = ledger
        self._recoverable = recoverable
        self._number: int | None = None
        self._entry = ""
        self.mark = ""
        self.path = device.path

    async def begin(self, left: str = "") -> None:
        """Make the device, or take over the one that carries the mark `left`, if there is one.

        As a change, see `mapper.waiting`: what the driver waits for may be slow, as to read its
        partition table. Raises DeviceError.
        """
        self.mark = left or self._new_mark()
        self._entry = self._ledger.add(self.kind, "", uuid=self.mark)
        try:
            number = await self._calling(partial(self._find, left), "find it") if left else None
            if number is None:
                await self._make()
            else:
                await self._take_over(number)
        except BaseException as error:
            note_failure(error, partial(self.close, force=True))
            raise

    def close(self, *, force: bool = False) -> None:
        """Remove the device, as often as you like.

        Raises BusyError naming who uses it; then it is still served. `force` takes it from them:
        all that they do with it from then on fails.
        """
        drive(self._reactor, self.closing(force=force), SECONDS)

    async def closing(self, *, force: bool = False) -> None:
        """Do the same as `close`, as a change."""
        if self._number is not None:
            if not force:
                await self.check_unused()
            try:
                await self._remove(wait=not force)
            except MissingError:  # no thread to ask for it while this one answers: so it does not
                if not force:
                    raise
                self._end()
                self._cut_off(self._number)
                self._number = None
        self._ledger.cancel(self._entry)

    def let_go(self) -> None:
        """Serve it no longer, and let it be: what is asked of it waits for the next server."""
        self._end()
        self._number = None

    async def check_unused(self) -> None:
        """Raise BusyError naming what is mounted or open."""
        await beside(self._reactor, partial(check_unused, self.path), f"who uses {self.path}")

    @abc.abstractmethod
    def resize(self) -> None:
        """Give it the size of the device, as far as the driver can."""

    @abc.abstractmethod
    def _new_mark(self) -> str:
        """Return a mark that no device has."""

    @abc.abstractmethod
    def _find(self, mark: str) -> int | None:
        """Return the number of the device of a mark. Called aside."""

    @abc.abstractmethod
    def _node(self, number: int) -> str:
        """Return a device's node."""

    @abc.abstractmethod
    async def _make(self) -> None:
        """Make one, `_note` its number, and serve it."""

    @abc.abstractmethod
    async def _continue(self) -> None:
        """Serve the one that another server had."""

    @abc.abstractmethod
    async def _remove(self, *, wait: bool) -> None:
        """Remove it, and serve it no longer. `wait` until it is closed everywhere."""

    @abc.abstractmethod
    def _cut_off(self, number: int) -> None:
        """Remove it when it is served no longer, on this thread. Raises OSError."""

    @abc.abstractmethod
    def _end(self) -> None:
        """Serve it no longer."""

    async def _take_over(self, number: int) -> None:
        """Serve what a killed server has left; where that fails it is left as it was."""
        self._note(number)
        try:
            await self._continue()
        except BaseException:
            self.let_go()
            raise

    def _note(self, number: int) -> None:
        self._number = number
        self.path = self._node(number)
        early = self._entry
        self._entry = self._ledger.add(self.kind, self.path, uuid=self.mark)
        self._ledger.cancel(early)

    def _do(self, call: Callable[[int], _T], action: str) -> _T:
        """Have the driver do something about the device. Raises DeviceError."""
        return drive(self._reactor, self._doing(call, action), SECONDS)

    async def _doing(self, call: Callable[[int], _T], action: str) -> _T:
        """Do the same as `_do`, as a change."""
        assert self._number is not None
        return await self._calling(partial(call, self._number), action)

    async def _calling(self, call: Callable[[], _T], action: str) -> _T:
        try:
            return await beside(self._reactor, call, f"{self.path}: to {action}")
        except OSError as error:
            raise DeviceError(self.path, action, error.errno or 0) from error

    def _aside(self, call: Callable[[], _T], waiting_for: str) -> _T:
        return aside(self._reactor, call, waiting_for, timeout=SECONDS)


class LastingDevices(FrontEnd):
    """Serves devices as such block devices. They are in `ledger`, by default the user's.

    `recoverable`: see `LastingDevice`; one is known to the next server by its `mark`.
    """

    takes: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        reactor: Reactor,
        place: Place = Place(),  # noqa: B008
        *,
        ledger: Ledger | None = None,
        recoverable: bool = False,
    ) -> None:
        super().__init__(reactor, place)
        self._ledger = ledger or Ledger()
        self._recoverable = recoverable
        self._devices: dict[str, LastingDevice] = {}

    def _made(self, device: Device) -> LastingDevice:
        """Return `device` as what is to `begin`."""
        raise NotImplementedError

    def add(self, name: str, device: Device, *, left: str = "") -> str:
        """Serve a device; return its node. See `FrontEnd.add`.

        `left`: the mark of one that a killed server had, which is taken over.
        """
        return drive(self.reactor, self.adding(name, device, left=left), SECONDS)

    async def adding(self, name: str, device: Device, *, left: str = "") -> str:
        """Do the same as `add`, as a change."""
        if name in self._devices:
            raise UsageError(f"there is a block device for {name} already")
        made = self._made(device)
        await made.begin(left)
        self._devices[name] = made
        return made.path

    def mark(self, name: str) -> str:
        """Return what tells the device of this name from others."""
        return self._devices[name].mark

    def resized(self, name: str) -> None:
        """Give the block device the size that the device has, where the driver can."""
        self._devices[name].resize()

    async def check_unused(self, name: str) -> None:
        """Raise BusyError naming what is mounted or open."""
        await self._devices[name].check_unused()

    def remove(self, name: str) -> None:
        """Serve a device no longer. Raises BusyError naming what is mounted or open."""
        drive(self.reactor, self.removing(name), SECONDS)

    async def removing(self, name: str) -> None:
        await self._devices[name].closing()
        del self._devices[name]

    def let_go(self) -> None:
        """Serve nothing any more, and let the devices wait for the next server."""
        for device in self._devices.values():
            device.let_go()
        self._devices.clear()

    def close(self) -> None:
        """Remove all devices, and cut off the users of those that are open; see `FrontEnd`."""

        def cut_off(name: str) -> None:
            self._devices.pop(name).close(force=True)

        close_each(list(self._devices), self.remove, cut_off)
