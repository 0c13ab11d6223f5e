"""The mirror workflows on dmcopy's own engine, on plain files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmcopy.errors import UsageError
from dmcopy.mapper.userspace import UserMapper
from dmcopy.mirror.logfile import read_log
from dmcopy.table import Linear, Table
from dmcopy.workflows.journal import Journal
from dmcopy.workflows.mirror import Mirror
from dmcopy.workflows.mirror_change import plan_fail, plan_replace, plan_split
from dmcopy.workflows.mirror_make import MirrorOptions, plan_from_device, plan_from_legs
from dmcopy.workflows.mirror_move import plan_move
from dmcopy.workflows.session import Session

SECTORS = 8192


@pytest.fixture
def mapper() -> Iterator[UserMapper]:
    with UserMapper() as mapper:
        yield mapper


@pytest.fixture
def session(mapper: UserMapper, tmp_path: Path) -> Session:
    return Session(mapper, Journal(tmp_path / "journal"))


def disk(folder: Path, name: str) -> str:
    path = folder / name
    path.write_bytes(os.urandom(SECTORS * 512))
    return str(path)


def test_a_live_device_becomes_a_mirror_is_broken_repaired_and_split(
    mapper: UserMapper, session: Session, tmp_path: Path
) -> None:
    a, b, c = (disk(tmp_path, name) for name in "abc")
    log = tmp_path / "log"
    log.write_bytes(bytes(1 << 20))
    before = Path(a).read_bytes()
    mapper.create("home", Table.of(SECTORS, Linear(a, 0)))
    home = mapper.open("home")
    options = MirrorOptions(log=str(log), region_size=1024)
    session.run(plan_from_device(mapper, "home", [b], options), timeout=60)
    assert Path(b).read_bytes() == before
    home.write(8, b"x" * 512)
    with pytest.raises(UsageError, match="already: give another"):
        plan_replace(mapper, "home", "1", str(log))
    session.run(plan_fail(mapper, "home", "1"))
    session.run(plan_replace(mapper, "home", "1", c), timeout=60)
    home.write(16, b"y" * 512)
    home.flush()
    assert Mirror.read(mapper, "home").status.health == "AA"
    assert Path(a).read_bytes() == Path(c).read_bytes() != before
    assert read_log(str(log)).nr_regions == 8
    session.run(plan_split(mapper, "home", "0", "copy"))
    home.write(24, b"z" * 512)
    assert mapper.open("copy").read(24, 1) == before[24 * 512 : 25 * 512]
    assert home.read(8, 1) + home.read(24, 1) == b"x" * 512 + b"z" * 512
    assert sorted(info.name for info in mapper.ls()) == ["copy", "home"]


def test_a_move(mapper: UserMapper, session: Session, tmp_path: Path) -> None:
    a, b = (disk(tmp_path, name) for name in "ab")
    before = Path(a).read_bytes()
    mapper.create("home", Table.of(SECTORS, Linear(a, 0)))
    session.run(plan_move(mapper, "home", a, b), timeout=60)
    assert mapper.table("home").devices == (b,)
    assert Path(b).read_bytes() == before


def test_legs_that_were_a_mirror_before(
    mapper: UserMapper, session: Session, tmp_path: Path
) -> None:
    a, b = (disk(tmp_path, name) for name in "ab")
    log = tmp_path / "log"
    log.write_bytes(bytes(1 << 20))
    session.run(plan_from_legs(mapper, "home", [a, b], MirrorOptions(log=str(log))), timeout=60)
    mapper.remove("home")
    Path(b).write_bytes(bytes(SECTORS * 512))  # behind its back
    again = MirrorOptions(log=str(log), reuse_log=True)
    session.run(plan_from_legs(mapper, "home", [a, b], again), timeout=60)
    assert Path(b).read_bytes() == bytes(SECTORS * 512)  # nothing was dirty: nothing was copied
