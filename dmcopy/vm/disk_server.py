"""A guest's disk, served to QEMU by NBD: a file behind a write cache that a power cut takes."""

from __future__ import annotations

import random
from pathlib import Path

from dmcopy.block import BlockDevice
from dmcopy.export.base import Place
from dmcopy.export.nbd.server import NbdServer
from dmcopy.export.volatile import VolatileDisk
from dmcopy.io import Reactor
from dmcopy.io.thread import ReactorThread


class DiskServer:
    """Serves the file at `path` at the Unix socket `address`, from a thread of its own.

    The file is claimed for as long as it is served. Raises BusyError for one that is open for
    writing elsewhere.
    """

    def __init__(self, path: Path, address: Path) -> None:
        self._file = BlockDevice.open(path, write=True, direct=False)
        try:
            self._thread = ReactorThread(stacked=True, name=f"disk {path.name}")
            try:
                self._thread.call(lambda reactor: self._start(reactor, address))
            except BaseException:
                self._thread.close()
                raise
        except BaseException:
            self._file.close()
            raise

    def stop(self, *, lose: bool = False, chooser: random.Random | None = None) -> None:
        """Stop serving. With `lose` the disk loses power, and what was not flushed is lost.

        With `chooser` some of it is, and some kept or torn: see `VolatileDisk.cut`.
        """
        seed = None if chooser is None else chooser.getrandbits(32)
        try:
            self._thread.call(lambda reactor: self._stop(reactor, lose, seed))
        finally:
            self._thread.close()
            self._file.close()

    def _start(self, reactor: Reactor, address: Path) -> None:
        self._disk = VolatileDisk(self._file, reactor)
        self._server = NbdServer(reactor, Place(socket=str(address)))
        self._server.add("disk", self._disk)

    def _stop(self, reactor: Reactor, lose: bool, seed: int | None) -> None:
        self._server.close()
        if not lose:
            self._disk.flush()
            return
        back: list[bool] = []
        self._disk.cut(seed, lambda: back.append(True))
        reactor.run_until(lambda: back, 60, f"what is kept of {self._disk.path}")
