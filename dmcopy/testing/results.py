"""The file of a campaign: which seeds were played and what came of them, a line of JSON a batch.

    {"campaign": "tests.power:cut", "options": {}}
    {"seeds": [[0, 100]], "counts": {"cuts": 81234}, "failures": {}, "seconds": 3.1}

A line is durable before the next batch of the same worker begins, and a line that is not whole, as
after a power cut, is as if it were not there: its seeds are played again.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Mapping
from typing import Any

from dmcopy.closing import Closing
from dmcopy.errors import BusyError, DeviceError, MetadataError, UsageError
from dmcopy.ranges import RangeSet
from dmcopy.testing.seeds import Played


class Results(Closing):
    """What is known of a campaign; with a `path` also in that file, which is made or continued.

    Attributes:
        done: the seeds that were played.
        counts, failures, seconds: as in `Played`, of all of them.

    Raises UsageError for a file of another campaign, MetadataError for one of none, BusyError for
    one that is being written to, DeviceError.
    """

    def __init__(self, path: str | None, campaign: str, options: Mapping[str, int]) -> None:
        self.done = RangeSet()
        self.counts: dict[str, int] = {}
        self.failures: dict[int, str] = {}
        self.seconds = 0.0
        self._path = path
        self._fd = -1
        if path is None:
            return
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise BusyError(path, ["another campaign"]) from None
        except OSError as error:
            raise DeviceError(path, "keep results in it", error.errno or 0) from None
        try:
            if not stat.S_ISREG(os.fstat(self._fd).st_mode):  # it may have no end
                raise UsageError(f"{path} is no file: results are read again, so name one")
            self._continue({"campaign": campaign, "options": dict(options)})
        except OSError as error:
            self.close()
            raise DeviceError(path, "read it", error.errno or 0) from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def add(self, played: Played) -> None:
        """Add what came of a batch; durable on return. Raises DeviceError."""
        ranges = RangeSet((seed, seed + 1) for seed in played.seeds)
        self._take(ranges, played.counts, played.failures, played.seconds)
        if self._path is not None:
            self._append(
                {
                    "seeds": list(ranges),
                    "counts": played.counts,
                    "failures": {str(seed): text for seed, text in played.failures.items()},
                    "seconds": round(played.seconds, 3),
                }
            )

    def _continue(self, head: dict[str, Any]) -> None:
        with open(self._fd, "rb", closefd=False) as file:
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        if not whole and content[:1] not in (b"", b"{"):
            raise MetadataError(f"{self._path} is no file of a campaign: it would be written to")
        lines = [self._parse(line, number) for number, line in enumerate(whole.splitlines(), 1)]
        if lines and "campaign" not in lines[0]:
            raise MetadataError(f"{self._path}: line 1 names no campaign: it is not written to")
        if lines and lines[0] != head:
            raise UsageError(
                f"{self._path} is of another campaign, {lines[0]['campaign']} with "
                f"{lines[0].get('options')}: name another file"
            )
        for number, line in enumerate(lines[1:], 2):
            try:
                failures = {int(seed): str(text) for seed, text in line["failures"].items()}
                ranges = RangeSet((int(start), int(end)) for start, end in line["seeds"])
                counts = {str(key): int(count) for key, count in line["counts"].items()}
                self._take(ranges, counts, failures, float(line["seconds"]))
            except (ValueError, TypeError, LookupError, AttributeError, OverflowError):
                raise self._strange(number) from None
        os.ftruncate(self._fd, len(whole))
        if not lines:
            self._append(head)

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            value = json.loads(line)
            if not isinstance(value, dict):
                raise ValueError
        except (ValueError, RecursionError):
            raise self._strange(number) from None
        return value

    def _strange(self, number: int) -> MetadataError:
        return MetadataError(f"{self._path}: line {number} is not a campaign's: name another file")

    def _take(
        self, ranges: RangeSet, counts: Mapping[str, int], failures: Mapping[int, str], used: float
    ) -> None:
        for start, end in ranges:
            self.done.add(start, end)
        for key, number in counts.items():
            self.counts[key] = self.counts.get(key, 0) + number
        self.failures |= failures
        self.seconds += used

    def _append(self, value: dict[str, Any]) -> None:
        view = memoryview(json.dumps(value).encode() + b"\n")
        try:
            while view:
                view = view[os.write(self._fd, view) :]
            os.fdatasync(self._fd)
        except OSError as error:
            raise DeviceError(str(self._path), "append results", error.errno or 0) from None
