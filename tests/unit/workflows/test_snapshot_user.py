"""The same workflows on the userspace engine and plain files: no root, no device-mapper."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dmcopy.errors import MetadataError, UsageError
from dmcopy.mapper.userspace import UserMapper
from dmcopy.ondisk.exception_store import HEADER_BYTES, VERSION, StoreHeader
from dmcopy.table import Linear, Table
from dmcopy.workflows.journal import Journal
from dmcopy.workflows.session import Session
from dmcopy.workflows.snapshot import Growth, merge, plan_drop, plan_extend, plan_take
from dmcopy.workflows.snapshot_layout import SnapshotLayout
from dmcopy.workflows.snapshot_status import states

SECTORS = 2048


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    for name, size in (("disk", SECTORS), ("cow", 512), ("cow2", 512), ("more", SECTORS)):
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, size * 512)
    with UserMapper() as mapper:
        mapper.create("data", Table.of(SECTORS, Linear(str(tmp_path / "disk"), 0)))
        yield Session(mapper, Journal(tmp_path / "workflows"))


def take(session: Session, name: str, cow: str, **options: Any) -> SnapshotLayout:
    plan = plan_take(session.mapper, name, "data", cow, **options)
    session.run(plan)
    assert plan.layout is not None
    return plan.layout


def write(session: Session, data: bytes) -> None:
    assert isinstance(session.mapper, UserMapper)
    session.mapper.open("data").write(0, data * 4096)


def read(session: Session, name: str) -> set[bytes]:
    assert isinstance(session.mapper, UserMapper)
    return {bytes([byte]) for byte in session.mapper.open(name).read(0, 8)}


def test_from_take_to_merge(session: Session, tmp_path: Path) -> None:
    plain = session.mapper.table("data")
    write(session, b"a")
    take(session, "snap", str(tmp_path / "cow"), chunk_size=8)
    write(session, b"b")
    take(session, "later", str(tmp_path / "cow2"), chunk_size=16)
    write(session, b"c")
    assert [read(session, name) for name in ("snap", "later", "data")] == [{b"a"}, {b"b"}, {b"c"}]
    session.run(plan_extend(session.mapper, "snap", Growth(1024), more=str(tmp_path / "more")))
    later, snap = states(session.mapper, session.journal)
    assert (snap.name, snap.state, snap.used, snap.total) == ("snap", "active", 24, 1024)
    assert (later.name, later.origin, later.chunk_size) == ("later", "data", 16)
    merge(session, "snap")
    assert (read(session, "data"), read(session, "later")) == ({b"a"}, {b"b"})
    session.run(plan_drop(session.mapper, "later"))
    assert [info.name for info in session.mapper.ls()] == ["data"]
    assert session.mapper.table("data") == plain
    assert session.journal.records() == []


def test_one_from_before_a_restart_goes_on(session: Session, tmp_path: Path) -> None:
    cow, mapper = str(tmp_path / "cow"), session.mapper
    with pytest.raises(UsageError, match="cow has no store of an earlier snapshot on it"):
        take(session, "snap", cow, reuse=True)
    write(session, b"a")
    take(session, "snap", cow, chunk_size=8)
    write(session, b"b")
    table = mapper.table("data-real")
    for name in ("snap", "data", "data-real", "snap-cow"):
        mapper.remove(name)
    mapper.create("data", table)

    layout = take(session, "snap", cow, reuse=True)
    assert layout.chunk_size == 8
    assert (read(session, "snap"), read(session, "data")) == ({b"a"}, {b"b"})
    merge(session, "snap")
    assert read(session, "data") == {b"a"}


def test_a_store_that_cannot_go_on(session: Session, tmp_path: Path) -> None:
    cow = tmp_path / "cow2"
    with pytest.raises(UsageError, match="in memory only"):
        take(session, "snap", str(cow), store="N", reuse=True)
    for header, error, says in (
        (StoreHeader(False, VERSION, 8), UsageError, "it is invalid"),
        (StoreHeader(True, 2, 8), MetadataError, "the version is 2"),
        (StoreHeader(True, VERSION, 1024), UsageError, "at least 3 chunks, 3072s"),
    ):
        before = header.build() + bytes(512 * 512 - HEADER_BYTES)
        cow.write_bytes(before)
        with pytest.raises(error, match=says):
            take(session, "snap", str(cow), reuse=True)
        assert cow.read_bytes() == before
    assert [info.name for info in session.mapper.ls()] == ["data"]
