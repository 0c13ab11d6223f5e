"""The front end `nbd-device`: each device is a block device, /dev/nbdN, of the kernel's nbd driver.

The driver speaks NBD with this process through a pair of sockets; there is no other way to it.
"""

from __future__ import annotations

from typing import ClassVar

from dmcopy.export.lasting import LastingDevices
from dmcopy.export.nbd.attached import AttachedDevice
from dmcopy.io.nbd import NbdControl
from dmcopy.io.region import Device


class NbdDevices(LastingDevices):
    """Serves devices as nbd devices."""

    kind: ClassVar[str] = "nbd-device"
    summary: ClassVar[str] = "a block device, /dev/nbdN, without a file below: to be mounted"

    @classmethod
    def why_not(cls) -> str:
        """It takes root and the driver, since Linux 5.14."""
        return NbdControl().why_not()

    def _made(self, device: Device) -> AttachedDevice:
        return AttachedDevice(
            self.reactor, device, ledger=self._ledger, recoverable=self._recoverable
        )


FRONT_END = NbdDevices
