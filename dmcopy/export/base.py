"""The one interface of all front ends, and the choice of one.

What is served is any `dmcopy.io.Device` on a reactor: a mapped device of a `UserMapper`, an open
`BlockDevice`, a disk in memory. A front end takes requests of other programs, hands them to
`reactor.submit`, many at a time and all on the reactor's thread, and answers when they are done.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import ClassVar, NamedTuple

from dmcopy.closing import Closing
from dmcopy.errors import BusyError, MissingError, UsageError
from dmcopy.export.kinds import MODULES, kinds
from dmcopy.io.reactor import Reactor
from dmcopy.io.region import Device
from dmcopy.mapper.base import note_failure
from dmcopy.suggest import did_you_mean


class Place(NamedTuple):
    """Where a front end listens, as the user asked; each kind takes the fields that it knows.

    `socket`: the path of a Unix socket. `listen`: ADDRESS:PORT, or the port alone. `at`: the path
    of a file that is made. `tls_creds`: a folder of certificates and keys, see `dmcopy.export.tls`.
    """

    socket: str | None = None
    listen: str | None = None
    at: str | None = None
    tls_creds: str | None = None


class FrontEnd(Closing):
    """Serves devices by their names, from `add` to `remove` or the end of a `with` block.

    A subclass is a kind of front end, in a module that `dmcopy.export.kinds` names. All methods are
    called on the reactor's thread, outside of callbacks.
    """

    kind: ClassVar[str]
    """What --via calls it."""
    summary: ClassVar[str]
    """What users get, in a few words."""
    takes: ClassVar[tuple[str, ...]]
    """What of a `Place` it knows."""

    def __init__(self, reactor: Reactor, place: Place) -> None:
        for word, value in place._asdict().items():
            if value is not None and word not in self.takes:
                option = word.replace("_", "-")
                raise UsageError(f"--via {self.kind} has no {option}: leave out --{option} {value}")
        self.reactor = reactor
        self.place = place

    @classmethod
    def why_not(cls) -> str:
        """Return why this cannot work on this machine for this user, "" where it can.

        It is a phrase that can follow "because". Nothing is changed by asking.
        """
        raise NotImplementedError

    def add(self, name: str, device: Device) -> str:
        """Serve `device` as `name` from now on; return what users open: a path or a URI.

        The device stays the caller's: it must be open until `remove` or `close`.
        Raises UsageError for what cannot be, BusyError for a place that is taken, MissingError.
        """
        raise NotImplementedError

    def remove(self, name: str) -> None:
        """Serve `name` no longer, once what is in flight has ended.

        Raises BusyError where it is in use and cannot be taken away; then it is still served.
        """
        raise NotImplementedError

    async def removing(self, name: str) -> None:
        """Do the same as `remove`, as a change (`mapper.waiting`): others need not wait for it."""
        self.remove(name)

    async def check_unused(self, name: str) -> None:
        """Raise BusyError naming who uses `name`, as far as this kind can tell. As a change."""

    def resized(self, name: str) -> None:
        """Tell the users of `name` that the device may have another size, as far as this kind can.

        Not called inside of callbacks.
        """

    def disconnect(self, name: str) -> None:
        """Cut off the users of `name`, as far as this kind can; new ones may connect. May be called
        inside of callbacks."""

    def close(self) -> None:
        """Serve nothing any more, and leave nothing behind. May be called again.

        Raises BusyError naming the users that had to be cut off, or what kept it from asking
        whether there were any.
        """
        raise NotImplementedError


def close_each(
    names: Iterable[str], close: Callable[[str], object], cut_off: Callable[[str], object]
) -> None:
    """Close each device by `close`, and what that leaves by `cut_off`; raise as `FrontEnd.close`.

    `cut_off` takes neither a thread nor a process: there may be no more.
    """
    users: list[str] = []
    first: Exception | None = None
    for name in names:
        try:
            close(name)
        except Exception as error:
            if isinstance(error, BusyError):
                users += error.holders
            else:
                first = first or error
            note_failure(error, partial(cut_off, name))
            if getattr(error, "__notes__", ()):
                first = first or error
    if first is not None:
        raise first
    if users:
        raise BusyError("what was served", users, "they were cut off")


def load(kind: str) -> type[FrontEnd]:
    """Return a front end, whether it works here or not. Raises UsageError for an unknown name."""
    if kind not in MODULES:
        hint = did_you_mean(kind, MODULES) or f": choose one of {', '.join(MODULES)}"
        raise UsageError(f"there is no front end {kind!r}{hint}")
    found: type[FrontEnd] = importlib.import_module(MODULES[kind]).FRONT_END
    return found


def find(kind: str | None = None) -> type[FrontEnd]:
    """Return the front end called `kind`, or else the first that works on this machine.

    Raises UsageError for an unknown name, MissingError where it, or every one, does not work here.
    """
    reasons = {}
    for name in kinds() if kind is None else (kind,):
        front_end = load(name)
        reasons[name] = front_end.why_not()
        if not reasons[name]:
            return front_end
    why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise MissingError(f"devices cannot be served here: {why}")
