"""What a userspace target is: `Target`, the `Bio` that it maps, and the `Host` that it runs in.

The interface is the kernel's (include/linux/device-mapper.h): a constructor that opens devices and
refuses wrong tables, `map` for every bio, `end_io`, `presuspend` … `resume`, `status`, `message`.
Unlike the kernel's, a target here runs on one thread, the reactor, and takes no locks; only its
constructor, `presuspend`, `preresume`, `resume`, `postsuspend` and `destroy` may wait for I/O.
"""

from __future__ import annotations

import enum
import errno
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol, TypeVar

from dmcopy.io.reactor import Reactor
from dmcopy.io.region import Device
from dmcopy.io.request import WRITE, Extent, Io, Op
from dmcopy.lazy import Registry
from dmcopy.status import STATUSES
from dmcopy.table import TARGETS as TABLE_TARGETS
from dmcopy.table import Line, TableLine
from dmcopy.table import Target as TableTarget
from dmcopy.units import SECTOR_SHIFT

TARGETS: Registry[Target] = Registry(
    "dmcopy.targets",
    delay="delay",
    dust="dust",
    error="error",
    flakey="flakey",
    linear="linear",
    log_writes="log-writes",
    merge="snapshot-merge",
    mirror="mirror",
    origin="snapshot-origin",
    snapshot="snapshot",
    striped="striped",
    zero="zero",
)
REQUEUE = -1
"""The `error` of a bio that its device must take back: only while suspending without flush."""

_T = TypeVar("_T")
_Class = TypeVar("_Class", bound="type[Target]")


class Map(enum.Enum):
    """What became of a bio in `Target.map` (the first three: DM_MAPIO_* of device-mapper.h)."""

    SUBMITTED = 0
    """The target keeps it, and calls `Bio.end` when it is done."""
    REMAPPED = 1
    """Its device and sector are changed: it goes there."""
    KILL = 4
    """It ends with EIO."""
    DONE = 5
    """It ends well. (In the kernel the target ends the bio itself.)"""


SUBMITTED, REMAPPED, KILL, DONE = Map.SUBMITTED, Map.REMAPPED, Map.KILL, Map.DONE


class Bio(Io):
    """A request, or a part of one, on its way through one target.

    `target` maps it and hears of its end; `number` counts the copies of a flush or discard that the
    target asked for. `data` is the target's own. The rest is as in `Io`; a target changes `device`
    and `sector` to remap it.
    """

    __slots__ = ("data", "number", "parent", "target")

    def __init__(
        self,
        request: Io,
        sector: int,
        count: int,
        extents: Sequence[Extent],
        notify: Callable[[Any], object],
        target: Target,
        parent: Any,
        number: int = 0,
    ) -> None:
        # Not through Io's own: every request on a mapped device makes one of these.
        self.op = request.op
        self.device = request.device
        self.sector = sector
        self.count = count
        self.bytes = count << SECTOR_SHIFT if request.bytes else 0
        self.memory = request.memory
        self.extents = extents
        self.notify = notify
        self.fua = request.fua
        self.preflush = False  # the stack flushes by itself, before
        self.context = None
        self.error = 0
        self.target = target
        self.parent = parent
        self.number = number
        self.data: Any = None

    def end(self, error: int = 0) -> None:
        """End it with an errno, or 0. Only from a callback, not inside of `map`."""
        self.error = error
        self.notify(self)  # type: ignore[misc]


class TargetError(Exception):
    """A target refuses its table, to be resumed, or a message: an errno and the kernel's words."""

    def __init__(self, reason: str, number: int = errno.EINVAL) -> None:
        super().__init__(reason)
        self.reason = reason
        self.errno = number


class Host(Protocol):
    """The device that a target is part of, and its engine."""

    @property
    def name(self) -> str:
        """What the device is called now."""

    @property
    def sectors(self) -> int:
        """The size of the table that the target is part of."""

    @property
    def reactor(self) -> Reactor:
        """The thread of all callbacks, and the way of all I/O; see `dmcopy.targets.guard`."""

    @property
    def suspended(self) -> bool:
        """Whether the device is suspended."""

    @property
    def noflush(self) -> bool:
        """Whether it is being suspended without flush: held bios may end with REQUEUE."""

    def open(self, path: str, *, write: bool = True) -> Device:
        """Open a device of the table until the table goes. Raises what opening raises.

        `write`: the target writes there, be it only what comes from above. That the table is
        read-only changes nothing: it refuses writes to the device, not those of its targets, which
        still copy and write metadata and logs (drivers/md/dm-table.c opens read-only then, which
        no bio is held to; measured on 6.1 and 6.12).
        """

    def label(self, device: Device) -> str:
        """Return the device's name in tables and status lines: major:minor where it has one."""

    def use(self, device: Device, start: int, count: int) -> None:
        """Say which part of a device is used, to be checked against its size and its blocks."""

    def module(self, cls: Callable[[], _T]) -> _T:
        """Return the engine's only object of this class: a kernel module's globals."""

    def event(self) -> None:
        """Raise an event: the device's event number goes up, and waits for it end."""

    def hold(self) -> None:
        """Keep new bios back and wait for those in flight (dm_internal_suspend_fast in dm.c)."""

    def release(self) -> None:
        """Let the bios that a `hold` kept back continue, if it was the last one."""

    def call(self, notify: Callable[..., _T], *args: Any) -> _T | None:
        """Call a target of this table from another's; see `dmcopy.targets.guard.Guard.call`."""


