"""I/O statistics of a range of a mapped device: the kernel's @stats messages.

Rules: Documentation/admin-guide/device-mapper/statistics.rst of 6.12. Only bio-based devices count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self

from dmcopy.errors import UsageError

PROGRAM_ID = "dmcopy"


class TakesMessages(Protocol):
    """What messages are sent to: a `DmDevice`."""

    def message(self, *words: str, sector: int = 0) -> str:
        """Send words to the target at `sector`; return its answer."""


@dataclass(frozen=True, slots=True)
class Counters:
    """What happened to an area since the region was made or cleared. Times are in milliseconds."""

    start: int
    length: int
    reads: int
    reads_merged: int
    sectors_read: int
    read_ms: int
    writes: int
    writes_merged: int
    sectors_written: int
    write_ms: int
    in_flight: int
    busy_ms: int
    weighted_ms: int
    total_read_ms: int
    total_write_ms: int
    histogram: tuple[int, ...] = ()

    @classmethod
    def parse(cls, line: str) -> Self:
        """Return the counters of `start+length` and 13 numbers, and a histogram if there is one."""
        head, *words = line.split()
        start, _, length = head.partition("+")
        numbers = [int(word) for word in words[:13]]
        histogram = tuple(int(part) for part in words[13].split(":")) if len(words) > 13 else ()
        return cls(int(start), int(length), *numbers, histogram)  # type: ignore[arg-type, call-arg]


@dataclass(frozen=True, slots=True)
class StatsRegion:
    """A range of `device` whose I/O the engine counts, in areas of equal size."""

    device: TakesMessages
    id: int

    @classmethod
    def create(
        cls,
        device: TakesMessages,
        start: int | None = None,
        length: int | None = None,
        *,
        areas: int = 1,
        histogram_ms: tuple[int, ...] = (),
    ) -> Self:
        """Begin to count: from sector `start` on, `length` sectors, divided into `areas`.

        Without `start`, the whole device. `histogram_ms`: the bounds between latency classes.
        """
        if (start is None) != (length is None):
            raise UsageError("statistics need both a start and a length, or neither")
        place = "-" if start is None else f"{start}+{length}"
        options = ["1", f"histogram:{','.join(map(str, histogram_ms))}"] if histogram_ms else []
        words = ["@stats_create", place, f"/{areas}", *options, PROGRAM_ID]
        return cls(device, int(device.message(*words)))

    def read(self, *, clear: bool = False) -> tuple[Counters, ...]:
        """Return the counters of each area; `clear` sets them to zero in the same step."""
        answer = self.device.message(
            "@stats_print_clear" if clear else "@stats_print", str(self.id)
        )
        return tuple(Counters.parse(line) for line in answer.splitlines())

    def delete(self) -> None:
        self.device.message("@stats_delete", str(self.id))


def regions(device: TakesMessages, program_id: str = "") -> dict[int, str]:
    """Return the regions of `device` by number, as the engine describes them."""
    words = [program_id] if program_id else []
    answer = device.message("@stats_list", *words)
    found = (line.partition(":") for line in answer.splitlines())
    return {int(number): text.strip() for number, _, text in found}
