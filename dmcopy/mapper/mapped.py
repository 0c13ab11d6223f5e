"""A mapped device of the userspace engine: a table of targets, and the way of each bio through it.

It is a `dmcopy.io.Device` like any other, so devices stack, and kcopyd copies to and from it.
The rules are those of drivers/md/dm.c: bios are cut at the lines of the table and at each target's
max_io_len; a suspended device keeps new bios back and waits for those in flight; the table can be
swapped only in between.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from dmcopy.io.parts import Countdown, first_error, submit_all
from dmcopy.io.reactor import Reactor
from dmcopy.io.region import Device, IoRegion
from dmcopy.io.request import DISCARD, FLUSH, READ, WRITE, Io, Memory, cut
from dmcopy.io.stacked import StackedDevice
from dmcopy.mapper.mapped_io import MappedIo
from dmcopy.targets.base import DONE, KILL, REMAPPED, REQUEUE, SUBMITTED, Bio, Target
from dmcopy.units import SECTOR_SHIFT, SECTOR_SIZE

if TYPE_CHECKING:
    from dmcopy.mapper.base import Mapper

_ZERO_BYTES = 1 << 16
_ZERO_SECTORS = 1 << 15


class ActiveTable:
    """The targets of a table, what they opened, and the block size that comes from it.

    `opened`: the devices by the words that the table's lines have for them. A word may come to mean
    another device, after a rename for one; the table keeps the one that it opened. `held`: the
    bios that its targets keep.
    """

    def __init__(self, sectors: int, *, readonly: bool) -> None:
        self.targets: list[Target] = []
        self.sectors = sectors
        self.logical_block_size = SECTOR_SIZE
        self.readonly = readonly
        self.opened: dict[str, Device] = {}
        self.held: set[Bio] = set()
        self.closers = contextlib.ExitStack()

    def find(self, sector: int) -> Target:
        """Return the target that maps `sector`, which must be on the device."""
        for target in self.targets:
            if sector < target.begin + target.length:
                return target
        raise IndexError(sector)

    def destroy(self) -> None:
        """Destroy the targets, then close what they opened: but not below I/O that does not end.

        Raises DeadlineError; then it can be called again.
        """
        while self.targets:
            self.targets[0].destroy()
            del self.targets[0]
        self.closers.close()


class MappedDevice(MappedIo):
    """A mapped device by its name; see `UserMapper`. `active` is its table, if there is one."""

    def __init__(
        self, mapper: Mapper, name: str, path: str, reactor: Reactor, timeout: float
    ) -> None:
        self.mapper = mapper
        self.name = name
        self.path = path
        self.reactor = reactor
        self.timeout = timeout
        self.active: ActiveTable | None = None
        self.in_flight = 0
        self.suspended = True  # as after DM_DEV_CREATE: there is no table yet
        self.noflush = False
        self._holds = 1
        self._only: Target | None = None
        self._held: set[Bio] = set()
        self._deferred: list[Io] = []
        self._ended = self._end  # bound once: every bio gets it

    def __repr__(self) -> str:
        return f"<MappedDevice {self.name} of {self.sectors} sectors>"

    @property
    def sectors(self) -> int:
        return self.active.sectors if self.active else 0

    @property
    def logical_block_size(self) -> int:
        """The largest of the devices below, in bytes."""
        return self.active.logical_block_size if self.active else SECTOR_SIZE

    @property
    def read_only(self) -> bool:
        return self.active is not None and self.active.readonly

    @property
    def identity(self) -> Hashable:
        return self

    def fileno(self) -> int:
        raise OSError(errno.ENOTBLK, "a device of the userspace engine has no descriptor")

    def activate(self, table: ActiveTable | None) -> None:
        """Make `table` the active one; the device must be suspended."""
        self.active = table
        self._only = table.targets[0] if table and len(table.targets) == 1 else None
        self._held = table.held if table else set()

    def end_held(self, table: ActiveTable) -> None:
        """End with EIO what the targets of a table keep, which will not end it themselves."""
        for bio in list(table.held):
            bio.error = errno.EIO
            self._end(bio)

    def hold(self) -> None:
        self._holds += 1

    def release(self) -> None:
        """Undo one `hold`; the last one maps the bios that were kept back."""
        self._holds -= 1
        if not self._holds:
            deferred, self._deferred = self._deferred, []
            for request in deferred:
                self.take(request)

    def submit(self, request: Io) -> None:
        """Take a request of the device's opener; see `StackedDevice.submit`.

        One that would change a read-only device ends with EPERM.
        """
        if self.read_only and request.op not in (READ, FLUSH):
            self.in_flight += 1
            self._end_soon(request, errno.EPERM)
        else:
            self.take(request)

    def take(self, request: Io) -> None:
        """Map a request, wherever it comes from."""
        if self._holds:
            self._deferred.append(request)
            return
        self.in_flight += 1
        if request.op > WRITE:
            self._submit_special(request)
            return
        sector, count = request.sector, request.count
        target = self._only
        if target is None or count == 0:
            target = self._find(request)
            if target is None:
                return
        start = sector - target.begin
        longest = target.max_io_len
        if not longest and request.op == WRITE:
            longest = target.max_write_len
        if start + count > target.length or (longest and start % longest + count > longest):
            self._split(request)
        else:
            self._map(Bio(request, sector, count, request.extents, self._ended, target, request))

    def _map(self, bio: Bio) -> None:
        try:
            result = bio.target.map(bio)
        except Exception as error:  # it is the target's fault, and must not be the bio's fate
            self._report(self.reactor, bio.target, error)
            result = KILL
        if result is REMAPPED:
            self.reactor.submit(bio)
        elif result is SUBMITTED:
            self._held.add(bio)
        elif result is DONE:
            self.reactor.call_soon(partial(self._end, bio))
        else:
            if result is not KILL:
                wrong = TypeError(f"map() returned {result!r} and no Map")
                self._report(self.reactor, bio.target, wrong)
            bio.error = errno.EIO
            self.reactor.call_soon(partial(self._end, bio))

    def _report(self, reactor: Reactor, target: Target, error: Exception) -> None:
        error.add_note(f"target '{target.name}' of {self.name} raised it; the I/O ends with EIO")
        reactor.report(error)

    def _end(self, bio: Bio) -> None:
        target = bio.target
        self._held.discard(bio)
        try:
            if target.wants_end_io and not target.end_io(bio):
                self._held.add(bio)
                return
        except Exception as error:  # what else it was about, only the target knows: its table fails
            bio.error = bio.error or errno.EIO
            self._report(target.host.reactor, target, error)
        parent = bio.parent
        if isinstance(parent, _Group):
            parent.error = parent.error or bio.error
            parent.ended()
        else:
            self._finish(parent, bio.error)

    def _finish(self, request: Io, error: int) -> None:
        self.in_flight -= 1
        if error == REQUEUE:
            if self.noflush:
                self._deferred.append(request)
                return
            error = errno.EIO
        request.error = error
        try:
            request.notify(request)  # type: ignore[misc]
        except BaseException as raised:  # not the target's fault, which may be in a loop of its own
            self.reactor.catch(raised)

    def _find(self, request: Io) -> Target | None:
        """Return the target of a request's first sector; end the request when there is none."""
        if self.active is None or request.sector + request.count > self.active.sectors:
            self._end_soon(request, errno.EIO)
            return None
        if not request.count:
            self._end_soon(request, 0)
            return None
        return self.active.find(request.sector)

    def _end_soon(self, request: Io, error: int) -> None:
        self.reactor.call_soon(partial(self._finish, request, error))

    def _split(self, request: Io) -> None:
        """Map a request in parts: at the lines of the table and at the targets' max_io_len."""
        assert self.active is not None
        parts: list[Io] = []
        sector, left = request.sector, request.count
        while left:
            target = self.active.find(sector) if sector < self.active.sectors else None
            if target is None:
                self._end_soon(request, errno.EIO)
                return
            count = min(left, target.begin + target.length - sector)
            count = target.accepts(request.op, sector, count)
            if count == request.count:
                self._map(
                    Bio(request, sector, count, request.extents, self._ended, target, request)
                )
                return
            extents = cut(request.extents, sector - request.sector << SECTOR_SHIFT,
                          count << SECTOR_SHIFT)  # fmt: skip
            region = IoRegion(self, sector, count)
            parts.append(Io(request.op, region, request.memory, extents, fua=request.fua))
            sector += count
            left -= count
        self._in_parts(request, parts, request.notify)

    def _in_parts(
        self, request: Io, parts: Sequence[Io], notify: Callable[[Io], object] | None
    ) -> None:
        """Submit parts, each of which can be taken back by itself; then call `notify(request)`.

        As in the kernel, whose dm_io is a part (dm_handle_requeue in dm.c, 6.1): what has ended
        is not done again.
        """
        self.in_flight -= 1  # the parts count

        def ended(parts: Sequence[Io]) -> None:
            request.error = first_error(parts)
            notify(request)  # type: ignore[misc]

        submit_all(self.take, parts, ended)

    def _submit_special(self, request: Io) -> None:
        if self.active is None:
            self._end_soon(request, errno.EIO)
        elif request.op == FLUSH:
            copies = [(target, 0, 0, target.flush_bios) for target in self.active.targets]
            self._send(request, copies)
        elif request.op == DISCARD:
            self._discard(request, self.active)
        else:
            self._write_zeroes(request)

    def _discard(self, request: Io, table: ActiveTable) -> None:
        end = request.sector + request.count
        copies = []
        for target in table.targets:
            first, last = target.begin, target.begin + target.length
            if first < end and request.sector < last:
                if not target.discard_bios:
                    self._end_soon(request, errno.EOPNOTSUPP)
                    return
                start = max(first, request.sector)
                copies += _discards(target, start, min(last, end) - start)
        self._send(request, copies)

    def _send(self, request: Io, parts: Sequence[tuple[Target, int, int, int]]) -> None:
        """Map parts (target, sector, count, copies) of a request that has no data."""
        total = sum(copies for *_, copies in parts)
        if not total:
            self._end_soon(request, 0)
            return
        group = _Group(request, total, self._finish)
        for target, sector, count, copies in parts:
            for number in range(copies):
                self._map(Bio(request, sector, count, (), self._ended, target, group, number))

    def _write_zeroes(self, request: Io) -> None:
        """Write zeroes as data: no target here has a quicker way, and the kernel's have none."""
        if not request.count:
            self._end_soon(request, 0)
            return
        memory = Memory(_ZERO_BYTES >> 12)
        parts: list[Io] = []
        for sector in range(request.sector, request.sector + request.count, _ZERO_SECTORS):
            count = min(_ZERO_SECTORS, request.sector + request.count - sector)
            whole_pieces, rest = divmod(count << SECTOR_SHIFT, _ZERO_BYTES)
            extents = [(0, _ZERO_BYTES)] * whole_pieces + ([(0, rest)] if rest else [])
            parts.append(Io(WRITE, IoRegion(self, sector, count), memory, extents))

        def ended(request: Io) -> None:
            memory.close()
            request.notify(request)  # type: ignore[misc]

        self._in_parts(request, parts, ended)


