"""Snapshots: what was wrong once."""

from __future__ import annotations

import errno
import random
import struct
from collections.abc import Iterable

import pytest

from dmcopy.errors import DeviceError
from dmcopy.io import IoRegion
from dmcopy.io.request import Io, Memory, Op
from dmcopy.io.simulated import SimulatedDisk
from dmcopy.table import Table
from dmcopy.targets.origin import SnapshotModule
from dmcopy.targets.persistent import PersistentStore
from dmcopy.targets.store import TransientStore

from .conftest import Engine


@pytest.fixture
def disk_sectors() -> int:
    return 2048


def sectors(seed: int, count: int) -> bytes:
    return random.Random(seed).randbytes(count << 9)


def write_together(engine: Engine, name: str, places: Iterable[int]) -> None:
    """Write the sectors at these places, all together."""
    device, reactor = engine.mapper.open(name), engine.mapper.reactor
    memory, done = Memory(1), list[Io]()
    for place in places:
        region = IoRegion(device, place, 1)
        reactor.submit(Io(Op.WRITE, region, memory, [(0, 512)], done.append))
    reactor.run_until(lambda: len(done) == len(list(places)), 10, "the writes")
    assert not any(write.error for write in done)


def test_copies_to_a_cow_that_is_a_mapped_device_all_end(engine: Engine) -> None:
    # Those that ended while others were under way were forgotten, and their writers hung.
    engine.make("cow", "0 2048 linear b 0")
    engine.make("o", "0 256 snapshot-origin a")
    engine.make("s", "0 256 snapshot a /dev/mapper/cow P 8")
    engine.mapper.suspend("o")
    engine.mapper.resume("o")
    write_together(engine, "o", range(0, 256, 16))
    assert engine.status("s") == "144/2048 16"


@pytest.mark.parametrize(
    ("header", "number"),
    [
        (b"SnAp" + struct.pack("<3I", 1, 2, 8), errno.EINVAL),
        (b"SnAp" + struct.pack("<3I", 1, 1, 12), errno.EINVAL),
        (b"SnAp" + struct.pack("<3I", 1, 1, 0), errno.EINVAL),
        (b"snap" + struct.pack("<3I", 1, 1, 8), errno.ENXIO),
    ],
)
def test_a_wrong_header_is_refused_with_the_kernels_errno(
    engine: Engine, header: bytes, number: int
) -> None:
    # A wrong chunk size was ENXIO.
    engine.disks["b"].load(header.ljust(2048 << 9, b"\0"))
    with pytest.raises(DeviceError) as caught:
        engine.make("s", "0 256 snapshot a b P 8")
    assert caught.value.errno == number


@pytest.mark.parametrize("cow_sectors", [24, 2048], ids=["a full COW", "a COW that fails"])
def test_the_origin_is_written_only_after_the_store_says_that_it_is_invalid(
    engine: Engine, cow_sectors: int
) -> None:
    # The header was written whenever it came: a crash left a valid store without the old data.
    engine.disks["b"] = SimulatedDisk(cow_sectors, "b")
    engine.make("o", "0 256 snapshot-origin a")
    engine.make("s", "0 256 snapshot a b P 8")
    engine.mapper.suspend("o")
    engine.mapper.resume("o")
    engine.mapper.open("o").write(0, sectors(1, 8))
    if cow_sectors > 24:
        engine.disks["b"].fail(Op.WRITE, 24, 8)
    headers: list[bytes] = []
    engine.disks["a"].write = (  # type: ignore[method-assign]
        lambda *args, **more: (  # type: ignore[assignment]
            headers.append(engine.disks["b"].read(0, 1)[4:5]),
            SimulatedDisk.write(engine.disks["a"], *args, **more),
        )
    )
    engine.mapper.open("o").write(8, sectors(2, 8))
    assert headers == [b"\0"]
    assert engine.status("s") == "Invalid"
    assert engine.mapper.info("s").events == 1


