"""What a target is given."""

from __future__ import annotations

from typing import Any

import pytest

from dmcopy.io import Io, IoRegion, Memory, Op
from dmcopy.io.simulated import SimulatedDisk
from dmcopy.targets import TARGETS
from dmcopy.targets.base import Bio


@pytest.mark.parametrize("op", list(Op)[:5])
def test_a_bio_is_as_its_request_until_a_target_changes_it(op: Op) -> None:
    """Its own length, no flush before it, no error; only what moves data has bytes."""
    disk, target, ends = SimulatedDisk(64), object(), list[Bio]()
    memory = Memory(1)
    request = Io(op, IoRegion(disk, 8, 8), memory, [(0, 4096)], fua=True, preflush=True)
    parts: Any = (request, 10, 2, [(1024, 1024)], ends.append, target, request, 1)
    bio = Bio(*parts)
    assert (bio.op, bio.region, bio.number) == (op, IoRegion(disk, 10, 2), 1)
    assert (request.bytes, bio.bytes) == ((4096, 1024) if op <= Op.WRITE else (0, 0))
    assert (bio.fua, bio.preflush, bio.error, bio.data) == (True, False, 0, None)
    assert (bio.memory, bio.extents, bio.parent) == (memory, [(1024, 1024)], request)
    bio.end(5)
    assert [(ended, ended.error) for ended in ends] == [(bio, 5)]
    memory.close()


@pytest.mark.parametrize(
    ("name", "version", "flushes", "discards"),
    [
        ("delay", (1, 4, 0), 1, 1),
        ("dust", (1, 0, 0), 1, 1),
        ("error", (1, 7, 0), 0, 1),
        ("flakey", (1, 5, 0), 1, 1),
        ("linear", (1, 4, 0), 1, 1),
        ("log-writes", (1, 1, 0), 1, 1),
        ("mirror", (1, 14, 0), 1, 1),
        ("snapshot", (1, 16, 0), 1, 0),
        ("snapshot-merge", (1, 5, 0), 2, 0),
        ("snapshot-origin", (1, 9, 0), 1, 0),
        ("striped", (1, 6, 0), 0, 0),  # as many as there are stripes
        ("zero", (1, 2, 0), 1, 1),
    ],
)
def test_what_a_target_says_of_itself(
    name: str, version: tuple[int, int, int], flushes: int, discards: int
) -> None:
    """`dm targets` tells the version, and num_flush_bios and num_discard_bios are the kernel's."""
    target = TARGETS[name]
    assert (target.version, target.flush_bios, target.discard_bios) == (version, flushes, discards)
