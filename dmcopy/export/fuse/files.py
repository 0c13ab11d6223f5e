"""The front end `fuse`: each device is a file, in the runtime folder or where it was asked for."""

from __future__ import annotations

from typing import ClassVar

from dmcopy.block import file_mounts
from dmcopy.errors import UsageError
from dmcopy.export.base import FrontEnd, Place, close_each
from dmcopy.export.fuse.served import FuseFile
from dmcopy.io.reactor import Reactor
from dmcopy.io.region import Device
from dmcopy.ledger import Ledger
from dmcopy.mapper.names import mangle
from dmcopy.runtime import runtime_folder


class FuseFiles(FrontEnd):
    """Serves devices as files. They are in `ledger`, by default the user's."""

    kind: ClassVar[str] = "fuse"
    summary: ClassVar[str] = "a file that is the device: for every program"
    takes: ClassVar[tuple[str, ...]] = ("at",)

    def __init__(
        self,
        reactor: Reactor,
        place: Place = Place(),  # noqa: B008
        *,
        ledger: Ledger | None = None,
    ) -> None:
        super().__init__(reactor, place)
        self.ledger = ledger or Ledger()
        self._files: dict[str, FuseFile] = {}

    @classmethod
    def why_not(cls) -> str:
        """It takes /dev/fuse, and root or fusermount3."""
        return file_mounts.why_not()

    def add(self, name: str, device: Device) -> str:
        if name in self._files:
            raise UsageError(f"there is a file for {name} already")
        if self.place.at is not None and self._files:
            raise UsageError("there are several devices: leave out --at")
        path, otherwise = self.place.at, "say another path"
        if path is None:
            path = str(runtime_folder("--at PATH") / mangle(name))
            otherwise = "say another --name, or --at PATH"
        made = FuseFile(self.reactor, device, path, ledger=self.ledger, otherwise=otherwise)
        self._files[name] = made
        return made.path

    def remove(self, name: str) -> None:
        """Serve a device no longer. Raises BusyError naming who has the file open."""
        self._files[name].close()
        del self._files[name]

    def resized(self, name: str) -> None:
        """Give the file the size that the device has."""
        self._files[name].look()

    def cut_off(self, name: str) -> None:
        """Remove a file, though it may be open. What is below waits for this process no more."""
        self._files.pop(name).close(force=True)

    def close(self) -> None:
        """Remove all files, and cut off the users of those that are open; see `FrontEnd`."""
        close_each(list(self._files), self.remove, self.cut_off)


FRONT_END = FuseFiles
