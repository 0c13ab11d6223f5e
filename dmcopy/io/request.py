"""What a back end is asked to do: `Io` on one region, or `CopyIo` from one region to others.

A request carries its own result: `error` is 0 or an errno. A back end never raises for a device's
error; it sets `error` and hands the request to its `notify`, on the reactor, exactly once.
"""

from __future__ import annotations

import ctypes
import enum
import mmap
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from dmcopy.errors import MissingError
from dmcopy.io.region import Device, IoRegion
from dmcopy.units import PAGE_SIZE, format_bytes


class Op(enum.IntEnum):
    """The operations of a back end."""

    READ = 0
    WRITE = 1
    FLUSH = 2
    DISCARD = 3
    WRITE_ZEROES = 4
    COPY = 5


# By name, for code that looks at every request: a member of an enum takes eight times as long to
# get.
READ, WRITE, FLUSH, DISCARD, WRITE_ZEROES, COPY = Op

_HUGE_BYTES: Final = 2 << 20

Extent = tuple[int, int]
"""A run of bytes in a `Memory`: (offset, length)."""


class Part(NamedTuple):
    """A region, and where in memory its data is, or is to be."""

    region: IoRegion
    extents: Sequence[Extent]


class Memory:
    """Pages for data: allocated once, page-aligned, never moved. `size_bytes` is whole pages.

    Whole huge pages of 2 MiB are asked for where there is room for one: a request of 1 MiB is then
    one segment for the kernel to look up, and not 256. What is left at the end stays small pages,
    so that no more than `size_bytes` is ever in use. A child of fork(2) does not get the pages: a
    private page that both have is copied when one of them writes, while the kernel may still be
    reading into it.

    `is_huge`: they were asked for. Raises MissingError where there are not that many pages.
    """

    def __init__(self, pages: int) -> None:
        self.size_bytes = pages * PAGE_SIZE
        huge = self.size_bytes // _HUGE_BYTES * _HUGE_BYTES
        self.is_huge = huge > 0
        # Kernels before 6.7 do not align a map for huge pages by themselves.
        spare = _HUGE_BYTES - PAGE_SIZE if huge else 0
        try:
            self._map = mmap.mmap(
                -1, self.size_bytes + spare, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            )
        except OSError as error:
            raise MissingError(
                f"there is no memory for {format_bytes(self.size_bytes)} of data"
            ) from error
        start = 0
        self._map.madvise(mmap.MADV_DONTFORK)
        if huge:
            start = -ctypes.addressof(ctypes.c_char.from_buffer(self._map)) % _HUGE_BYTES
            try:
                self._map.madvise(mmap.MADV_HUGEPAGE, start, huge)
            except OSError:  # a kernel without them
                pass
        self.view = memoryview(self._map)[start : start + self.size_bytes]
        self._anchor = ctypes.c_char.from_buffer(self._map, start)
        self.address = ctypes.addressof(self._anchor)

    def close(self) -> None:
        """Give the pages back to the system; no request may still use them."""
        del self._anchor
        self.view.release()
        self._map.close()

    def views(self, extents: Sequence[Extent]) -> list[memoryview]:
        """Return the memory of `extents` piece by piece."""
        if len(extents) == 1:
            ((start, length),) = extents
            return [self.view[start : start + length]]
        return [self.view[start : start + length] for start, length in extents]

    def read(self, extents: Sequence[Extent]) -> bytes:
        """Return a copy of what the extents hold."""
        return b"".join(self.views(extents))

    def fill(self, extents: Sequence[Extent], data: bytes | memoryview) -> None:
        """Copy `data` into the extents, which must be as long."""
        position = 0
        for start, length in extents:
            self.view[start : start + length] = data[position : position + length]
            position += length


def cut(extents: Sequence[Extent], offset: int, length: int) -> tuple[Extent, ...]:
    """Return the extents of `length` bytes from byte `offset` of `extents` on."""
    found = []
    for start, size in extents:
        if offset < size and length:
            used = min(size - offset, length)
            found.append((start + offset, used))
            length -= used
        offset = max(0, offset - size)
    return tuple(found)


def behind(views: list[memoryview], count: int) -> list[memoryview]:
    """Return the views without their first `count` bytes."""
    rest = []
    for view in views:
        if count < len(view):
            rest.append(view[count:])
        count = max(0, count - len(view))
    return rest


class Io:
    """One operation on one region: read into or write from `extents` of `memory`, flush, discard,
    zero.

    `bytes` is the length of a read or write and 0 for the rest. `fua`: a write is durable when it
    completes. `preflush`: before it begins, all that had completed on its device is made durable;
    where that fails nothing is written. (REQ_FUA and REQ_PREFLUSH, include/linux/blk_types.h.)
    """

    __slots__ = (
        "bytes",
        "context",
        "count",
        "device",
        "error",
        "extents",
        "fua",
        "memory",
        "notify",
        "op",
        "preflush",
        "sector",
    )

    def __init__(
        self,
        op: Op,
        region: IoRegion,
        memory: Memory | None = None,
        extents: Sequence[Extent] = (),
        notify: Callable[[Any], object] | None = None,
        *,
        fua: bool = False,
        preflush: bool = False,
        context: Any = None,
    ) -> None:
        self.op = op
        self.device: Device = region[0]
        self.sector = region[1]
        self.count = region[2]
        self.bytes = region[2] << 9 if op <= WRITE else 0
        self.memory = memory
        self.extents = extents
        self.notify = notify
        self.fua = fua
        self.preflush = preflush
        self.context = context
        self.error = 0

    @property
    def region(self) -> IoRegion:
        """The region as a value."""
        return IoRegion(self.device, self.sector, self.count)

    def __repr__(self) -> str:
        return f"<Io {self.op.name} {self.region} error={self.error}>"


class CopyIo:
    """Read `source` once into `extents`, then write that to every region of `dests`.

    `error` is the errno of the read; after a failed read nothing is written. `write_errors` maps
    the index of each destination that failed to its errno. Every region has the source's count.
    """

    op = COPY
    error = 0
    write_errors: dict[int, int] = {}  # noqa: RUF012 - replaced, never changed, by a request that fails

    def __init__(
        self,
        source: IoRegion,
        dests: Sequence[IoRegion],
        memory: Memory,
        extents: Sequence[Extent],
        notify: Callable[[Any], object],
    ) -> None:
        self.source = source
        self.dests = dests
        self.bytes = source[2] << 9
        self.memory = memory
        self.extents = extents
        self.notify = notify

    def reads(self) -> Sequence[Part]:
        """Return what is to be read first."""
        return (Part(self.source, self.extents),)

    def writes(self) -> Sequence[Part]:
        """Return what is to be written when all that has been read."""
        return [Part(dest, self.extents) for dest in self.dests]

    def write_failed(self, index: int, errno: int) -> None:
        """Record that destination `index` failed."""
        self.write_errors = {**self.write_errors, index: errno}

    def __repr__(self) -> str:
        dests = ", ".join(map(str, self.dests))
        return f"<CopyIo {self.source} to {dests} error={self.error} {self.write_errors}>"


class ListCopyIo(CopyIo):
    """A copy of many regions to many: `reads` and `writes` say which.

    `error` is the errno of a read that failed; `write_errors` has indices of `writes`.
    """


Request = Io | CopyIo
