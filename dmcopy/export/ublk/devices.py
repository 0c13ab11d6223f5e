"""The front end `ublk`: each device is a block device, /dev/ublkbN, of the kernel's ublk driver."""

from __future__ import annotations

from typing import ClassVar

from dmcopy.export.lasting import LastingDevices
from dmcopy.export.ublk.served import UblkDevice
from dmcopy.io.region import Device
from dmcopy.io.ublk import UblkControl


class UblkDevices(LastingDevices):
    """Serves devices as ublk devices."""

    kind: ClassVar[str] = "ublk"
    summary: ClassVar[str] = "a block device, /dev/ublkbN, without a file below: to be mounted"

    @classmethod
    def why_not(cls) -> str:
        """It takes root, io_uring, and a driver that is not known to hang."""
        return UblkControl().why_not()

    def _made(self, device: Device) -> UblkDevice:
        return UblkDevice(self.reactor, device, ledger=self._ledger, recoverable=self._recoverable)


FRONT_END = UblkDevices
