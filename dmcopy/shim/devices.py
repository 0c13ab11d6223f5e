"""The devices that a call of the shim is about: their facts, and the changes of them.

`Devices` is what the shim asks of the device server, or of a stand-in of a test's.
Names are as they were given, with no codes in them; lengths are in sectors.
"""

from __future__ import annotations

import errno
import os

from dmcopy.errors import BusyError, DeadlineError, DmcopyError

TYPE_CHECKING = False  # as in typing, whose import takes longer than a call
if TYPE_CHECKING:
    from typing import Protocol

    class Devices(Protocol):
        """What has the devices. Each method raises `Refused`."""

        def infos(self) -> list[Info]:
            """Return what is known of every device."""

        def table(self, name: str, *, inactive: bool) -> list[str]:
            """Return the lines of a table as `dmsetup table` prints them."""

        def status(self, name: str, *, flush: bool) -> list[str]:
            """Return the lines of the status of the active table."""

        def targets(self) -> dict[str, list[int]]:
            """Return the versions of all targets."""

        def create(self, name: str, table: str | None, *, uuid: str, readonly: bool) -> None:
            """Make a device with this table, or without."""

        def load(self, name: str, table: str, *, readonly: bool) -> None:
            """Load a table beside the active one."""

        def clear(self, name: str) -> None:
            """Drop the loaded table."""

        def suspend(self, name: str, *, flush: bool, lockfs: bool) -> None:
            """Hold new I/O."""

        def resume(self, name: str, *, flush: bool, lockfs: bool) -> None:
            """Let I/O continue, with the loaded table if there is one."""

        def remove(self, name: str, *, deferred: bool) -> None:
            """Remove a device."""

        def rename(self, name: str, new: str) -> None:
            """Give a device another name."""

        def set_uuid(self, name: str, uuid: str) -> None:
            """Give a device a UUID."""

        def message(self, name: str, sector: int, text: str) -> str:
            """Send a message; return the answer."""

        def wait(self, name: str, event: int) -> None:
            """Wait until there was an event after number `event`."""


class Refused(Exception):  # noqa: N818 - it is the kernel's word for it, and no fault
    """The engine refused something: `errno` as the kernel has it, and why in a sentence."""

    def __init__(self, errno: int, why: str = "") -> None:
        self.errno = errno
        super().__init__(why)


def refusal(error: DmcopyError) -> Refused:
    """Return an error of an engine's as the kernel would say it."""
    number = getattr(error, "errno", 0) or errno.EINVAL
    if isinstance(error, BusyError):
        number = errno.EBUSY
    elif isinstance(error, DeadlineError):
        number = errno.ETIMEDOUT
    return Refused(number, str(error))


class Info:
    """What is known of one device; see `dmcopy.mapper.base.DmInfo`."""

    def __init__(
        self,
        name: str,
        number: tuple[int, int],
        *,
        uuid: str = "",
        opened: int = 0,
        segments: int = 0,
        events: int = 0,
        suspended: bool = False,
        readonly: bool = False,
        live: bool = True,
        inactive: bool = False,
        deferred: bool = False,
        deps: list[tuple[int, int]] | None = None,
    ) -> None:
        self.name = name
        self.major, self.minor = self.number = number
        self.uuid = uuid
        self.opened = opened
        self.segments = segments
        self.events = events
        self.suspended = suspended
        self.readonly = readonly
        self.live = live
        self.inactive = inactive
        self.deferred = deferred
        self.deps = deps or []

    @property
    def read_ahead(self) -> int:
        """How much the kernel reads ahead, in sectors; 0 where there is no block device."""
        try:
            with open(f"/sys/dev/block/{self.major}:{self.minor}/queue/read_ahead_kb") as stream:
                return 2 * int(stream.read())
        except (OSError, ValueError):
            return 0


def block_name(number: tuple[int, int]) -> str:
    """Return the kernel's name of a block device, empty where there is none of this number."""
    try:
        link = os.readlink(f"/sys/dev/block/{number[0]}:{number[1]}")
    except OSError:
        return ""
    return link.rpartition("/")[2].replace("!", "/")


def number_at(path: str) -> tuple[int, int] | None:
    """Return the number of the device at a path, None where there is none."""
    try:
        device = os.stat(path).st_rdev
    except OSError:
        return None
    return (os.major(device), os.minor(device)) if device else None
