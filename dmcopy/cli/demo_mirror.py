"""The demo's third part: a mirror is built, a leg breaks and is replaced, all on plain files."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Final

from dmcopy.cli.mirror_map import draw
from dmcopy.cli.story import Story
from dmcopy.mapper.userspace import UserMapper
from dmcopy.ondisk.mirror_log import MirrorLog
from dmcopy.status import MirrorStatus
from dmcopy.table import Table

SECTORS: Final = 32 << 11
REGION: Final = 256
_WIDTH: Final = 68
_DEADLINE: Final = 60.0


def tell(story: Story, folder: Path, progress: str) -> None:
    del progress  # nothing here takes long enough
    rng = random.Random(2)
    paths = [folder / name for name in ("leg-a.img", "leg-b.img", "leg-c.img", "log.img")]
    for path in paths:
        with open(path, "wb") as file:
            file.truncate(SECTORS << 9 if path.name != "log.img" else 1 << 20)
    content = rng.randbytes(SECTORS << 9)
    paths[0].write_bytes(content)
    with UserMapper() as mapper:
        _Act(story, mapper, paths, rng).tell(content)


class _Act:
    """The mirror `m` over three files, of which it uses two, each under a linear device."""

    def __init__(
        self, story: Story, mapper: UserMapper, paths: list[Path], rng: random.Random
    ) -> None:
        self._story = story
        self._mapper = mapper
        self._legs, self._log = paths[:3], paths[3]
        self._rng = rng

    def tell(self, content: bytes) -> None:
        self._build(content)
        self._break()
        self._repair()

    def _build(self, content: bytes) -> None:
        story, mapper = self._story, self._mapper
        story.title("A mirror: the kernel's table line and the kernel's log, on plain files")
        for name, path in zip("abc", self._legs, strict=True):
            mapper.create(name, Table.parse(f"0 {SECTORS} linear {path} 0"))
        table = self._table("a", "b")
        story.say(str(table))
        mapper.create("m", table)
        story.say(f"status, immediately: {mapper.status('m')[0]}")
        self._wait()
        story.say(f"status, in sync: {mapper.status('m')[0]}")
        story.claim("the second leg has become the first", self._legs[1].read_bytes() == content)
        event = mapper.wait("m", 0, timeout=_DEADLINE)
        story.claim("the end of the resync raised one event", event == 1)

    def _break(self) -> None:
        story, mapper = self._story, self._mapper
        story.title("A leg breaks under a writer, which sees no error")
        mapper.swap("b", Table.parse(f"0 {SECTORS} error"))
        for _ in range(40):
            count = self._rng.choice((8, 8, 2000))
            mapper.open("m").write(
                self._rng.randrange(SECTORS - count), self._rng.randbytes(count << 9)
            )
        status = self._status()
        story.say(f"status, broken: {mapper.status('m')[0]}")
        story.claim("the letters say that the second leg failed", status.health == "AD")
        for line in draw(status.sync, self._read_log(), width=_WIDTH):
            story.say(line)

    def _repair(self) -> None:
        story, mapper = self._story, self._mapper
        story.title("It is replaced, and everything is copied to the new leg")
        dirty = sum(1 for _ in self._read_log().dirty())
        story.claim("the log knows what the broken leg missed", 0 < dirty < SECTORS // REGION)
        mapper.swap("m", self._table("a", "c", "sync"))
        self._wait()
        story.say(f"status, repaired: {mapper.status('m')[0]}")
        content = mapper.open("m").read(0, SECTORS)
        story.claim("the new leg equals the first", self._legs[2].read_bytes() == content)
        story.claim("and so the first could break now", self._legs[0].read_bytes() == content)
        for line in draw(self._status().sync, self._read_log(), width=_WIDTH):
            story.say(line)

    def _table(self, one: str, other: str, sync: str = "") -> Table:
        log = f"disk {3 if sync else 2} {self._log} {REGION} {sync}"
        legs = " ".join(f"{self._mapper.path(name)} 0" for name in (one, other))
        return Table.parse(f"0 {SECTORS} mirror {log} 2 {legs} 2 handle_errors keep_log")

    def _wait(self) -> None:
        def in_sync() -> bool:
            sync = self._status().sync
            return sync.used == sync.total

        self._mapper.reactor.run_until(in_sync, _DEADLINE, "the resync")

    def _status(self) -> MirrorStatus:
        status = self._mapper.status("m")[0].status
        assert isinstance(status, MirrorStatus)
        return status

    def _read_log(self) -> MirrorLog:
        return MirrorLog.parse(self._log.read_bytes())
