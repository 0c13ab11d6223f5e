"""A device server that is killed while somebody writes."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

from dmcopy.export.daemon import _listens
from dmcopy.ledger import alive
from dmcopy.runtime import control_path
from tests.loop.export.here import Here

SECONDS = 200.0


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
