"""The dirty logs of dm-mirror: which regions are in sync, and which must be copied at a resume.

Rules: drivers/md/dm-log.c in 6.1 and 6.12. Of each region a log knows whether it is in sync now,
whether it is being recovered, and whether it is clean: in sync, with nothing being written to it.
The last is what a disk log keeps. A bit that becomes clean reaches the disk only after the legs
were flushed; one that becomes dirty is durable before the write may go out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from dmcopy.io.reactor import Reactor
from dmcopy.io.region import Device, IoRegion
from dmcopy.io.request import Io, Memory, Op
from dmcopy.ondisk.bitset import LONG, Bitset
from dmcopy.ondisk.mirror_log import OFFSET, log_bytes, resume
from dmcopy.targets.base import TargetError
from dmcopy.targets.work import Requests, Routine
from dmcopy.units import PAGE_SIZE, SECTOR_SHIFT

REFUSED: Final = "Error creating mirror dirty log"
"""What the kernel says of every log that it refuses; why is only in its own log."""


class CoreLog:
    """A log in memory: it begins with nothing in sync, or with everything after `nosync`.

    `sync` is the word of the table, None without one.
    """

    def __init__(self, regions: int, sync: str | None) -> None:
        self.regions = regions
        self.sync = sync
        self.in_sync = Bitset(0).resized(regions, sync == "nosync")
        self.recovering = Bitset(regions)
        self.sync_count = regions if sync == "nosync" else 0
        self._search = 0

    async def resume(self) -> None:
        """Look for regions to recover from the first one on again: the mirror is resumed."""
        self._search = 0

    async def flush(self, *, last: bool = False) -> bool:
        """Make what changed durable; `last`: before a suspend. Returns whether that worked."""
        del last
        return True

    def mark(self, region: int) -> None:
        """A write to the region begins."""

    def clear(self, region: int) -> None:
        """The region is in sync, and nothing is being written to it."""

    def next_resync(self) -> int | None:
        """Return the next region that is to be recovered; each is tried once per resume."""
        while self._search < self.regions:
            region = self.in_sync.next_zero(self._search)
            self._search = region + 1
            if region < self.regions and not self.recovering[region]:
                self.recovering[region] = True
                self.touched_cleaned()
                return region
        return None

    def set_in_sync(self, region: int, value: bool) -> None:
        """The recovery of a region ended, well or not; or it fell out of sync."""
        self.recovering[region] = False
        self.touched_dirtied()
        if value:
            self.in_sync[region] = True
            self.touched_cleaned()
            self.sync_count += 1
        elif self.in_sync[region]:
            self.in_sync[region] = False
            self.sync_count -= 1

    def touched_cleaned(self) -> None:
        """A bit of any of the three sets became 1 (log_set_bit): a flush has work to do."""

    def touched_dirtied(self) -> None:
        """A bit of any of the three sets became 0 (log_clear_bit)."""

    def status(self) -> str:
        """Return the log's words in a status line."""
        return "1 core"

    def close(self) -> None:
        """Give back what it holds."""


