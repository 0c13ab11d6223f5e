"""The demo's second part: a snapshot is taken, read, written and merged, all on plain files."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Final

from dmcopy.block import BlockDevice
from dmcopy.cli.story import Story
from dmcopy.cow import density, picture
from dmcopy.cow.check import check
from dmcopy.cow.store import read_store
from dmcopy.mapper.userspace import UserMapper
from dmcopy.status import SnapshotMergeStatus
from dmcopy.table import Table

SECTORS: Final = 32 << 11
COW_SECTORS: Final = 16 << 11
CHUNK: Final = 8
_WRITES: Final = 50
_DEADLINE: Final = 60.0


def tell(story: Story, folder: Path, progress: str) -> None:
    del progress  # nothing here takes long enough
    origin, cow = folder / "origin.img", folder / "cow.img"
    rng = random.Random(1)
    before = rng.randbytes(SECTORS << 9)
    origin.write_bytes(before)
    with open(cow, "wb") as file:
        file.truncate(COW_SECTORS << 9)
    snapshot = f"0 {SECTORS} snapshot {origin} {cow} P {CHUNK}"
    after = _take(story, origin, snapshot, before, rng)
    _look(story, cow)
    _merge(story, origin, snapshot.replace("snapshot", "snapshot-merge", 1), before, after)


def _take(story: Story, origin: Path, snapshot: str, before: bytes, rng: random.Random) -> bytes:
    """Write to an origin that has a snapshot; return what the origin then holds."""
    story.title("A snapshot: the kernel's table line and the kernel's format, on plain files")
    story.say(snapshot)
    with UserMapper() as mapper:
        mapper.create("snap", Table.parse(snapshot))
        mapper.create("live", Table.parse(f"0 {SECTORS} snapshot-origin {origin}"))
        live, snap = mapper.open("live"), mapper.open("snap")
        story.say(f"status, fresh: {mapper.status('snap')[0]}")
        for _ in range(_WRITES):
            # A few large ones and many small ones, as a file system's are.
            count = rng.choice((1, 3, 8, 8, 64, 2000))
            live.write(rng.randrange(SECTORS - count), rng.randbytes(count << 9))
        status = mapper.status("snap")[0]
        story.say(f"status, after {_WRITES} writes to the origin: {status}")
        after = live.read(0, SECTORS)
        story.claim("the origin has changed", after != before)
        story.claim("the snapshot still reads as at its creation", snap.read(0, SECTORS) == before)
        snap.write(0, b"mine".ljust(512, b"."))
        story.claim("the snapshot can be written to", snap.read(0, 1)[:4] == b"mine")
        story.claim("and the origin does not see that", live.read(0, 1) == after[:512])
        snap.write(0, before[:512])
    return after


def _look(story: Story, cow: Path) -> None:
    story.title("What the store holds: 'dmcopy cow check' and 'dmcopy cow map'")
    with BlockDevice.open(cow) as device:
        store = read_store(device)
        report = check(device, origin_sectors=SECTORS)
        story.claim("the store keeps every rule of the kernel's format", not report.problems)
        drawn = density.measure(store, width=64, rows=8, origin_sectors=SECTORS)
        story.say(picture.to_text(drawn).rstrip())


def _merge(story: Story, origin: Path, merge: str, before: bytes, after: bytes) -> None:
    story.title("Roll back: the store is loaded again, and merged into the origin")
    story.say(merge)
    with UserMapper() as mapper:
        mapper.create("live", Table.parse(merge))
        live = mapper.open("live")
        story.claim(
            "while it merges, the origin reads as the snapshot", live.read(0, 8) == before[: 8 << 9]
        )
        mapper.reactor.run_until(lambda: _is_merged(mapper), _DEADLINE, "the merge")
        story.say(f"status, merged: {mapper.status('live')[0]}")
    story.claim("the origin is as it was", origin.read_bytes() == before != after)


def _is_merged(mapper: UserMapper) -> bool:
    status = mapper.status("live")[0].status
    assert isinstance(status, SnapshotMergeStatus)
    return status.empty or bool(status.trouble)
