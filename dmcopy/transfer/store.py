"""Where a copy keeps what it has done, so that another run can go on: two files.

FILE is ddrescue's map of the source. FILE.dests is JSON and says for each destination which
sectors it durably has, since a destination may have failed where the others did not. Each is
replaced as a whole, and FILE.dests first: whatever moment a kill or a power cut chooses, every
sector that is called done was flushed before.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final

from dmcopy.errors import DeviceError, MetadataError, UsageError
from dmcopy.ranges import RangeSet
from dmcopy.transfer import mapfile
from dmcopy.transfer.copy import Transfer
from dmcopy.transfer.destination import Destination, errno_name
from dmcopy.transfer.identity import identity_of, is_of, source_of
from dmcopy.transfer.mapfile import BAD, DONE, UNTRIED, UNTRIMMED, Block, MapFile
from dmcopy.units import SECTOR_SHIFT

SUFFIX: Final = ".dests"
_FORMAT: Final = "dmcopy destinations"
_VERSION: Final = 1


class Store:
    """The map file `path` and its companion. Raises UsageError, MetadataError, DeviceError."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.dests_path = path + SUFFIX
        self.exists = os.path.exists(path)
        self.fresh = not self.exists
        self._source: dict[str, Any] | None = None
        self._dests: list[dict[str, Any]] = []

    def load(self, transfer: Transfer, *, retry: bool = False) -> None:
        """Let `transfer` go on where the map ends; nothing happens when there is no map yet.

        `retry`: try the bad blocks again. Raises UsageError when the map is of another copy.
        """
        self.bind(transfer)
        if not self.exists:
            return
        if not os.path.exists(self.dests_path):
            raise UsageError(
                f"{self.path} has no {self.dests_path} beside it, so it does not say what each "
                f"destination has: give another --map, or remove it to begin again"
            )
        self.restore(transfer, _read(self.path), _read(self.dests_path), retry=retry)

    def save(self, transfer: Transfer) -> None:
        """Write both files. Raises OSError."""
        source, dests = self.dump(transfer)
        _replace(self.dests_path, dests)
        _replace(self.path, source)
        self.exists = True

    def bind(self, transfer: Transfer) -> None:
        """Note what is copied to where, by names that outlast a reboot."""
        self._source = source_of(transfer.plan.source)
        self._dests = [identity_of(dest) for dest in transfer.dests]

    def dump(self, transfer: Transfer) -> tuple[str, str]:
        """Return the texts of the two files, the map's first; `bind` comes before."""
        return mapfile.build(make_map(transfer)), json.dumps(self._describe(transfer)) + "\n"

    def restore(self, transfer: Transfer, source: str, dests: str, *, retry: bool = False) -> None:
        """Let `transfer` go on from the texts that `dump` made."""
        content = mapfile.parse(source)
        found = self._parse(dests)
        self._check(found, transfer)
        kept = self._match(found["destinations"], transfer.dests)
        for dest, state in zip(transfer.dests, kept, strict=True):
            dest.resume(_inward(state["written"], transfer.plan.block, dest.region.count))
        if not retry and transfer.plan.source is not None:
            _resume_bad(transfer, content, found.get("errors", []))

    def remove(self) -> None:
        """Remove both files, the map first."""
        for path in (self.path, self.dests_path):
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass

    def _parse(self, text: str) -> dict[str, Any]:
        try:
            found = json.loads(text)
            if found["format"] == _FORMAT and found["version"] == _VERSION:
                return dict(found)
        except (ValueError, KeyError, TypeError):
            pass
        raise MetadataError(
            f"{self.dests_path} is not what this dmcopy writes: remove it and {self.path} to begin "
            f"again"
        )

    def _check(self, found: dict[str, Any], transfer: Transfer) -> None:
        now = self._source
        if found["source"] == now and found["count"] == transfer.plan.count:
            return
        before = found["source"] or {"path": "zeroes"}
        if now is None or before.get("name") != now["name"]:
            what = f"a copy of {before['path']}"
        elif before["sectors"] != now["sectors"]:
            what = f"{before['path']} when it had {before['sectors']} sectors"
        else:
            what = f"sectors {before['from']}+{found['count']} of {before['path']}"
        raise UsageError(f"{self.path} is the map of {what}: give another --map for this copy")

    def _match(
        self, states: list[dict[str, Any]], dests: Sequence[Destination]
    ) -> list[dict[str, Any]]:
        """Return the state of each destination, in whatever order they are given this time."""
        left = list(states)
        matched = []
        for dest, now in zip(dests, self._dests, strict=True):
            state = next((state for state in left if is_of(state, now)), None)
            if state is None:
                raise UsageError(
                    f"{self.path} is the map of a copy to "
                    f"{', '.join(state['path'] for state in states)}, not to {dest.path} as it is "
                    f"now: give another --map, or remove this one to begin again"
                )
            left.remove(state)
            matched.append(state)
        if left:
            raise UsageError(
                f"{self.path} is the map of a copy that also goes to {left[0]['path']}: give the "
                f"same destinations, or another --map"
            )
        return matched

    def _describe(self, transfer: Transfer) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "source": self._source,
            "count": transfer.plan.count,
            "errors": [
                [bad.start, bad.end - bad.start, errno_name(bad.errno)] for bad in transfer.bad
            ],
            "destinations": [
                {
                    **identity,
                    "written": [[start, end - start] for start, end in dest.durable],
                    "failed": [
                        [start, end - start, errno_name(error)]
                        for start, end, error in dest.failures
                    ],
                }
                for dest, identity in zip(transfer.dests, self._dests, strict=True)
            ],
        }


