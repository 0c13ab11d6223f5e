"""What came of a transfer: for programs as JSON, for the shell as an exit code."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from dmcopy.errors import ExitCode
from dmcopy.io.region import Device, IoRegion
from dmcopy.ranges import RangeSet
from dmcopy.transfer.copy import Transfer
from dmcopy.transfer.destination import Destination, FailedRange, errno_name
from dmcopy.transfer.settings import Settings
from dmcopy.units import SECTOR_SHIFT

if TYPE_CHECKING:
    from dmcopy.transfer.verify import Verified


class TransferOutcome:
    """A transfer that has ended. `verified` is None without a verification.

    `map_path` is "" without a map, `map_error` why it could not be saved, `resumed` the sectors
    that an earlier run had written, all destinations together, `created` the files that were made.
    """

    map_path = ""
    map_error = ""
    resumed = 0

    def __init__(
        self,
        transfer: Transfer,
        settings: Settings,
        verified: Verified | None = None,
        *,
        created: list[str] | None = None,
    ) -> None:
        self.transfer = transfer
        self.settings = settings
        self.verified = verified
        self.created = [] if created is None else created

    @property
    def interrupted(self) -> bool:
        """Whether it was ended from outside, in the copy or in the verification."""
        verified = self.verified
        return self.transfer.interrupted or (verified is not None and verified.interrupted)

    @property
    def nothing_written(self) -> bool:
        """Whether no sector reached any destination."""
        return not any(dest.sectors for dest in self.transfer.dests)

    def buffered(self) -> dict[str, str]:
        """Return which devices were not read or written past the page cache, and why."""
        devices = [region.device for region in self.transfer.plan.regions]
        reasons = {device.path: _cache(device)["buffered_because"] for device in devices}
        return {path: reason for path, reason in reasons.items() if reason}

    def is_ok(self, index: int) -> bool:
        """Whether destination `index` has every sector that could be read, as far as is known."""
        verified = self.verified
        if verified and (verified.mismatches[index] or verified.unreadable[index]):
            return False
        return self.transfer.dests[index].ok

    @property
    def exit_code(self) -> ExitCode:
        """The exit code that says this."""
        transfer = self.transfer
        if self.interrupted:
            return ExitCode.INTERRUPTED
        if self.verified and any(self.verified.mismatches):
            return ExitCode.MISMATCH
        if transfer.source_error or self.nothing_written:
            return ExitCode.FAILED
        if all(dest.error for dest in transfer.dests):
            return ExitCode.FAILED
        if transfer.bad or not all(self.is_ok(index) for index in range(len(transfer.dests))):
            return ExitCode.PARTIAL
        return ExitCode.OK

    def as_dict(self) -> dict[str, Any]:
        """Return everything for --json; positions are sectors of the devices themselves."""
        transfer, settings = self.transfer, self.settings
        size = round(self.moved() * len(transfer.dests))
        return {
            "ok": self.exit_code == ExitCode.OK,
            "exit_code": int(self.exit_code),
            "interrupted": self.interrupted,
            "source": self._source(transfer.plan.source),
            "destinations": [self._dest(i, dest) for i, dest in enumerate(transfer.dests)],
            "sectors": transfer.plan.count,
            "bytes_written": size,
            "seconds": round(transfer.seconds, 6),
            "bytes_per_second": round(self.rate()),
            "backend": settings.backend,
            "depth": settings.depth,
            "piece_sectors": settings.piece,
            "pages": settings.pages,
            "map": self.map_path or None,
            "map_error": self.map_error or None,
            "created": self.created,
        }

    def rate(self) -> float:
        """Return how fast the range was copied, in bytes per second to each destination."""
        return self.moved() / self.transfer.seconds if self.transfer.seconds else 0.0

    def moved(self) -> float:
        """Return how many bytes this run has copied to each destination, on average."""
        dests = self.transfer.dests
        written = sum(dest.sectors for dest in dests) - self.resumed
        return (written << SECTOR_SHIFT) / len(dests)

    def _source(self, source: IoRegion | None) -> dict[str, Any] | None:
        if source is None:
            return None
        failed = sorted([*self.transfer.bad, *self.transfer.unread])
        return {
            "path": source.device.path,
            "from": source.sector,
            "count": source.count,
            "read_errors": _failures(failed, source.sector),
            **_cache(source.device),
        }

    def _dest(self, index: int, dest: Destination) -> dict[str, Any]:
        start = dest.region.sector
        facts = {
            "path": dest.path,
            "ok": self.is_ok(index),
            "to": start,
            "count": dest.region.count,
            "sectors_written": dest.sectors,
            "error": errno_name(dest.error) if dest.error else None,
            "failed_in": dest.cause or None,
            "failed": _failures(dest.failures, start),
            **_cache(dest.region.device),
        }
        if self.verified:
            facts["verified"] = None if dest.error else self.verified.is_good(index)
            facts["mismatches"] = _ranges(self.verified.mismatches[index], start)
            facts["unreadable"] = _failures(self.verified.unreadable[index], start)
        return facts


def _failures(failures: Iterable[FailedRange], base: int) -> list[dict[str, Any]]:
    return [
        {"sector": base + start, "count": end - start, "errno": errno_name(error)}
        for start, end, error in failures
    ]


def _ranges(ranges: RangeSet, base: int) -> list[dict[str, int]]:
    return [{"sector": base + start, "count": end - start} for start, end in ranges]


def _cache(device: Device) -> dict[str, Any]:
    """Say whether I/O goes past the page cache, and why not."""
    direct = getattr(device, "direct", True)
    return {"direct": direct, "buffered_because": getattr(device, "direct_reason", "") or None}
