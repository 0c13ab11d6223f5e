"""mirror: the same data on two to nine legs (drivers/md/dm-raid1.c, 6.1 and 6.12).

Writes go to every leg, reads to one. What differs between the legs is tracked by region
(`region_hash`, `dirty_log`) and recovered by copying the default leg to the others with kcopyd.
"""

from __future__ import annotations

import contextlib
from typing import ClassVar, NamedTuple

from dmcopy import table as lines
from dmcopy.errors import ClosedError, DeadlineError
from dmcopy.io.request import Op
from dmcopy.ondisk.mirror_log import region_count
from dmcopy.table import TableLine
from dmcopy.table.mirror import CoreLog as CoreLogWords
from dmcopy.table.mirror import DiskLog as DiskLogWords
from dmcopy.targets.base import (
    KILL,
    REMAPPED,
    SUBMITTED,
    Bio,
    Host,
    Map,
    Target,
    TargetError,
    register,
)
from dmcopy.targets.dirty_log import REFUSED, CoreLog, DiskLog
from dmcopy.targets.mirror_legs import Leg, LegError, Legs
from dmcopy.targets.mirror_set import MirrorSet
from dmcopy.targets.work import TIMEOUT_SECONDS, wait_for


class DirectRead(NamedTuple):
    """The `data` of a read that went straight to a leg: where it can be tried again from."""

    leg: Leg
    sector: int


@register
class Mirror(Target):
    """`mirror <log> <#log words> <log words> <#legs> <device> <offset>... [<#features> ...]`.

    `legs`: their health, and which is the default one. `work`: what is under way, and held.

    For mirrors of your own: `legs_class` says which leg is read, `core_log` and `disk_log` when a
    log writes.
    """

    value: lines.Mirror
    name: ClassVar[str] = "mirror"
    version: ClassVar = (1, 14, 0)
    flush_bios = 1
    discard_bios = 1
    maps_ranges = True
    wants_end_io = True
    legs_class: ClassVar[type[Legs]] = Legs
    core_log: ClassVar[type[CoreLog]] = CoreLog
    disk_log: ClassVar[type[DiskLog]] = DiskLog

    def __init__(self, line: TableLine, host: Host) -> None:
        super().__init__(line, host)
        words = self.value.log
        if not isinstance(words, CoreLogWords | DiskLogWords):
            raise TargetError(REFUSED)
        self.max_io_len = words.region_size
        self._regions = region_count(self.length, words.region_size)
        self.legs = self._open_legs()
        self._log = self._open_log(words)
        # With nosync there is no sync to complete, so there is no event of it.
        self.legs.in_sync = self._log.sync_count == self._regions
        self.work = MirrorSet(
            host,
            self.legs,
            self._log,
            begin=self.begin,
            length=self.length,
            region_size=words.region_size,
            features=self.value.features or (),
        )

    def map(self, bio: Bio) -> Map:
        """Queue a write; send a read to a leg if its region is in sync, else queue it."""
        region = self.work.region_of(bio.sector)
        if bio.op != Op.READ:
            bio.data = region
            self.work.queue_write(bio)
            return SUBMITTED
        if not self._log.in_sync[region]:
            self.work.queue_read(bio)
            return SUBMITTED
        leg = self.legs.choose()
        if leg is None:
            return KILL
        bio.data = DirectRead(leg, bio.sector)
        bio.device = leg.device
        bio.sector += leg.offset - self.begin
        return REMAPPED

    def end_io(self, bio: Bio) -> bool:
        """Count the end of a write; try a direct read that failed on another leg."""
        if bio.op == Op.WRITE:
            self.work.hash.end_write(bio.data)
        elif bio.op == Op.READ and bio.error and bio.data is not None:
            leg, sector = bio.data
            self.legs.fail(leg, LegError.READ)
            if self.work.may_read_again(sector):
                bio.data = None
                bio.sector = sector
                self.work.queue_read(bio)
                return False
        return True

    def status(self) -> str:
        """Return the legs, how much is in sync, a letter for each leg, and the log's words."""
        names = " ".join(self.host.label(leg.device) for leg in self.legs)
        sync = f"{self._log.sync_count}/{self._regions}"
        return f"{len(self.legs)} {names} {sync} 1 {self.legs.letters} {self._log.status()}"

    def presuspend(self) -> None:
        """End what is held, and wait for the recoveries under way."""
        self.work.suspend()
        try:
            self._wait_idle("the recovery of a region")
        except DeadlineError:
            self.presuspend_undo()
            raise

    def presuspend_undo(self) -> None:
        """Recover again, and hold what must wait."""
        self.work.resume()

    def postsuspend(self) -> None:
        """Write the log a last time."""
        self._wait_idle("the last work")
        with contextlib.suppress(ClosedError):
            wait_for(self.host.reactor, self._log.flush(last=True), f"the log of {self.host.name}")

    def resume(self) -> None:
        """Read the log, and recover what it calls dirty."""
        wait_for(self.host.reactor, self._log.resume(), f"the log of {self.host.name}")
        self.work.resume()

    def destroy(self) -> None:
        """Free what the log and the recovery hold."""
        self._wait_idle("the last work")
        self.work.close()
        self._log.close()

    def failed(self) -> None:
        """Count as a mirror all of whose legs have failed: no write reaches them any more."""
        for leg in self.legs:
            self.legs.fail(leg, LegError.WRITE)

    def _open_legs(self) -> Legs:
        legs = []
        for words in self.value.legs:
            device = self.host.open(words.device)
            self.host.use(device, words.offset, self.length)
            legs.append(Leg(device, words.offset))
        places = [leg.region(0, self.length) for leg in legs]
        for number, place in enumerate(places):
            for other in places[:number]:
                if place.overlaps(other):  # the kernel takes it, and corrupts what is there
                    raise TargetError(f"two legs are the same place: {place} and {other}")
        features = self.value.features or ()
        return self.legs_class(
            self.host.reactor,
            legs,
            self.host.event,
            handle_errors="handle_errors" in features,
            keep_log="keep_log" in features,
        )

    def _open_log(self, words: CoreLogWords | DiskLogWords) -> CoreLog:
        if isinstance(words, CoreLogWords):
            return self.core_log(self._regions, words.sync)
        device = self.host.open(words.device)
        return self.disk_log(
            self.host.reactor,
            device,
            self.host.label,
            self._regions,
            words.sync,
            self.legs.flush,
            self.host.event,
        )

    def _wait_idle(self, waiting_for: str) -> None:
        with contextlib.suppress(
            ClosedError
        ):  # then there is none any more, whatever its counts say
            self.host.reactor.run_until(
                lambda: self.work.idle, TIMEOUT_SECONDS, f"{waiting_for} of {self.host.name}"
            )
