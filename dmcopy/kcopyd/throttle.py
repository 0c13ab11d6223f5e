"""A limit on the share of time in which copies have I/O in flight.

The kernel's rule (dm-kcopyd.c, io_job_start and io_job_finish; module parameters such as
dm_mirror's raid1_resync_throttle): over a window that forgets by halves, the time with I/O in
flight may be at most `percent` of the time that passed; otherwise the next request waits 100 ms, at
most ten times, so that no setting can stop a copy for good. One throttle may be shared by several
clients.
"""

from __future__ import annotations

from dmcopy.errors import UsageError

SLEEP_SECONDS = 0.1
MAX_SLEEPS = 10
# The kernel halves at 1 << SHIFT_HZ jiffies, the power of two at or above HZ.
WINDOW_SECONDS = 1.024


class Throttle:
    """At most `percent` (1-100; 100: no limit) of the time has I/O in flight.

    Clients count their requests in `in_flight`. Raises UsageError for what is no percentage.
    """

    def __init__(self, percent: int = 100) -> None:
        if not 1 <= percent <= 100:
            raise UsageError(f"a throttle is a percentage from 1 to 100, not {percent}")
        self.percent = percent
        self.in_flight = 0
        self._busy = 0.0
        self._total = 0.0
        self._last: float | None = None

    def must_wait(self, now: float, slept: int) -> bool:
        """Return whether a request must wait SLEEP_SECONDS more, having waited `slept` times."""
        if self.percent >= 100:
            return False
        self.account(now)
        return self._busy > self.percent * self._total / 100 and slept < MAX_SLEEPS

    def account(self, now: float) -> None:
        """Book the time since the last call; call it before `in_flight` changes."""
        passed = 0.0 if self._last is None else now - self._last
        self._last = now
        if self.in_flight:
            self._busy += passed
        self._total += passed
        if self._total >= WINDOW_SECONDS:
            self._busy, self._total = self._busy / 2, self._total / 2
