"""A disk's write cache is what sysfs says of it at the moment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dmcopy.block import BlockDevice
from dmcopy.block.sysfs import Roots
from dmcopy.block.write_cache import WriteCache

WHOLE, PART = os.makedev(8, 16), os.makedev(8, 17)


@pytest.fixture
def attribute(tmp_path: Path) -> Path:
    """The attribute of a disk 8:16 with a partition 8:17 in a made-up sysfs."""
    disk = tmp_path / "devices/sdb"
    (disk / "queue").mkdir(parents=True)
    (disk / "sdb1").mkdir()
    numbers = tmp_path / "dev/block"
    numbers.mkdir(parents=True)
    (numbers / "8:16").symlink_to(disk)
    (numbers / "8:17").symlink_to(disk / "sdb1")
    return disk / "queue/write_cache"


@pytest.mark.parametrize("number", [WHOLE, PART])
def test_it_is_read_each_time(attribute: Path, tmp_path: Path, number: int) -> None:
    attribute.write_text("write back\n")
    cache = WriteCache(number, Roots(sys=tmp_path))
    assert not cache.is_none()
    attribute.write_text("write through\n")
    assert cache.is_none()
    attribute.write_text("write back\n")
    assert not cache.is_none()
    cache.close()


def test_what_says_nothing_may_have_one(tmp_path: Path, attribute: Path) -> None:
    assert not WriteCache(WHOLE, Roots(sys=tmp_path)).is_none()
    attribute.write_text("")
    assert not WriteCache(WHOLE, Roots(sys=tmp_path)).is_none()


def test_it_is_not_read_once_it_is_closed(attribute: Path, tmp_path: Path) -> None:
    attribute.write_text("write through\n")
    cache = WriteCache(WHOLE, Roots(sys=tmp_path))
    before = len(os.listdir("/proc/self/fd"))
    assert cache.is_none()
    cache.close()
    cache.close()
    assert not cache.is_none()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_is_flushed_always(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(4096))
    with BlockDevice.open(tmp_path / "file") as device:
        assert not device.write_through
