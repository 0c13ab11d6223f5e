"""How often a disk is flushed: what the kernel counts of a loop device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dmcopy.block import BlockDevice
from dmcopy.io import Io, IoRegion, Memory, Op, Reactor, probe

pytestmark = pytest.mark.loop

FLUSHES = 15
"""The place of the flushes in a disk's `stat` (Documentation/block/stat.rst, since 5.5)."""


def flushes(name: str) -> int:
    return int(Path(f"/sys/block/{name}/stat").read_text().split()[FLUSHES])


@pytest.mark.parametrize("inline", [False, True], ids=["", "inline"])
@pytest.mark.parametrize("engine", ["threads", "uring"])
def test_a_write_flushes_once_for_each_of_its_flags(loops: Any, engine: str, inline: bool) -> None:
    """And never where there is no write cache."""
    if probe()[engine]:
        pytest.skip(probe()[engine])
    (loop,) = loops(64)
    cache = Path(f"/sys/block/{loop.name}/queue/write_cache")
    found = []
    with (
        BlockDevice.open(loop.path, write=True) as device,
        Reactor(engine, inline=inline) as reactor,
    ):
        memory = Memory(1)
        for mode in ("write back", "write through"):
            cache.write_text(mode)
            for flags in ({}, {"fua": True}, {"preflush": True}, {"preflush": True, "fua": True}):
                done: list[Io] = []
                region = IoRegion(device, 8, 8)
                before = flushes(loop.name)
                reactor.submit(Io(Op.WRITE, region, memory, [(0, 4096)], done.append, **flags))
                reactor.run_until(lambda done=done: done, 30, "a write")  # type: ignore[misc]
                found.append((flushes(loop.name) - before, done[0].error))
        memory.close()
    assert found == [(count, 0) for count in (0, 1, 1, 2, 0, 0, 0, 0)]
