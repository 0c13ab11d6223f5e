"""Where a copy keeps what it has done, so that another run can resume: two files.

FILE is ddrescue's map of the source. FILE.dests is JSON and says for each destination which
sectors it durably has, since a destination may have failed where the others did not. Each is
replaced as a whole. Whatever moment a kill or a power cut chooses,

- every sector that is called done was flushed before;
- what the map calls done, FILE.dests knows of: it goes first where more is done than before, and
  last where it may be less, at the beginning of a run whose destination is a new file;
- a companion without a map is nothing that this left: it is written last, and removed first.

So what only the map calls done was rescued by another program, ddrescue, which continued it or
began it. Where to, a map does not say: the user has to (`trust`). A map that calls nothing done
needs no trust.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection
from typing import Final

from dmcopy.atomic import regular_file, replace_file
from dmcopy.errors import DeviceError, MetadataError, UsageError
from dmcopy.transfer import mapfile, state
from dmcopy.transfer.copy import Transfer
from dmcopy.transfer.identity import identify
from dmcopy.transfer.mapfile import BAD, DONE, Block, MapFile
from dmcopy.transfer.mapping import extent, inward, make_map, offsets_of
from dmcopy.transfer.matching import Matching
from dmcopy.transfer.state import DestState, Endpoint, TransferState

SUFFIX: Final = ".dests"
_MOST_BYTES: Final = 1 << 28  # a map of two million blocks; a longer file is an image, not a map


class StateStore:
    """The map file `path` and its companion.

    `trust`: what the map calls done, every destination has, whatever is known of them. Raises
    UsageError for a companion without a map, and for what is no regular file; DeviceError.
    """

    def __init__(self, path: str, *, trust: bool = False) -> None:
        self.path = path
        self.dests_path = path + SUFFIX
        self.fresh = not _is_there(path)
        self._saved = False
        self._trust = trust
        self._source: Endpoint | None = None
        self._dests: list[Endpoint] = []
        self._created: Collection[str] = ()
        self._around: list[Block] = []
        if _is_there(self.dests_path) and self.fresh:
            raise UsageError(
                f"{self.dests_path} is there without a map {path}: give another --map, or remove it"
            )

    def load(self, transfer: Transfer, *, retry: bool, created: Collection[str] = ()) -> None:
        """Let `transfer` resume where the map ends; nothing happens when there is no map yet.

        `retry`: try the bad blocks again. `created`: destinations that are new, and so have
        nothing. Raises UsageError when the map is of another copy, MetadataError, DeviceError.
        """
        self.bind(transfer, created)
        if not self.fresh:
            dests = _read(self.dests_path) if _is_there(self.dests_path) else None
            self.restore(transfer, _read(self.path), dests, retry=retry)

    def save(self, transfer: Transfer) -> None:
        """Write both files. Raises DeviceError, and UsageError when one is no file any more."""
        source, dests = self.dump(transfer)
        files = [(self.dests_path, dests), (self.path, source)]
        for path, text in files if self._saved else reversed(files):
            try:
                replace_file(path, os.fsencode(text))
            except OSError as error:
                raise DeviceError(path, "save the map", error.errno or 0) from error
        self._saved = True

    def remove(self) -> None:
        """Remove both files, which were not there before this copy."""
        for path in (self.dests_path, self.path):
            try:
                os.unlink(os.path.realpath(path))  # a link that led nowhere was there before
            except FileNotFoundError:
                pass

    def bind(self, transfer: Transfer, created: Collection[str] = ()) -> None:
        """Note source and destinations, by names that outlast a reboot."""
        self._created = created
        plan = transfer.plan
        regions = (*plan.dests, *([plan.source] if plan.source else []))
        places = [
            Endpoint(
                region.device.path, identify(region.device), region.device.sectors, region.sector
            )
            for region in regions
        ]
        self._dests = places[: len(plan.dests)]
        self._source = places[-1] if plan.source else None

    def dump(self, transfer: Transfer) -> tuple[str, str]:
        """Return the texts of the two files, the map's first; `bind` comes before."""
        content = make_map(transfer, self._around)
        return mapfile.build(content), state.build(self._describe(transfer)) + "\n"

    def restore(self, transfer: Transfer, source: str, dests: str | None, *, retry: bool) -> None:
        """Let `transfer` resume from what `dump` made, or from a map without companion."""
        content, plan = _parse(source, self.path), transfer.plan
        done = offsets_of(content, DONE, plan)
        matching = Matching(
            self.path, self._source, self._dests, plan.count, self._created, self._trust
        )
        if dests is None:
            found, had = None, matching.without_states(done)
        else:
            found = state.parse(dests, self.dests_path)
            had = matching.with_states(found, done)
        for dest, has in zip(transfer.dests, had, strict=True):
            dest.resume(inward(has, plan.block, dest.region.count))
        if not retry and plan.source is not None:
            errors = {start: number for start, _, number in found.errors} if found else {}
            for start, end in inward(offsets_of(content, BAD, plan), plan.block, plan.count):
                transfer.bad.add(start, end, errors.get(start, errno.EIO))
        start, end = extent(plan)
        self._around = [b for b in content.blocks if b.position < start or b.end > end]

    def _describe(self, transfer: Transfer) -> TransferState:
        return TransferState(
            self._source,
            transfer.plan.count,
            tuple(transfer.bad),
            tuple(
                DestState(place, dest.region.count, dest.durable, tuple(dest.failures))
                for dest, place in zip(transfer.dests, self._dests, strict=True)
            ),
        )


def _parse(text: str, path: str) -> MapFile:
    try:
        return mapfile.parse(text)
    except MetadataError as error:
        raise MetadataError(f"{path}: {error}") from error


def _is_there(path: str) -> bool:
    try:
        return regular_file(path) is not None
    except OSError as error:
        raise DeviceError(path, "look at it", error.errno or 0) from error


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size > _MOST_BYTES:
                raise MetadataError(f"{path} is far too long for a copy's map: give another --map")
            content = file.read()
    except OSError as error:
        raise DeviceError(path, "read it", error.errno or 0) from error
    return os.fsdecode(content)