class DiskLog(CoreLog):
    """A log on a device: read at each resume, written whole whenever it changed.

    `flush_legs` flushes the legs and returns whether all of them did; `label` returns what status
    lines call a device now. `failed` and `flush_failed` (of the log's device) and
    `legs_flush_failed` stay until the table goes. Raises TargetError when the device is too small.
    """

    def __init__(
        self,
        reactor: Reactor,
        device: Device,
        label: Callable[[Device], str],
        regions: int,
        sync: str | None,
        flush_legs: Callable[[], Routine[bool]],
        event: Callable[[], object],
    ) -> None:
        super().__init__(regions, sync)
        size = log_bytes(regions, device.logical_block_size)
        if size > device.sectors << SECTOR_SHIFT:
            why = f"log device {device.path} too small: need {size} bytes"
            raise TargetError(f"{REFUSED}: {why}")
        self.clean = Bitset(0).resized(regions, True)
        self.failed = False
        self.flush_failed = False
        self.legs_flush_failed = False
        self._device = device
        self._label = label
        self._reactor = reactor
        self._flush_legs = flush_legs
        self._event = event
        self._size = size
        self._memory = Memory(-(-size // PAGE_SIZE))
        self._cleaned = False
        self._dirtied = False

    async def resume(self) -> None:
        """Take what is on the disk for the truth, and write it back as it is understood."""
        error = await self._transfer(Op.READ)
        found = None if error else bytes(self._memory.view[: self._size])
        log, grown, failed = resume(found, self.regions, self.sync)
        self._memory.view[: self._size] = log.build(found or b"", self._device.logical_block_size)
        self.clean = log.clean
        self.in_sync = log.clean.copy()
        self.sync_count = self.in_sync.count()
        self._search = 0
        # New regions, and the bits behind the last one, are touched as by any other change.
        if grown and self.sync == "nosync":
            self._cleaned = True
        elif grown:
            self._dirtied = True
        if self.regions % LONG:
            self._dirtied = True
        if failed:
            self._fail()
        if not await self._write() or not await self._flush_device():
            self._fail()

    def clean_bits_are_due(self) -> bool:
        """Whether bits that became clean are to be written by the flush that asks.

        The kernel's log does not wait. One of your own may: until then a crash has more regions
        copied than differ. Bits that became dirty are written in any case, and with them these.
        """
        return True

    async def flush(self, *, last: bool = False) -> bool:
        """Write the log if it changed: the legs are flushed before a bit becomes clean on disk."""
        if not (self._dirtied or (self._cleaned and (last or self.clean_bits_are_due()))):
            return True
        if self._cleaned and not await self._flush_legs():
            # What had been written since the last flush may be lost on one leg and not on another,
            # and nothing says where: from now on no region is ever clean.
            self.legs_flush_failed = True
            self.clean.fill(0, self.regions, False)
            self._dirtied = True
        if not await self._write():
            self._fail()
            return False
        well = True
        if self._dirtied:
            well = await self._flush_device()
            self._dirtied = not well
            if not well:
                self._fail()
        self._cleaned = False
        return well

    def mark(self, region: int) -> None:
        """Clear the clean bit, to be flushed before the write goes out."""
        self.clean[region] = False
        self._dirtied = True

    def clear(self, region: int) -> None:
        """Set the clean bit; it reaches the disk with a later flush."""
        if not self.legs_flush_failed:
            self.clean[region] = True
            self._cleaned = True

    def touched_cleaned(self) -> None:
        """The kernel does not tell the sets apart: any bit that is set gives a flush work."""
        self._cleaned = True

    def touched_dirtied(self) -> None:
        """The same for any bit that is cleared."""
        self._dirtied = True

    def status(self) -> str:
        """Return the device and its letter: A alive, D failed, F a flush of it failed."""
        letter = "F" if self.flush_failed else "D" if self.failed else "A"
        return f"3 disk {self._label(self._device)} {letter}"

    def close(self) -> None:
        """Free the buffer; no I/O may be in flight."""
        self._memory.close()

    def _fail(self) -> None:
        if not self.failed:
            self.failed = True
            self._event()

    async def _write(self) -> bool:
        bits = self.clean.data
        self._memory.view[OFFSET : OFFSET + len(bits)] = bits
        return not await self._transfer(Op.WRITE)

    async def _transfer(self, op: Op) -> int:
        region = IoRegion(self._device, 0, self._size >> SECTOR_SHIFT)
        (error,) = await Requests(self._reactor, [Io(op, region, self._memory, [(0, self._size)])])
        return error

    async def _flush_device(self) -> bool:
        (error,) = await Requests(self._reactor, [Io(Op.FLUSH, IoRegion(self._device, 0, 0))])
        if error:
            self.flush_failed = True
        return not error
