"""The regions of a mirror that are not simply clean, and what state each is in.

    clean ⇄ dirty       a write begins; the last one under way has ended, and the log has noted it
    dirty → nosync      a write failed on some leg
    nosync → recovering → clean, or back to nosync
                        writes to it are delayed until it is over

Rules: drivers/md/dm-region-hash.c in 6.1 and 6.12. A region that is not here is in the state that
the log gives it. Each change of a state wakes the mirror's worker, which alone talks to the log.

Regions are recovered upwards, `max_recovery` at a time (MAX_RECOVERY in dm-raid1.c is 1). One that
waits for writes under way holds up those behind it, as it does in the kernel: a write that is held
until the device is suspended leaves the same regions out of sync, whatever `max_recovery` is.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable

from dmcopy.targets.base import Bio
from dmcopy.targets.dirty_log import CoreLog


class RegionState(enum.Enum):
    """What a region is in."""

    CLEAN = 0x01
    """In sync, and nothing is being written to it."""
    DIRTY = 0x02
    """In sync as far as is known, and being written to."""
    NOSYNC = 0x04
    """The legs may differ: only the default leg counts."""
    RECOVERING = 0x08
    """It is to be copied, as soon as the writes under way have ended."""


class Region:
    """A region that something happens to. `pending`: writes under way."""

    __slots__ = ("delayed", "number", "pending", "state")

    def __init__(self, number: int, state: RegionState) -> None:
        self.number = number
        self.state = state
        self.pending = 0
        self.delayed: list[Bio] = []

    def __repr__(self) -> str:
        return f"<Region {self.number} {self.state.name} pending={self.pending}>"


class RegionHash:
    """The regions in memory. `wake` wakes the worker; `dispatch` takes back delayed writes.

    `max_recovery`: the most regions that are recovered at a time.
    """

    def __init__(
        self,
        log: CoreLog,
        wake: Callable[[], object],
        dispatch: Callable[[list[Bio]], object],
        *,
        max_recovery: int = 1,
    ) -> None:
        self._log = log
        self._wake = wake
        self._dispatch = dispatch
        self._max_recovery = max_recovery
        self._regions: dict[int, Region] = {}
        self._clean: dict[int, Region] = {}
        self._quiesced: deque[Region] = deque()
        self._awaited: Region | None = None
        self._recovered: list[tuple[Region, bool]] = []
        self._tokens = 0
        self.recovering = 0
        self.flush_failure = False

    def state(self, number: int) -> RegionState:
        region = self._regions.get(number)
        if region is not None:
            return region.state
        return RegionState.CLEAN if self._log.in_sync[number] else RegionState.NOSYNC

    def begin_write(self, number: int) -> None:
        """Count a write that is about to go out; the log must be flushed before it does."""
        region = self._find(number)
        region.pending += 1
        if region.state is RegionState.CLEAN:
            region.state = RegionState.DIRTY
            self._clean.pop(number, None)
            self._log.mark(number)

    def end_write(self, number: int) -> None:
        """A write that was counted has ended, well or not."""
        region = self._regions[number]
        region.pending -= 1
        if region.pending:
            return
        if self.flush_failure:
            # A flush failed some time ago: this write may not be on every leg.
            was_recovering = region.state is RegionState.RECOVERING
            region.state = RegionState.NOSYNC
            if was_recovering:  # the kernel would wait for it for ever
                self._end_resync(region, False)
        elif region.state is RegionState.RECOVERING:
            self._awaited = None
            self._quiesced.append(region)
        elif region.state is RegionState.DIRTY:
            region.state = RegionState.CLEAN
            self._clean[number] = region
        self._wake()

    def delay(self, number: int, bio: Bio) -> None:
        """Keep a write back until the recovery of its region has ended."""
        self._find(number).delayed.append(bio)

    def mark_nosync(self, number: int) -> None:
        """A write to the region reached some legs and not others."""
        self._log.set_in_sync(number, False)
        region = self._find(number)
        was_recovering = region.state is RegionState.RECOVERING
        region.state = RegionState.NOSYNC
        self._clean.pop(number, None)
        if was_recovering:
            self._end_resync(region, False)
            self._wake()

    def update(self, *, errors_handled: bool) -> None:
        """Tell the log what became clean, was recovered, or was not; it is to be flushed then.

        Without `errors_handled` a failed recovery counts as a good one, as it always did in the
        kernel, but for the clean bit.
        """
        clean, self._clean = self._clean, {}
        recovered, self._recovered = self._recovered, []
        for number in clean:
            del self._regions[number]
        for region, well in recovered:
            del self._regions[region.number]
            if well:
                self._log.clear(region.number)
            self._end_resync(region, well or not errors_handled)
        for number in clean:
            self._log.clear(number)

    def start_recovery(self) -> None:
        """Let recoveries begin, `max_recovery` at a time."""
        self._tokens += self._max_recovery
        self._wake()

    def stop_recovery(self) -> None:
        """Let no further recovery begin; those under way are left to end (`recovering`)."""
        self._tokens -= self._max_recovery

    def prepare_recovery(self) -> None:
        """Choose the next regions to be recovered, as many as may begin."""
        while self._tokens > 0 and self._awaited is None:
            number = self._log.next_resync()
            if number is None:
                break
            self._tokens -= 1
            self.recovering += 1
            region = self._find(number)
            region.state = RegionState.RECOVERING
            self._clean.pop(number, None)
            if region.pending:
                self._awaited = region
            else:
                self._quiesced.append(region)

    def next_quiesced(self) -> Region | None:
        """Return a region that can be recovered now."""
        return self._quiesced.popleft() if self._quiesced else None

    def end_recovery(self, region: Region, *, well: bool) -> None:
        """The copy of a region has ended."""
        self._recovered.append((region, well))
        self._wake()

    def _find(self, number: int) -> Region:
        region = self._regions.get(number)
        if region is None:
            region = self._regions[number] = Region(number, self.state(number))
            if region.state is RegionState.CLEAN:
                self._clean[number] = region
        return region

    def _end_resync(self, region: Region, well: bool) -> None:
        if self._awaited is region:  # a write or a flush failed before it could begin
            self._awaited = None
        self._log.set_in_sync(region.number, well)
        delayed, region.delayed = region.delayed, []
        self._dispatch(delayed)
        self.recovering -= 1
        self._tokens += 1
