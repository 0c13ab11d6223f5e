"""A device server that is killed under load: callers return, nothing is left, nothing is lost."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from dmcopy.block import backing
from dmcopy.errors import DmcopyError
from dmcopy.ledger import Ledger, alive
from tests.loop.export.here import MIB, SECONDS, Here
from tests.loop.export.test_kills import SIZE, WRITERS, Writer, content, take_stock
from tests.waiting import until

pytestmark = pytest.mark.loop
KILLS = {"quick": 1, "long": 50}.get(os.environ.get("DMCOPY_TEST", ""), 2)


def kill(here: Here) -> None:
    """Kill the server; return when it has ended."""
    server = here.server()
    os.kill(int(server.split()[0]), signal.SIGKILL)
    until(lambda: not alive(server), "the server's end")


def test_it_is_killed_under_load_and_resumes(here: Here) -> None:
    """A snapshot and its origin, which is written: what was flushed is there, and the old is."""
    rng = random.Random(3)
    image, cow = here.image("image", SIZE), here.image("cow", 4 * SIZE)
    before = rng.randbytes(SIZE)
    image.write_bytes(before)
    here.dm("create", "live", "--table", f"0 {SIZE >> 9} linear {image} 0")
    here.dmcopy("snapshot", "take", "then", "live", cow, "--chunk-size", "8")
    live, then = here.mapper.path("live"), here.mapper.path("then")
    flushed: dict[int, int] = {}
    for turn in range(KILLS):
        writers = [
            Writer(live, number, random.Random(rng.random()), (turn + 1) << 32)
            for number in range(WRITERS)
        ]
        for writer in writers:
            writer.start()
        enough, deadline = rng.randrange(20, 300), time.monotonic() + SECONDS
        while sum(writer.done for writer in writers) < enough:
            assert not any(writer.failed for writer in writers), "the server fails writes"
            assert time.monotonic() < deadline, f"no {enough} writes"
            time.sleep(0.005)
        kill(here)
        tried: dict[int, list[int]] = {}
        for writer in writers:
            writer.join(SECONDS)
            assert not writer.is_alive(), "a write does not return"
            assert writer.failed
            flushed |= writer.flushed
            tried |= writer.tried
        with pytest.raises(DmcopyError, match="was killed"):
            here.mapper.ls()
        told = here.dmcopy("serve", "--resume")
        assert told.splitlines() == [here.mapper.path(info.name) for info in here.mapper.ls()]
        assert content(then) == before, f"turn {turn}: the snapshot has changed"
        take_stock(content(live), before, flushed, tried, turn)
    here.dmcopy("snapshot", "drop", "then")
    here.dm("remove", "live")


def test_a_killed_one_is_given_up(here: Here) -> None:
    """Mounted, and with a mirror: nothing of it is left, and a new one knows nothing of it."""
    image, leg = here.image("image", 32 * MIB), here.image("leg", 32 * MIB)
    here.dm("create", "data", "--table", f"0 65536 linear {image} 0")
    here.run("mkfs.ext4", "-q", here.mapper.path("data"))
    here.dmcopy("mirror", "make", "data", "--from", "data", "--leg", leg, "--no-wait")
    point = here.mounted(here.mapper.path("data"))
    (point / "file").write_text("lost")
    kill(here)
    with pytest.raises(OSError, match="Input/output error"):
        _write(point)
    told = here.dm("create", "other", "--table", "0 8 zero", code=1)
    assert "'dmcopy serve --resume' has them back, 'dmcopy dm reap' gives them up" in told
    here.dm("reap", code=6)  # what is mounted is in the way
    here.run("umount", point)
    here.dm("reap")
    assert Ledger().entries() == []
    assert not list((here.folder / "dev").iterdir())
    assert not [one for one in backing.of_all() if one.path.startswith(str(here.folder))]
    assert here.dm("ls") == "No devices found\n"
    here.run("e2fsck", "-fy", image, code=None)
    here.dm("create", "data", "--table", "0 8 zero")
    here.dm("remove", "data")


def _write(point: Path) -> None:
    with open(point / "more", "wb") as file:
        file.write(b"x" * MIB)
        os.fsync(file.fileno())


def test_what_was_in_its_memory_is_not_made_up(here: Here) -> None:
    image, cow = here.image("image", MIB), here.image("cow", MIB)
    here.dm("create", "then", "--table", f"0 2048 snapshot {image} {cow} N 8")
    kill(here)
    told = here.dmcopy("serve", "--resume", code=2)
    assert "then: the list of what it keeps was in the memory of the server" in told
    here.dm("reap")
    assert "there is nothing to resume" in here.dmcopy("serve", "--resume", code=2)
