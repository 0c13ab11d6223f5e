"""A mirror whose log's disk dies: what waits, what the sentence names, and that it leads out."""

from __future__ import annotations

import errno
import os
import re
import threading

import pytest

from dmcopy.errors import PartialError
from dmcopy.io import Memory
from dmcopy.table import Error, Linear, Mirror, Table
from dmcopy.workflows.mirror import Mirror as State
from dmcopy.workflows.mirror_end import plan_end
from dmcopy.workflows.mirror_make import MirrorOptions, plan_from_device
from dmcopy.workflows.site import Site

from .mirror_rig import DEADLINE, SECTORS, Rig, eventually

pytestmark = [pytest.mark.kernel(either=True, cost=12), pytest.mark.timeout(900)]


class Writer(threading.Thread):
    """Writes a block at a time; `errors` are the errnos it was told, `count` what went well."""

    def __init__(self, path: str) -> None:
        super().__init__(daemon=True)
        self.errors: list[int] = []
        self.count = 0
        self.ended = False
        self._path = path

    def run(self) -> None:
        memory = Memory(1)
        fd = os.open(self._path, os.O_WRONLY | os.O_DIRECT)
        while not self.ended:
            try:
                os.pwrite(fd, memory.view[:4096], (self.count % 512) << 14)
                self.count += 1
            except OSError as error:
                self.errors.append(error.errno or 0)
        os.close(fd)


def test_the_disk_of_the_log_dies(rig: Rig) -> None:
    mapper, session = rig.mapper, rig.session()
    mapper.create("home", Table.of(SECTORS, Linear(rig.a, 0)), keep=True)
    mapper.create("log", Table.of(SECTORS, Linear(rig.c, 0)), keep=True)
    log = mapper.path("log")
    session.run(plan_from_device(mapper, "home", [rig.b], MirrorOptions(log=log)), timeout=DEADLINE)
    writer = Writer(mapper.path("home"))
    writer.start()
    eventually(lambda: writer.count > 8, "writes go on")
    mapper.swap("log", Table.of(SECTORS, Error()), flush=False, lockfs=False)
    eventually(lambda: State.read(mapper, "home").status.log_health != "A", "the log is lost")
    with pytest.raises(PartialError) as caught:
        State.read(mapper, "home").check_healthy(Site(mapper))
    (verb,) = re.findall(r"'dmcopy mirror drop home --keep (\d)'", str(caught.value))
    session.run(plan_end(mapper, "home", verb))
    before = writer.count
    eventually(lambda: writer.count > before + 8, "writes go on without the log")
    session.run(
        plan_from_device(mapper, "home", [rig.b], MirrorOptions(log=rig.d, force=True)),
        timeout=DEADLINE,
    )
    assert isinstance(mapper.table("home").lines[0].target, Mirror)
    eventually(lambda: writer.count > before + 16, "writes go on in the new mirror")
    writer.ended = True
    writer.join(DEADLINE)
    assert set(writer.errors) <= {errno.EIO}
    session.run(plan_end(mapper, "home"))
    rig.remove("home", "log")