def test_a_snapshot_that_waits_for_a_handover_counts_nothing(engine: Engine) -> None:
    # It said 16/2048 16: the size of the chunks of its table.
    engine.make("s", "0 256 snapshot a b P 8")
    engine.mapper.create("t")
    engine.mapper.load("t", Table.parse("0 256 snapshot a b P 8"))
    with pytest.raises(DeviceError, match="source is suspended"):
        engine.mapper.resume("t")
    assert engine.status("t") == "0/2048 0"
    engine.mapper.suspend("s")
    engine.mapper.resume("t")
    assert engine.status("t") == "16/2048 16"


def test_a_handover_does_not_change_the_kind_of_a_store(engine: Engine) -> None:
    # A transient store, handed over to a table with P, said that it was persistent.
    engine.make("s", "0 256 snapshot a b N 8")
    engine.mapper.swap("s", Table.parse("0 256 snapshot a b PO 8"))
    assert engine.mapper.table("s") == Table.parse("0 256 snapshot a b N 8")
    assert engine.status("s") == "0/2048 0"


def test_a_merge_takes_discards_only_with_the_feature(engine: Engine) -> None:
    # It took them always. They do nothing.
    engine.make("o", "0 256 snapshot-merge a b P 8")
    with pytest.raises(DeviceError) as caught:
        engine.mapper.open("o").discard(0, 8)
    assert caught.value.errno == errno.EOPNOTSUPP
    engine.mapper.swap("o", Table.parse("0 256 linear a 0"))
    engine.make("m", "0 256 snapshot-merge a b P 8 1 discard_zeroes_cow")
    engine.mapper.open("m").discard(0, 8)


@pytest.mark.parametrize("place", [128, 200])
def test_a_write_behind_the_end_of_an_origin_that_shrank_ends(engine: Engine, place: int) -> None:
    # The copy was of no sectors, which is no failure, or of less, and then nothing ended the write.
    engine.make("below", "0 256 linear a 0")
    engine.make("s", "0 256 snapshot /dev/mapper/below b P 8")
    engine.make("o", "0 256 snapshot-origin /dev/mapper/below")
    engine.mapper.suspend("below")
    engine.mapper.load("below", Table.parse("0 128 linear a 0"))
    engine.mapper.resume("below")
    with pytest.raises(DeviceError) as caught:
        engine.mapper.open("o").write(place, sectors(1, 8))
    assert caught.value.errno == errno.EIO
    assert engine.status("s") == "Invalid"


def test_a_merge_goes_on_after_the_handover_of_another_snapshot(engine: Engine) -> None:
    """It is stopped for that: the exceptions that it has copied out would change hands."""
    engine.make("n", "0 256 snapshot a c P 8")
    engine.make("m", "0 256 snapshot a b P 8")
    write_together(engine, "m", range(0, 256, 16))
    engine.mapper.load("n", Table.parse("0 256 snapshot a c PO 8"))
    engine.mapper.suspend("m")
    engine.mapper.module(SnapshotModule).merge = "kernel"
    engine.make("o", "0 256 snapshot-merge a b P 8")
    engine.mapper.reactor.step()
    before = engine.status("o")
    engine.mapper.suspend("n")
    engine.mapper.resume("n")
    assert engine.status("n").endswith("/2048 16")
    assert before != "16/2048 16" != engine.status("o"), "it is not over yet"
    engine.mapper.sleep(10)
    assert engine.status("o") == "16/2048 16"


def test_nothing_is_kept_of_an_origin_that_nothing_uses(engine: Engine) -> None:
    """Else a handover of later snapshots would hold a device that is not there."""
    engine.make("s", "0 256 snapshot a b P 8")
    engine.make("o", "0 256 snapshot-origin a")
    for text in ("0 256 snapshot-merge a b P 8", "0 256 snapshot-origin a"):
        engine.mapper.suspend("s")
        engine.mapper.load("o", Table.parse(text))
        engine.mapper.resume("o")
        engine.mapper.sleep(1)
        (origin,) = engine.mapper.module(SnapshotModule).origins.values()
        assert [host.name for host in origin.hosts] == ["o"]
    engine.mapper.remove("s")
    engine.mapper.remove("o")
    assert engine.mapper.module(SnapshotModule).origins == {}


