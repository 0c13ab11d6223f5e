"""The same workflows on the userspace engine and plain files: no root, no device-mapper."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmcopy.mapper.ledger import Ledger
from dmcopy.mapper.userspace import UserMapper
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