class Underlying(StackedDevice):
    """A mapped device as the tables above it have it: never read-only.

    A read-only table refuses those who open the device. What targets send down is not asked: not
    their own copies and metadata, nor the bios of a device above (bio_check_ro in
    block/blk-core.c only warns; measured on 6.1 and 6.12).
    """

    read_only = False

    def __init__(self, mapped: MappedDevice) -> None:
        self._mapped = mapped
        self.submit = mapped.take  # type: ignore[method-assign]  # no step more for each bio
        self.fileno = mapped.fileno
        self.flush = mapped.flush
        self.discard = mapped.discard
        self.zero_out = mapped.zero_out

    def __repr__(self) -> str:
        return f"<Underlying {self._mapped!r}>"

    @property
    def path(self) -> str:
        """The name that it has now."""
        return self._mapped.path

    @property
    def sectors(self) -> int:
        """The size of the active table."""
        return self._mapped.sectors

    @property
    def logical_block_size(self) -> int:
        """The largest of the devices below, in bytes."""
        return self._mapped.logical_block_size

    @property
    def identity(self) -> Hashable:
        """That of the mapped device."""
        return self._mapped.identity


class _Group(Countdown):
    """A request that was cut into bios; `finish(request, error)` when all have ended."""

    __slots__ = ("error",)

    def __init__(self, request: Io, bios: int, finish: Callable[[Io, int], object]) -> None:
        super().__init__(bios, lambda: finish(request, self.error))
        self.error = 0


def _discards(target: Target, start: int, count: int) -> list[tuple[Target, int, int, int]]:
    """Cut a discard where the target wants it cut: at chunks, if it maps chunks itself."""
    step = target.max_discard
    if not step:
        return [(target, start, count, target.discard_bios)]
    parts = []
    while count:
        size = min(count, step - (start - target.begin) % step)
        parts.append((target, start, size, target.discard_bios))
        start, count = start + size, count - size
    return parts
