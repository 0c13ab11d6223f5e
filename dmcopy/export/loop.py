"""The front end `loop`: each device is a block device, /dev/loopN, over a file of `fuse`.

The loop device goes past the page cache: what it asks for is on the device when it is told so, and
flushes, discards and zeroing reach it.
"""

from __future__ import annotations

import os
from functools import partial
from typing import ClassVar, Final

from dmcopy.block import file_mounts, tools
from dmcopy.block import loop as loops
from dmcopy.block.loop import LoopDevice
from dmcopy.export.aside import aside, beside
from dmcopy.export.base import FrontEnd, Place, close_each
from dmcopy.export.fuse.files import FuseFiles
from dmcopy.export.users import check_unused
from dmcopy.io.reactor import Reactor
from dmcopy.io.region import Device
from dmcopy.ledger import Ledger
from dmcopy.mapper.base import note_failure
from dmcopy.mapper.waiting import drive

_SECONDS: Final = 60.0


class LoopDevices(FrontEnd):
    """Serves devices as loop devices. They and their files are in `ledger`, as for `FuseFiles`."""

    kind: ClassVar[str] = "loop"
    summary: ClassVar[str] = "a block device, /dev/loopN: to be mounted"
    takes: ClassVar[tuple[str, ...]] = FuseFiles.takes

    def __init__(
        self,
        reactor: Reactor,
        place: Place = Place(),  # noqa: B008
        *,
        ledger: Ledger | None = None,
    ) -> None:
        super().__init__(reactor, place)
        self._files = FuseFiles(reactor, place, ledger=ledger)
        self._loops: dict[str, LoopDevice] = {}

    @classmethod
    def why_not(cls) -> str:
        """It takes root, and loop devices beside what `fuse` takes."""
        if os.geteuid() != 0:
            return "loop devices need root"
        if not os.path.exists("/dev/loop-control"):
            return "this kernel has no loop devices (modprobe loop)"
        return file_mounts.why_not()

    def add(self, name: str, device: Device) -> str:
        return drive(self.reactor, self.adding(name, device), _SECONDS)

    async def adding(self, name: str, device: Device) -> str:
        """Do the same as `add`, as a change: losetup has the device flushed, which may be slow."""
        file = self._files.add(name, device)

        def attach() -> LoopDevice:
            return loops.attach(
                file,
                sector_size=device.logical_block_size,
                read_only=device.read_only,
                ledger=self._files.ledger,
            )

        try:
            made = await beside(self.reactor, attach, f"a loop device over {file}")
        except BaseException as error:
            note_failure(error, lambda: self._files.cut_off(name))
            raise
        self._loops[name] = made
        return made.path

    def node(self, name: str) -> str:
        return self._loops[name].path

    def resized(self, name: str) -> None:
        """Give the file and the loop device the size that the device has."""
        self._files.resized(name)
        path = self._loops[name].path
        call = partial(tools.run, ["losetup", "--set-capacity", path], timeout=_SECONDS)
        aside(self.reactor, call, f"{path} to have another size", timeout=_SECONDS)

    async def check_unused(self, name: str) -> None:
        """Raise BusyError naming what is mounted or open."""
        path = self._loops[name].path
        await beside(self.reactor, partial(check_unused, path), f"who uses {path}")

    def remove(self, name: str) -> None:
        """Serve a device no longer. Raises BusyError naming what is mounted or open."""
        drive(self.reactor, self.removing(name), _SECONDS)

    async def removing(self, name: str) -> None:
        made = self._loops[name]

        def detach() -> None:
            check_unused(made.path)
            loops.detach(made)

        await beside(self.reactor, detach, f"{made.path} to be detached")
        self._files.remove(name)
        del self._loops[name]

    def close(self) -> None:
        """Detach all; what is mounted or open fails from then on, and is detached at its end."""
        try:
            close_each(list(self._loops), self.remove, self._cut_off)
        finally:
            self._files.close()

    def _cut_off(self, name: str) -> None:
        made = self._loops.pop(name)
        self._files.cut_off(name)  # before: what the loop device has to write would wait for us
        loops.let_go(made)


FRONT_END = LoopDevices