class Target:
    """One line of an active table. Subclasses are named after the kernel's, as are their methods.

    Attributes:
        begin, length: the line, in sectors.
        max_io_len: no bio given to `map` crosses a multiple of it, counted from `begin`; 0: any.
            But see `accepts`.
        max_write_len: the same for writes only.
        max_discard: the same for discards, which are not cut at max_io_len.
        flush_bios, discard_bios: how many copies of a flush or discard `map` wants; 0 flush_bios
            drop flushes, 0 discard_bios refuse discards.
        maps_ranges: whether `map` takes discards that are not cut as writes are. Without it, a
            target with discards whose writes are cut must have a `max_discard` that divides where.
        wants_end_io: whether `end_io` is to be called.
    """

    name: ClassVar[str]
    version: ClassVar[tuple[int, int, int]] = (1, 0, 0)
    maps_ranges: ClassVar[bool] = False
    flush_bios: int = 0
    discard_bios: int = 0
    max_io_len: int = 0
    max_write_len: int = 0
    max_discard: int = 0
    wants_end_io: bool = False

    def __init__(self, line: TableLine, host: Host) -> None:
        self.host = host
        self.begin = line.start
        self.length = line.length
        self.value: Any = line.target

    def check_discards(self) -> None:
        """Raise TargetError if a discard could reach `map` that is longer than its writes are.

        A `map` that moves a bio by where it begins would then discard what is another chunk's.
        """
        cuts = [length for length in (self.max_io_len, self.max_write_len) if length]
        are_cut = self.max_discard and not any(length % self.max_discard for length in cuts)
        if self.discard_bios and not self.maps_ranges and cuts and not are_cut:
            raise TargetError(
                f"target '{self.name}' has its writes cut at {min(cuts)} sectors and its discards "
                f"not: set max_discard, or maps_ranges if map() takes a discard of any length"
            )

    def accepts(self, op: Op, sector: int, count: int) -> int:
        """Return how much of a read or write `map` takes as one bio.

        (dm_accept_partial_bio in drivers/md/dm.c.) It is at least what `max_io_len` and
        `max_write_len` allow, and is asked, right before `map`, only where they allow less.
        """
        longest = self.max_io_len or (self.max_write_len if op == WRITE else 0)
        return min(count, longest - (sector - self.begin) % longest) if longest else count

    def map(self, bio: Bio) -> Map:
        """Say where `bio` goes. Its sector counts from the start of the mapped device."""
        raise NotImplementedError

    def end_io(self, bio: Bio) -> bool:
        """Hear of the end of a bio that was mapped, `bio.error` set. False: it is not over yet."""
        raise NotImplementedError

    def status(self) -> str:
        """Return what `dmsetup status` prints behind the target's name."""
        return ""

    def table(self) -> TableTarget:
        """Return the words that `dmsetup table` prints, as a typed value."""
        value: TableTarget = self.value.canonical()
        return value

    def message(self, words: tuple[str, ...]) -> str:
        """Do what a message says; return the answer. Raises TargetError."""
        del words
        raise TargetError("the target takes no messages")

    def presuspend(self) -> None:
        """The device is about to be suspended: stop what runs by itself, end what is held.

        May wait for I/O of its own; raises DeadlineError, as if nothing had been done.
        """

    def presuspend_undo(self) -> None:
        """The device could not be suspended after all."""

    def postsuspend(self) -> None:
        """Nothing is in flight any more. May wait for I/O."""

    def preresume(self) -> None:
        """The device is about to run. Raises TargetError when it cannot; may wait for I/O."""

    def resume(self) -> None:
        """The device runs. May wait for I/O."""

    def destroy(self) -> None:
        """The table goes away; the device is suspended, or never ran. May wait for I/O."""

    def failed(self) -> None:
        """A callback has raised: `map` and `end_io` are not called any more. May not wait.

        A request that is submitted here is the last that is not refused with EIO. Afterwards
        `status` and the metadata on the disks must claim nothing that does not hold.
        """

    def stopped(self) -> None:
        """It failed, and nothing calls it any more: let others go that wait. May not wait.

        The bios that it was given and has not ended are ended by the device.
        """


def register(cls: _Class) -> _Class:
    """Make `cls` the userspace target that its `name` says.

    Where the name is new to tables, so are its words: a class `Words` in it, a `dmcopy.table.Line`
    with a field for each. Without one they are those of the target that it derives from, or none.
    In the same way a class `Status` in it is the type of its status line. Raises UsageError for a
    name that is taken.
    """
    TARGETS.check(cls)
    own = vars(cls)
    parts: list[tuple[Registry[Any], Any]] = [(TARGETS, cls)]
    if "Words" in own or cls.name not in TABLE_TARGETS:
        words = own.get("Words") or _inherited(cls, TABLE_TARGETS, Line)
        parts.append((TABLE_TARGETS, _named(cls, words)))
    if "Status" in own or cls.name not in STATUSES:
        status = own.get("Status") or _inherited(cls, STATUSES)
        if status is not None:
            parts.append((STATUSES, _named(cls, status)))
    for registry, part in parts:
        registry.check(part)
    for registry, part in parts:
        registry.register(part)
    return cls


def _inherited(target: type[Target], registry: Registry[Any], default: Any = None) -> Any:
    """Return a new type like that of the target which `target` derives from."""
    names = (str(vars(base).get("name")) for base in target.__mro__[1:])
    base = next((registry[name] for name in names if name in registry), default)
    return None if base is None else type(target.__name__, (base,), {"__slots__": ()})


def _named(target: type[Target], cls: Any) -> Any:
    cls.name, cls.__module__ = target.name, target.__module__
    return cls