def test_an_origin_without_snapshots_cuts_no_write(engine: Engine) -> None:
    engine.make("o", "0 256 snapshot-origin a")
    engine.mapper.open("o").write(8, sectors(1, 128))
    assert engine.disks["a"].writes == 1


def test_a_write_over_chunks_that_are_copied_out_stays_whole(engine: Engine) -> None:
    """What the kernel cuts at chunks, its block layer merges again above a disk."""
    engine.make("s", "0 256 snapshot a b P 8")
    engine.make("t", "0 256 snapshot a c P 16")
    engine.make("o", "0 256 snapshot-origin a")
    device, disk = engine.mapper.open("o"), engine.disks["a"]
    old = disk.read(0, 256)
    device.write(0, sectors(1, 64))
    device.write(80, sectors(2, 100))
    before, data = disk.writes, sectors(3, 180)
    device.write(4, data)
    assert disk.writes - before == 4  # to 64, a chunk each to 72 and to 80, and the rest
    assert disk.read(4, 180) == data
    for name in "st":
        assert engine.mapper.open(name).read(0, 256) == old


def test_above_a_mapped_device_writes_are_cut_as_in_the_kernel(engine: Engine) -> None:
    """What a target below sees or refuses is a chunk at a time."""
    engine.make("l", "0 256 linear a 0")
    path = engine.mapper.path("l")
    engine.make("s", f"0 256 snapshot {path} b P 8")
    engine.make("o", f"0 256 snapshot-origin {path}")
    device, disk = engine.mapper.open("o"), engine.disks["a"]
    device.write(0, sectors(1, 64))
    before = disk.writes
    device.write(0, sectors(2, 64))
    assert disk.writes - before == 8


def test_a_store_of_ones_own_need_not_be_one_that_merges(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PersistentStore, "can_merge", False)
    with pytest.raises(DeviceError, match="exception store does not support snapshot-merge"):
        engine.make("m", "0 256 snapshot-merge a b P 8")
    assert engine.mapper.ls() == []


def test_a_write_of_a_whole_chunk_stands_for_its_copy(engine: Engine) -> None:
    """What comes while it is under way waits for it, and does not begin a copy beside it."""
    engine.make("s", "0 256 snapshot a b P 8")
    reactor, device, ended = engine.mapper.reactor, engine.mapper.open("s"), list[Io]()
    memory = Memory(1)
    memory.view[:] = b"n" * 4096
    for start, count in ((16, 8), (18, 1), (16, 8)):
        region, extents = IoRegion(device, start, count), [(0, count << 9)]
        reactor.submit(Io(Op.WRITE, region, memory, extents, ended.append))
    reactor.run_until(lambda: len(ended) == 3, 10, "the writes")
    assert [write.error for write in ended] == [0] * 3
    (target,) = device.active.targets  # type: ignore[union-attr]
    assert target.client.statistics().sectors_read == 0  # type: ignore[union-attr]
    assert engine.disks["b"].read(16, 8) == b"n" * 4096


def test_a_chunk_of_the_cow_is_zeroed_also_where_the_disk_has_no_discards(engine: Engine) -> None:
    engine.make("s", "0 256 snapshot a b P 8 1 discard_zeroes_cow")
    device = engine.mapper.open("s")
    device.write(16, sectors(1, 8))
    engine.disks["b"].fail(Op.DISCARD, 0, 2048, error=errno.EOPNOTSUPP)
    device.discard(16, 8)
    assert device.read(16, 8) == engine.disks["b"].read(16, 8) == bytes(4096)


def test_a_store_in_memory_that_changes_hands_goes_by_the_new_handle(engine: Engine) -> None:
    store = TransientStore(SimulatedDisk(8), 8)
    assert (store.prepare(), store.prepare()) == (0, None)
    store.attach(engine.mapper.reactor, SimulatedDisk(16))
    assert (store.prepare(), store.prepare(), store.usage()) == (1, None, (16, 16, 0))
