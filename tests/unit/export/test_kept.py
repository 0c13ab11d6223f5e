"""The devices of a killed device server, made again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dmcopy.block import BlockDevice
from dmcopy.errors import MetadataError, UsageError
from dmcopy.export.kept import Kept, restore
from dmcopy.io import Device
from dmcopy.mapper.userspace import UserMapper
from dmcopy.runtime import kept_path
from dmcopy.table import ConciseDevice, Table


def test_what_is_below_is_made_first_and_a_snapshot_misses_no_write(tmp_path: Path) -> None:
    """The nodes of the killed server may be there still, and can be opened: they are not."""
    for name in ("image", "cow"):
        with open(tmp_path / name, "wb") as file:
            file.truncate(1 << 20)
    opened: list[str] = []

    def open_device(path: str, write: bool) -> Device:
        opened.append(Path(path).name)
        return BlockDevice.open(tmp_path / Path(path).name, write=write)

    with UserMapper(open_device=open_device) as mapper:
        low, cow = mapper.path("low"), mapper.path("z-cow")
        for node in ("low", "z-cow"):
            (tmp_path / Path(mapper.path(node)).name).write_bytes(bytes(1 << 20))
        tables = {
            "data": f"0 2048 snapshot-origin {low}",
            "low": "0 2048 linear image 0",
            "then": f"0 2048 snapshot {low} {cow} P 8",
            "z-cow": "0 2048 linear cow 0",
        }
        restore(
            mapper,
            [
                ConciseDevice(name=name, uuid="", readonly=False, table=Table.parse(table))
                for name, table in tables.items()
            ],
        )
        assert sorted(opened) == ["cow", "image"]
        mapper.open("data").write(4, b"x" * 4096)  # of two chunks
        mapper.open("data").write(28, b"x" * 1024)
        assert mapper.open("then").read(0, 32) == bytes(32 << 9)
        assert [str(mapper.table(name)) for name in sorted(tables)] == list(tables.values())


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"5", b"[5]", b"[{}]", b"[" * 100_000, b"\xff"),
        b'[{"name": "x", "uuid": "", "readonly": false, "table": 5, "mark": ""}]',
    ],
)
def test_what_was_damaged_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setenv("DMCOPY_RUNTIME_DIR", str(tmp_path))
    Path(kept_path()).write_bytes(content)
    with pytest.raises(MetadataError, match="is not what a device server keeps"):
        Kept().load()


def test_what_is_no_file_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMCOPY_RUNTIME_DIR", str(tmp_path))
    with pytest.raises(UsageError, match="no device server was killed"):
        Kept().load()
    os.mkfifo(kept_path())
    with pytest.raises(MetadataError, match="is not what a device server keeps"):
        Kept().load()
