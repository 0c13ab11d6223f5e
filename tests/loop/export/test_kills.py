"""A server that is killed while it is written to: callers return, and nothing flushed is lost."""

from __future__ import annotations

import mmap
import os
import random
import struct
import threading
from pathlib import Path

import pytest

from dmcopy.mapper.reap import Reaper
from tests.loop.export.conftest import SECONDS, Server, Serving

pytestmark = pytest.mark.loop
MIB = 1 << 20
SIZE = 4 * MIB
BLOCK = 4096
BLOCKS = SIZE // BLOCK
WRITERS = 4
KILLS = {"quick": 3, "long": 50}.get(os.environ.get("DMCOPY_TEST", ""), 8)


class Writer(threading.Thread):
    """Writes the blocks that are its own, with a number that grows, until the server is gone.

    `flushed` has what must be there; `tried`, by block, what may be there as well.
    """

    def __init__(self, path: str, number: int, rng: random.Random, first: int) -> None:
        super().__init__(daemon=True)
        self.mine = range(number, BLOCKS, WRITERS)
        self.flushed: dict[int, int] = {}
        self.tried: dict[int, list[int]] = {}
        self.done = 0
        self.failed = False
        self._path = path
        self._rng = rng
        self._version = first

    def run(self) -> None:
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_DIRECT)
        except OSError:  # it was killed before
            self.failed = True
            return
        try:
            self._write(fd)
        except OSError:
            self.failed = True
        finally:
            os.close(fd)

    def _write(self, fd: int) -> None:
        memory = mmap.mmap(-1, BLOCK)
        since: dict[int, int] = {}
        while True:
            block = self._rng.choice(self.mine)
            self._version += 1
            memory[:] = stamp(block, self._version)
            self.tried.setdefault(block, []).append(self._version)
            os.pwrite(fd, memory, block * BLOCK)
            since[block] = self._version
            self.done += 1
            if self._rng.random() < 0.1:
                os.fsync(fd)
                self.flushed |= since
                for flushed, version in since.items():
                    self.tried[flushed] = [v for v in self.tried[flushed] if v >= version]
                since = {}


def stamp(block: int, version: int) -> bytes:
    return struct.pack("=QQ", block, version) * (BLOCK // 16)


def content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def take_stock(
    now: bytes,
    before: bytes,
    flushed: dict[int, int],
    tried: dict[int, list[int]],
    turn: int,
) -> None:
    """Check that what was flushed is there, and nothing torn; `flushed` is what there is then."""
    for block in range(BLOCKS):
        found = now[block * BLOCK :][:BLOCK]
        if found == before[block * BLOCK :][:BLOCK]:
            assert block not in flushed, f"turn {turn}: block {block} was flushed, and is lost"
            continue
        where, version = struct.unpack_from("=QQ", found)
        assert found == stamp(block, version), f"turn {turn}: block {block} is torn"
        assert version in {flushed.get(block), *tried.get(block, ())}, f"{turn}: block {block}"
        assert where == block
        flushed[block] = version


@pytest.mark.parametrize("kind", ["fuse", "loop"])
def test_a_server_is_killed_and_another_takes_over(serving: Serving, kind: str) -> None:
    """An origin is written, its snapshot not: whatever happens, that stays what it was."""
    rng = random.Random(11)
    image, cow = serving.image("image", SIZE), serving.image("cow", 2 * SIZE)
    before = rng.randbytes(SIZE)
    image.write_bytes(before)
    sectors = SIZE >> 9
    spec = f"then,,,,0 {sectors} snapshot {image} {cow} P 8;"
    spec += f"live,,,,0 {sectors} snapshot-origin {image}"
    flushed: dict[int, int] = {}
    tried: dict[int, list[int]] = {}
    for turn in range(KILLS):
        server = Server(kind, serving.folder, spec)
        then, live = server.paths
        assert content(then) == before, "the snapshot has changed"
        take_stock(content(live), before, flushed, tried, turn)
        tried = {}
        writers = [
            Writer(live, number, random.Random(rng.random()), (turn + 1) << 32)
            for number in range(WRITERS)
        ]
        for writer in writers:
            writer.start()
        enough = rng.randrange(20, 300)
        _wait(writers, enough)
        server.kill()
        for writer in writers:
            writer.join(SECONDS)
            assert not writer.is_alive(), "a write does not return"
            assert writer.failed
            flushed |= writer.flushed
            tried |= writer.tried
        left = Reaper(serving.mapper, serving.ledger).run().left
        assert not left
        assert serving.ledger.entries() == []
        assert not any(Path(serving.folder, name).exists() for name in ("then", "live"))
    server = Server(kind, serving.folder, spec)
    assert content(server.paths[0]) == before
    assert server.end() == 0


def _wait(writers: list[Writer], enough: int) -> None:
    """Wait until that many writes are done; they cannot end otherwise than by an error."""
    waker = threading.Event()
    for _ in range(int(SECONDS / 0.01)):
        if sum(writer.done for writer in writers) >= enough:
            return
        assert not any(writer.failed for writer in writers), "the server fails writes"
        waker.wait(0.01)
    raise AssertionError(f"no {enough} writes in {SECONDS} s")
