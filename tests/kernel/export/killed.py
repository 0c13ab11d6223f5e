"""A device server that is killed under a load of writes, whatever driver its devices are of."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

from dmcopy.export.daemon import _listens
from dmcopy.ledger import Ledger, alive
from dmcopy.runtime import control_path
from tests.kernel.programs import run
from tests.loop.export.here import MIB, Here

SECONDS = 200.0
PAUSE = 0.03
"""Seconds between two files: without, no command gets a turn where there is one processor."""
SIZE = 48 * MIB
SECTORS = SIZE >> 9


class Writer(threading.Thread):
    """Writes files into a folder, each with its number, until `stop`; `kept` were fsynced."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder = folder
        self.kept = 0
        self.stop = False
        self.error: OSError | None = None

    def run(self) -> None:
        try:
            while not self.stop:
                with open(self.folder / f"{self.kept % 200}", "wb") as file:
                    file.write(self.content(self.kept))
                    file.flush()
                    os.fsync(file.fileno())
                self.kept += 1
                time.sleep(PAUSE)
        except OSError as error:
            self.error = error

    @staticmethod
    def content(number: int) -> bytes:
        return b"%08d" % number * 1024

    def until(self, count: int) -> None:
        """Wait until `count` more files are kept."""
        enough = self.kept + count
        until(lambda: self.kept >= enough or self.error, f"{count} more files")
        assert self.error is None

    def check(self) -> None:
        """Read what was kept; the last may be there or not."""
        assert self.kept > 0
        for number in range(max(0, self.kept - 199), self.kept):
            assert (self.folder / f"{number % 200}").read_bytes() == self.content(number)


def until(done: object, waiting_for: str) -> None:
    assert callable(done)
    deadline = time.monotonic() + SECONDS
    while not done():
        assert time.monotonic() < deadline, waiting_for
        time.sleep(0.02)


def kill(here: Here) -> None:
    server = here.server()
    os.kill(int(server.split()[0]), signal.SIGKILL)
    # What it had open is closed a little later than it is known to have ended.
    until(lambda: not alive(server) and not _listens(control_path()), "the server to end")


def written(here: Here) -> tuple[str, Path, Writer]:
    """Make the device `data` over a file; return its node, the file, and who writes on its ext4."""
    image = here.image("image", SIZE)
    here.dm("create", "data", "--table", f"0 {SECTORS} linear {image} 0")
    node = here.mapper.path("data")
    here.run("mkfs.ext4", "-q", node)
    return node, image, Writer(here.mounted(node))


def resumed(here: Here, *, times: int) -> tuple[str, Path]:
    """Have the server of a mounted file system killed and resumed; return its node and its file.

    It is written all the time, and has a snapshot: nothing flushed is lost, in neither.
    """
    node, image, writer = written(here)
    cow, point, device = here.image("cow", SIZE), writer.folder, os.path.realpath(node)
    old = os.urandom(MIB)
    (point / "old").write_bytes(old)
    here.dmcopy("snapshot", "take", "then", "data", cow)
    writer.start()
    try:
        for _ in range(times):
            writer.until(10)
            kill(here)
            assert writer.error is None  # it waits
            told = here.dmcopy("serve", "--resume")
            assert told.splitlines() == [here.mapper.path(one.name) for one in here.mapper.ls()]
            assert os.path.realpath(node) == device
            (point / "old").write_bytes(bytes(MIB))
            writer.until(10)
        writer.stop = True
        writer.join(SECONDS)
        assert not writer.is_alive()
    finally:
        writer.stop = True
    assert str(point) in here.dm("remove", "data", code=6)
    writer.check()
    here.run("umount", point)
    here.run("e2fsck", "-fn", node)
    here.mounted(node)
    writer.check()
    then = here.mounted(here.mapper.path("then"))
    assert (then / "old").read_bytes() == old
    here.run("umount", then)
    here.run("umount", point)
    run("udevadm", "settle")  # it has open for a while what was written to
    here.dmcopy("snapshot", "drop", "then")
    run("udevadm", "settle")
    return node, image


def given_up(here: Here) -> None:
    """Have a killed server's device reaped: who waits gets an error, and it can be unmounted."""
    _, image, writer = written(here)
    writer.start()
    writer.until(5)
    kill(here)
    kept = writer.kept
    time.sleep(1)
    assert writer.error is None
    assert writer.kept <= kept + 1
    here.dm("reap")
    until(lambda: not writer.is_alive(), "the writer to end")
    assert writer.error is not None
    here.run("umount", writer.folder)
    assert Ledger().entries() == []
    here.run("e2fsck", "-fy", image, code=None)
    run("mount", image, writer.folder)
    try:
        writer.check()
    finally:
        run("umount", writer.folder)
