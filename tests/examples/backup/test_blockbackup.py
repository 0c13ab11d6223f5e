"""Five tests of blockbackup. They run on the model, on this kernel, and in guests:

pytest
sudo pytest --dm=host
pytest --vm=6.1,6.12
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import blockbackup
import pytest

SIZE = 1 << 20


def fill(device: os.PathLike[str], byte: bytes) -> None:
    with open(device, "r+b", buffering=0) as file:
        file.write(byte * SIZE)
        os.fsync(file.fileno())


def test_what_is_backed_up_is_restored(scratch_disk, striped) -> None:
    source = striped(scratch_disk(SIZE // 2), scratch_disk(SIZE // 2))
    store = scratch_disk("4M", block_size=4096)
    for byte in (b"1", b"2", b"3"):
        fill(source, byte)
        program = Path(blockbackup.__file__)
        subprocess.run([sys.executable, program, source, store], check=True, timeout=60)
        assert blockbackup.restored(store) == byte * SIZE


@pytest.mark.parametrize("where", ["source", "store"])
def test_a_bad_sector_costs_no_backup(scratch_disk, faulty, where: str) -> None:
    source, store = faulty(scratch_disk(SIZE)), faulty(scratch_disk("4M"))
    blockbackup.backup(source, store)
    if where == "source":
        source.error("1000:8")
    else:
        store.write_error("5000:8")
    with pytest.raises(OSError, match="Input/output error"):
        blockbackup.backup(source, store)
    assert blockbackup.restored(store) == bytes(SIZE)


@pytest.mark.dm(targets=["snapshot", "snapshot-origin"])
def test_a_backup_of_a_snapshot_is_of_one_moment(scratch_disk, snapshot) -> None:
    frozen = snapshot(scratch_disk(SIZE))
    fill(frozen.origin, b"x")  # while the backup runs, as far as it can tell
    store = scratch_disk("4M")
    blockbackup.backup(frozen, store)
    assert blockbackup.restored(store) == bytes(SIZE)
    assert frozen.status().valid


def test_a_crash_in_the_middle_costs_no_backup(scratch_disk, power_cut) -> None:
    source, store = scratch_disk(SIZE), scratch_disk("4M")

    def crash() -> None:
        blockbackup.backup(source, store)
        fill(source, b"y")
        with open(source, "rb") as one, open(store, "r+b") as other:
            blockbackup.copy(one.fileno(), other.fileno(), 1)  # and no head

    power_cut(crash)
    assert blockbackup.restored(store) == bytes(SIZE)


@pytest.mark.dm(kernel=">=6.1")
def test_a_backup_that_is_done_outlasts_a_crash(scratch_disk, linear, power_cut) -> None:
    source, store = scratch_disk(SIZE), linear(scratch_disk("4M"))

    def work() -> None:
        fill(source, b"z")
        blockbackup.backup(source, store)

    power_cut(work)
    assert blockbackup.restored(store) == b"z" * SIZE
