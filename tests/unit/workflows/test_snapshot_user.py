"""The same workflows on the userspace engine and plain files: no root, no device-mapper."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmcopy.errors import MetadataError, UsageError
from dmcopy.mapper.ledger import Ledger
from dmcopy.mapper.userspace import UserMapper
from dmcopy.ondisk.exception_store import HEADER_BYTES, VERSION, Header
from dmcopy.table import Linear, Table
from dmcopy.workflows.journal import Journal
from dmcopy.workflows.nodes import FileNodes
from dmcopy.workflows.snapshot import Snapshots
from dmcopy.workflows.snapshot_request import Request
from dmcopy.workflows.snapshot_status import states

SECTORS = 2048


@pytest.fixture
def snapshots(tmp_path: Path) -> Iterator[Snapshots]:
    for name, size in (("disk", SECTORS), ("cow", 512), ("cow2", 512), ("more", SECTORS)):
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, size * 512)
    nodes = FileNodes(Ledger(tmp_path / "ledger.jsonl"))
    with UserMapper() as mapper:
        mapper.create("data", Table.of(SECTORS, Linear(str(tmp_path / "disk"), 0)))
        yield Snapshots(mapper, nodes=nodes, journal=Journal(tmp_path / "workflows"))


def write(snapshots: Snapshots, data: bytes) -> None:
    assert isinstance(snapshots.mapper, UserMapper)
    snapshots.mapper.open("data").write(0, data * 4096)


def read(snapshots: Snapshots, name: str) -> set[bytes]:
    assert isinstance(snapshots.mapper, UserMapper)
    return {bytes([byte]) for byte in snapshots.mapper.open(name).read(0, 8)}


def test_from_take_to_merge(snapshots: Snapshots, tmp_path: Path) -> None:
    plain = snapshots.mapper.table("data")
    write(snapshots, b"a")
    snapshots.take(Request("snap", "data", str(tmp_path / "cow"), chunk_size=8))
    write(snapshots, b"b")
    snapshots.take(Request("later", "data", str(tmp_path / "cow2"), chunk_size=16))
    write(snapshots, b"c")
    assert [read(snapshots, name) for name in ("snap", "later", "data")] == [{b"a"}, {b"b"}, {b"c"}]
    snapshots.extend("snap", 1024, more=str(tmp_path / "more"))
    later, snap = states(snapshots.mapper, snapshots.nodes, snapshots.journal)
    assert (snap.name, snap.state, snap.used, snap.total) == ("snap", "active", 24, 1024)
    assert (later.name, later.origin, later.chunk_size) == ("later", "data", 16)
    snapshots.merge("snap")
    assert (read(snapshots, "data"), read(snapshots, "later")) == ({b"a"}, {b"b"})
    snapshots.drop("later")
    assert [info.name for info in snapshots.mapper.ls()] == ["data"]
    assert snapshots.mapper.table("data") == plain
    assert snapshots.journal.records() == []


def test_one_from_before_a_restart_goes_on(snapshots: Snapshots, tmp_path: Path) -> None:
    cow, mapper = str(tmp_path / "cow"), snapshots.mapper
    with pytest.raises(UsageError, match="cow has no store of an earlier snapshot on it"):
        snapshots.take(Request("snap", "data", cow, reuse=True))
    write(snapshots, b"a")
    snapshots.take(Request("snap", "data", cow, chunk_size=8))
    write(snapshots, b"b")
    table = mapper.table("data-real")
    for name in ("snap", "data", "data-real", "snap-cow"):
        mapper.remove(name)
    mapper.create("data", table)

    layout = snapshots.take(Request("snap", "data", cow, reuse=True))
    assert layout.chunk_size == 8
    assert (read(snapshots, "snap"), read(snapshots, "data")) == ({b"a"}, {b"b"})
    snapshots.merge("snap")
    assert read(snapshots, "data") == {b"a"}


def test_a_store_that_cannot_go_on(snapshots: Snapshots, tmp_path: Path) -> None:
    cow = tmp_path / "cow2"
    request = Request("snap", "data", str(cow), store="N", reuse=True)
    with pytest.raises(UsageError, match="in memory only"):
        snapshots.take(request)
    for header, error, says in (
        (Header(False, VERSION, 8), UsageError, "it is invalid"),
        (Header(True, 2, 8), MetadataError, "the version is 2"),
        (Header(True, VERSION, 1024), UsageError, "at least 3 chunks, 3072s"),
    ):
        before = header.build() + bytes(512 * 512 - HEADER_BYTES)
        cow.write_bytes(before)
        with pytest.raises(error, match=says):
            snapshots.take(dataclasses.replace(request, store="P"))
        assert cow.read_bytes() == before
    assert [info.name for info in snapshots.mapper.ls()] == ["data"]
