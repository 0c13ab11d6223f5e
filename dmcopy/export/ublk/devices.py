"""The front end `ublk`: each device is a block device, /dev/ublkbN, of the kernel's ublk driver."""

from __future__ import annotations

from typing import ClassVar

from dmcopy.errors import UsageError
from dmcopy.export.base import FrontEnd, Place, close_each
from dmcopy.export.ublk.served import UblkDevice
from dmcopy.io.reactor import Reactor
from dmcopy.io.region import Device
from dmcopy.io.ublk import UblkControl
from dmcopy.ledger import Ledger


class UblkDevices(FrontEnd):
    """Serves devices as ublk devices. They are in `ledger`, by default the user's.

    `recoverable`: see `UblkDevice`; such a device is known to the next server by its `mark`.
    """

    kind: ClassVar[str] = "ublk"
    summary: ClassVar[str] = "a block device, /dev/ublkbN, without a file below: to be mounted"
    takes: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        reactor: Reactor,
        place: Place = Place(),  # noqa: B008
        *,
        ledger: Ledger | None = None,
        recoverable: bool = False,
        control: UblkControl | None = None,
    ) -> None:
        super().__init__(reactor, place)
        self._ledger = ledger or Ledger()
        self._recoverable = recoverable
        self._control = control
        self._devices: dict[str, UblkDevice] = {}

    @classmethod
    def why_not(cls) -> str:
        """It takes root, io_uring, and a driver that is not known to hang."""
        return UblkControl().why_not()

    def add(self, name: str, device: Device, *, left: str = "") -> str:
        """Serve a device; return its node. See `FrontEnd.add`.

        `left`: the mark of one that a killed server had, which is taken over.
        """
        if name in self._devices:
            raise UsageError(f"there is a ublk device for {name} already")
        made = UblkDevice(
            self.reactor,
            device,
            ledger=self._ledger,
            recoverable=self._recoverable,
            left=left,
            control=self._control,
        )
        self._devices[name] = made
        return made.path

    def mark(self, name: str) -> str:
        """Return what tells the device of this name from others."""
        return self._devices[name].mark

    def resized(self, name: str) -> None:
        """Give the ublk device the size that the device has, where the driver can."""
        self._devices[name].resize()

    def check_unused(self, name: str) -> None:
        """Raise BusyError naming what is mounted or open."""
        self._devices[name].check_unused()

    def remove(self, name: str) -> None:
        """Serve a device no longer. Raises BusyError naming what is mounted or open."""
        self._devices[name].close()
        del self._devices[name]

    def let_go(self) -> None:
        """Stop serving, and leave the devices in place for the next server."""
        for device in self._devices.values():
            device.let_go()
        self._devices.clear()

    def close(self) -> None:
        """Remove all devices, and cut off the users of those that are open; see `FrontEnd`."""

        def cut_off(name: str) -> None:
            self._devices.pop(name).close(force=True)

        close_each(list(self._devices), self.remove, cut_off)


FRONT_END = UblkDevices
