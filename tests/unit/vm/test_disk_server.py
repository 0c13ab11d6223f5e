"""A guest's disk: one user of its file, and a power cut that takes what was not flushed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from dmcopy.errors import BusyError, UsageError
from dmcopy.vm.disk_server import DiskServer
from tests.unit.export.client import Client

SIZE = 1 << 20
WRITE, FLUSH, ZEROES = 1, 3, 6


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(bytes(SIZE))
    return path


def client(address: Path) -> Client:
    found = Client(str(address))
    found.greet()
    assert found.go() == 1  # QEMU asks for no name
    return found


def test_a_power_cut_takes_what_was_not_flushed(path: Path, tmp_path: Path) -> None:
    server = DiskServer(path, tmp_path / "socket")
    with client(tmp_path / "socket") as guest:
        assert guest.size == SIZE
        guest.write(0, b"a" * 512)
        guest.ask(FLUSH, 0, 0)
        guest.write(512, b"b" * 512)
        guest.write(1024, b"c" * 512, flags=1)
        guest.write(1536, b"d" * 512)
        assert guest.read(0, 2048) == b"a" * 512 + b"b" * 512 + b"c" * 512 + b"d" * 512
        assert guest.ask(ZEROES, 0, 512).error == 0
    server.stop(lose=True)
    assert path.read_bytes()[:2048] == bytes(1024) + b"c" * 512 + bytes(512)


def test_an_orderly_end_keeps_it_all(path: Path, tmp_path: Path) -> None:
    server = DiskServer(path, tmp_path / "socket")
    with client(tmp_path / "socket") as guest:
        guest.write(0, b"a" * SIZE)
    server.stop()
    assert path.read_bytes() == b"a" * SIZE


def test_a_chooser_keeps_some_of_it(path: Path, tmp_path: Path) -> None:
    seen = set()
    for seed in range(12):
        path.write_bytes(bytes(SIZE))
        server = DiskServer(path, tmp_path / "socket")
        with client(tmp_path / "socket") as guest:
            for sector in range(8):
                guest.write(sector << 9, b"w" * 512)
        server.stop(lose=True, chooser=random.Random(seed))
        seen.add(path.read_bytes()[:4096:512].count(b"w"))
    assert len(seen) > 3


def test_one_user_of_a_file(path: Path, tmp_path: Path) -> None:
    (tmp_path / "also").hardlink_to(path)
    server = DiskServer(path, tmp_path / "socket")
    for name in (path, tmp_path / "also"):
        with pytest.raises(BusyError, match=f"^{name} is in use by "):
            DiskServer(name, tmp_path / "other")
    server.stop()
    with pytest.raises(UsageError, match="too long"):
        DiskServer(path, tmp_path / ("s" * 120))
    DiskServer(path, tmp_path / "socket").stop()  # a client that never comes