def make_map(transfer: Transfer) -> MapFile:
    """Return the map of the source: + what every living destination has or will never have."""
    plan = transfer.plan
    base = plan.source.sector if plan.source else 0
    living = [dest for dest in transfer.dests if not dest.error] or transfer.dests
    settled = [_settled(dest, plan.count) for dest in living]
    bad, unread = transfer.bad.ranges(), transfer.unread.ranges()
    edges = {0, plan.count}
    edges |= {edge for ranges in (*settled, bad, unread) for pair in ranges for edge in pair}
    blocks = []
    for start, end in pairwise(sorted(edges)):
        if start in bad:
            status = BAD
        elif start in unread:
            status = UNTRIMMED
        else:
            status = DONE if all(start in ranges for ranges in settled) else UNTRIED
        blocks.append(Block(base + start << SECTOR_SHIFT, end - start << SECTOR_SHIFT, status))
    joined = mapfile.join(blocks)
    left = next((block.position for block in joined if block.status != DONE), None)
    return MapFile(
        joined,
        position=joined[-1].end if left is None else left,
        status=DONE if left is None else UNTRIED,
        comments=(" Mapfile. Created by dmcopy; what each destination has is in the .dests file",),
    )


def _settled(dest: Destination, count: int) -> RangeSet:
    """Return the offsets that need no more work; behind the end of a shorter range none do."""
    settled = dest.durable.copy()
    for start, end, _ in dest.failures:
        settled.add(start, end)
    settled.add(dest.region.count, count)
    return settled


def _inward(written: list[list[int]], block: int, count: int) -> RangeSet:
    """Return ranges shrunk to whole blocks: the blocks may be larger than they were."""
    found = RangeSet()
    for start, length in written:
        low, high = -(-start // block) * block, (start + length) // block * block
        found.add(max(0, low), min(high, count))
    return found


def _resume_bad(transfer: Transfer, content: MapFile, errors: list[list[Any]]) -> None:
    assert transfer.plan.source is not None
    base = transfer.plan.source.sector
    known = {start: getattr(errno, name, errno.EIO) for start, _, name in errors}
    for start, end in content.ranges(BAD):
        low, high = (start >> SECTOR_SHIFT) - base, (end >> SECTOR_SHIFT) - base
        transfer.bad.add(max(0, low), min(high, transfer.plan.count), known.get(low, errno.EIO))


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError as error:
        raise DeviceError(path, "read it", error.errno or 0) from error


def _replace(path: str, text: str) -> None:
    """Put `text` where `path` is, durably, so that at any moment there is the old or the new."""
    temporary = f"{path}.new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        with open(fd, "w", encoding="utf-8", closefd=False) as file:
            file.write(text)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(temporary, path)
    folder = os.open(os.path.dirname(os.path.realpath(path)), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
