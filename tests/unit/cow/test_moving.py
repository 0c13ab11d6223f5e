"""Moves by the window: their data, errors in the middle, and which chunk it was."""

from __future__ import annotations

import errno
import random
import re
from collections.abc import Iterator, Sequence
from contextlib import closing

import pytest

from dmcopy.cow import merge as merging
from dmcopy.cow import moving
from dmcopy.cow.extract import plan_extract
from dmcopy.cow.merge import plan_merge
from dmcopy.cow.moving import WINDOW_SECTORS, Mover
from dmcopy.cow.store import read_store
from dmcopy.errors import DeviceError, UsageError
from dmcopy.io.reactor import Reactor
from dmcopy.io.region import Device, IoRegion
from dmcopy.io.request import CopyIo, Io, Op, Request
from dmcopy.io.simulated import SimulatedBackend, SimulatedDisk
from dmcopy.kcopyd.moves import Move
from tests.unit.cow.memory import MemoryDisk
from tests.unit.cow.stores import Pairs, allocate, build, overlay

CHUNK = 2
ORIGIN_SECTORS = 5999  # the last chunk is a short one
CHUNKS = 3000


class Bench:
    """An origin whose every other run of chunks, in no order, is on a COW; and an image to be."""

    def __init__(self, seed: int = 0) -> None:
        rnd = random.Random(seed)
        starts = rnd.sample(range(0, CHUNKS, 20), 150)
        olds = [start + place for start in starts for place in range(rnd.randrange(1, 20))]
        self.pairs: Pairs = allocate([*olds[:700], CHUNKS - 1, *olds[700:]], CHUNK)
        origin = rnd.randbytes(ORIGIN_SECTORS * 512)
        cow = build(CHUNK, self.pairs, len(self.pairs) + 100, seed=seed)
        self.origin, self.cow = MemoryDisk(origin, "origin"), MemoryDisk(cow)
        self.out = SimulatedDisk(ORIGIN_SECTORS, "out")
        self.content = overlay(origin, cow, CHUNK, self.pairs)
        self.reactor = Reactor(SimulatedBackend(seed))

    def extract(self, *, changed_only: bool = False) -> Mover:
        origin, out = (IoRegion(disk, 0, ORIGIN_SECTORS) for disk in (self.origin, self.out))
        mover = Mover(self.reactor, self.out, chunk_size=CHUNK)
        plan_extract(origin, self.cow, out, changed_only=changed_only).run(mover)
        return mover

    def merge(self) -> None:
        plan = plan_merge(IoRegion(self.origin, 0, ORIGIN_SECTORS), self.cow)
        plan.run(Mover(self.reactor, self.origin, chunk_size=CHUNK))


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    with made.reactor:
        yield made


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("changed_only", [False, True])
def test_extract(seed: int, changed_only: bool) -> None:
    bench = Bench(seed)
    if changed_only:
        bench.out.load(bench.origin.content)
    mover = bench.extract(changed_only=changed_only)
    assert bytes(bench.out.content) == bench.content
    changed = len(bench.pairs) * CHUNK - 1
    assert mover.sectors == (changed if changed_only else ORIGIN_SECTORS)


@pytest.mark.parametrize("sectors", [31, 32])
@pytest.mark.parametrize("olds", [[], [0], [7, 8], [15], [0, 15], list(range(16))])
def test_an_image_is_whole_wherever_the_changed_chunks_are(sectors: int, olds: list[int]) -> None:
    """The rest is the origin's: before the first of them, in between, and behind the last."""
    rnd = random.Random(1)
    pairs = allocate(olds, CHUNK)
    origin, cow = rnd.randbytes(sectors * 512), build(CHUNK, pairs, 40)
    disk, out = MemoryDisk(origin, "origin"), SimulatedDisk(sectors, "out")
    plan = plan_extract(IoRegion(disk, 0, sectors), MemoryDisk(cow), IoRegion(out, 0, sectors))
    with (
        Reactor(SimulatedBackend(1)) as reactor,
        closing(Mover(reactor, out, chunk_size=CHUNK)) as mover,
    ):
        plan.run(mover)
        assert mover.sectors == plan.total == sectors
    assert bytes(out.content) == overlay(origin, cow, CHUNK, pairs)


def test_an_image_is_written_in_long_pieces(bench: Bench) -> None:
    bench.extract()
    assert bench.out.writes == -(-ORIGIN_SECTORS // WINDOW_SECTORS)


def test_a_cow_is_read_in_long_pieces(bench: Bench) -> None:
    reads = [0]
    submit = bench.reactor.backend.submit

    def counting(request: Request) -> None:
        reads[0] += request.op == Op.READ
        submit(request)

    bench.reactor.backend.submit = counting  # type: ignore[method-assign]
    bench.extract(changed_only=True)
    assert 0 < reads[0] <= len(bench.pairs) * CHUNK // WINDOW_SECTORS + 1


@pytest.mark.parametrize("place", [0, 350, 1000, -1])
@pytest.mark.parametrize("action", ["extract", "changed", "merge"])
def test_a_chunk_that_cannot_be_read_is_named(bench: Bench, place: int, action: str) -> None:
    old, new = bench.pairs[place]
    before = dict(bench.pairs)
    bench.cow.fail(Op.READ, new * CHUNK, 1)
    with pytest.raises(DeviceError) as caught:
        {
            "extract": bench.extract,
            "changed": lambda: bench.extract(changed_only=True),
            "merge": bench.merge,
        }[action]()
    assert (caught.value.path, caught.value.errno) == ("cow", errno.EIO)
    assert str(caught.value).endswith(f"; this is chunk {old} of the snapshot")
    assert re.search(rf"cannot read [12] sectors from {new * CHUNK}:", str(caught.value))
    if action == "merge":  # nothing is forgotten that did not arrive
        left = [
            pair
            for entries in read_store(bench.cow).entries()
            for pair in zip(entries.olds, entries.news, strict=True)
        ]
        assert (old, new) in left
        assert before == dict(bench.pairs)
        bench.cow.faults.clear()
        bench.merge()
        assert bytes(bench.origin.content) == bench.content


def test_the_first_of_several_that_cannot_be_read_is_named(bench: Bench) -> None:
    for old, new in bench.pairs[:50]:
        bench.cow.fail(Op.READ, new * CHUNK, 1)
        first = min(old for old, _ in bench.pairs[:50])
    with pytest.raises(DeviceError, match=f"; this is chunk {first} of the snapshot"):
        bench.extract(changed_only=True)


def test_a_short_chunk_on_a_cow_of_larger_blocks_that_cannot_be_read(bench: Bench) -> None:
    """It is done over in whole blocks, too."""
    cow, out = MemoryDisk(bytes(4096 * 4)), SimulatedDisk(9, "out")
    cow.logical_block_size = 4096
    cow.fail(Op.READ, 16, 1, times=1)
    counts: list[int] = []
    submit = bench.reactor.backend.submit

    def noting(request: Request) -> None:
        if isinstance(request, Io):
            counts.append(request.count)
        submit(request)

    bench.reactor.backend.submit = noting  # type: ignore[method-assign]
    mover = Mover(bench.reactor, out, chunk_size=8)
    mover.run([Move(cow, 16, 8, 1)])
    assert counts == [8, 8, 1]


def test_a_chunk_of_the_origin_that_cannot_be_read_is_named(bench: Bench) -> None:
    changed = dict(bench.pairs)
    bad = next(old for old in range(1500, CHUNKS) if old not in changed)
    bench.origin.fail(Op.READ, bad * CHUNK + 1, 1)
    with pytest.raises(DeviceError, match=f"origin: .*this is chunk {bad} of the snapshot"):
        bench.extract()


def test_what_nobody_wants_need_not_be_readable(bench: Bench) -> None:
    """Chunks of the origin that are on the COW are read along with their neighbours."""
    for old, _ in bench.pairs:
        bench.origin.fail(Op.READ, old * CHUNK, min(CHUNK, ORIGIN_SECTORS - old * CHUNK))
    bench.extract()
    assert bytes(bench.out.content) == bench.content


def test_a_read_that_fails_once_is_done_again(bench: Bench) -> None:
    fault = bench.cow.fail(Op.READ, 100, 1, times=1)
    bench.extract()
    assert fault.times == 0
    assert bytes(bench.out.content) == bench.content


@pytest.mark.parametrize("action", ["extract", "merge"])
def test_a_write_that_fails(bench: Bench, action: str) -> None:
    dest = bench.out if action == "extract" else bench.origin
    sector = bench.pairs[40][0] * CHUNK
    fault = dest.fail(Op.WRITE, sector, 1)
    with pytest.raises(DeviceError, match=rf"{dest.path}: cannot write \d+ sectors from \d+: "):
        bench.extract() if action == "extract" else bench.merge()
    dest.faults.remove(fault)
    bench.extract() if action == "extract" else bench.merge()
    assert bytes(dest.content) == bench.content


def test_what_ends_early_waits_for_what_is_under_way(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An area that cannot be written ends a merge while the next batch is being copied."""
    monkeypatch.setattr(merging, "BATCH_BYTES", 256 << 10)
    last_area = read_store(bench.cow).area_offset(len(bench.pairs) // 64) >> 9
    bench.cow.fail(Op.WRITE, last_area, CHUNK)
    plan = plan_merge(IoRegion(bench.origin, 0, ORIGIN_SECTORS), bench.cow)
    mover = Mover(bench.reactor, bench.origin, chunk_size=CHUNK)
    with pytest.raises(DeviceError, match="cow: cannot write"):
        plan.run(mover)
    moved = mover.sectors
    mover.close()
    assert moved < mover.sectors < plan.total
    with pytest.raises(Exception, match="never happens"):  # there is no I/O left
        bench.reactor.step(None)


def test_a_long_move_is_cut_at_whole_chunks(bench: Bench) -> None:
    source, out = MemoryDisk(random.Random(1).randbytes(9024 * 512)), SimulatedDisk(9000, "out")
    source.logical_block_size = 32 * 512
    reads: list[Io] = []
    submit = bench.reactor.backend.submit

    def noting(request: Request) -> None:
        if isinstance(request, Io) and request.op == Op.READ:
            reads.append(request)
        submit(request)

    bench.reactor.backend.submit = noting  # type: ignore[method-assign]
    mover = Mover(bench.reactor, out, chunk_size=32)
    mover.run([Move(source, 0, 0, 1), Move(source, 32, 32, 8968)])
    assert len(reads) == 5  # the sector and the chunks behind it are one
    assert not any(read.sector % 32 for read in reads)
    assert mover.sectors == 8969
    assert out.content[: 1 << 9] == source.content[: 1 << 9]
    assert out.content[32 << 9 :] == source.content[32 << 9 : 9000 << 9]
    assert out.writes == 6  # the first window has one sector, and 63 chunks


@pytest.mark.parametrize("seconds", [4, 40])
def test_a_limit_is_kept(bench: Bench, seconds: int) -> None:
    """In bytes a second: with it the windows are so small that some begin each second."""
    plan = plan_merge(IoRegion(bench.origin, 0, ORIGIN_SECTORS), bench.cow)
    size = len(bench.pairs) * CHUNK << 9
    before = bench.reactor.time()
    longest = 0
    submit = bench.reactor.backend.submit

    def noting(request: Request) -> None:
        nonlocal longest
        if isinstance(request, CopyIo):
            longest = max(longest, request.bytes)
        submit(request)

    bench.reactor.backend.submit = bench.reactor.submit = noting  # type: ignore[method-assign]
    mover = Mover(bench.reactor, bench.origin, chunk_size=CHUNK, limit=size // seconds)
    plan.run(mover)
    assert seconds - 1 < bench.reactor.time() - before < seconds * 1.5
    assert longest <= 2 * size // seconds // 8
    assert bench.origin.content == bench.content


@pytest.mark.parametrize(
    ("limit", "block", "window"),
    [
        (0, 512, 2048),
        (1, 512, 8),
        (1, 8192, 16),
        (1 << 20, 512, 256),
        ((1 << 20) - 1, 512, 248),
        ((1 << 20) - 1, 8192, 240),
        (1 << 30, 512, 2048),
    ],
)
def test_what_a_mover_takes(limit: int, block: int, window: int) -> None:
    """Sixteen mebibytes, whatever there is to move; a limit is kept in eighths of a second."""
    out = SimulatedDisk(4096, "out", logical_block_size=block)
    with (
        Reactor(SimulatedBackend(1)) as reactor,
        closing(Mover(reactor, out, chunk_size=16, limit=limit)) as mover,
    ):
        client = mover._client
        assert client.pool.memory.size_bytes == 16 << 20
        assert client.sub_job_sectors == window


def test_nothing_is_written_past_the_end(bench: Bench) -> None:
    mover = Mover(bench.reactor, bench.out, chunk_size=CHUNK)
    with pytest.raises(UsageError, match="past the end"):
        mover.run([Move(bench.cow, 0, ORIGIN_SECTORS - 1, 2)])
    assert not bench.out.writes


@pytest.mark.parametrize("batch_bytes", [merging.BATCH_BYTES, 1 << 20])
def test_large_chunks(bench: Bench, monkeypatch: pytest.MonkeyPatch, batch_bytes: int) -> None:
    """A chunk of 4 MiB is more than a window, and may be more than a batch."""
    monkeypatch.setattr(merging, "BATCH_BYTES", batch_bytes)
    size = 8192
    pairs = allocate([2, 0], size)
    origin = random.Random(1).randbytes((3 * size - 100) * 512)
    cow = MemoryDisk(build(size, pairs, 4))
    disk = MemoryDisk(origin, "origin")
    plan = plan_merge(IoRegion(disk, 0, disk.sectors), cow)
    plan.run(Mover(bench.reactor, disk, chunk_size=size))
    assert bytes(disk.content) == overlay(origin, bytes(cow.content), size, pairs)


@pytest.mark.parametrize("which", ["origin", "out"])
def test_chunks_that_are_no_whole_blocks_are_refused(bench: Bench, which: str) -> None:
    """As by the kernel: each of them would be written with a part of its neighbour's block."""
    getattr(bench, which).logical_block_size = 4096
    regions = [IoRegion(disk, 0, ORIGIN_SECTORS - 7) for disk in (bench.origin, bench.out)]
    says = f"{which} has blocks of 4096 bytes, and the chunks on cow are 1024 bytes"
    with pytest.raises(UsageError, match=says):
        plan_extract(regions[0], bench.cow, regions[1])
    if which == "origin":
        with pytest.raises(UsageError, match=says):
            plan_merge(regions[0], bench.cow)


def test_the_end_of_an_area_is_cleared_and_nothing_else_of_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block that is written anew keeps its first entries, whichever block of the area it is."""
    pairs = allocate(range(0, 200, 2), 8)
    cow = MemoryDisk(build(8, pairs, 110))
    monkeypatch.setattr(merging, "BATCH_BYTES", 7 * 4096)
    plan = plan_merge(IoRegion(bench.origin, 0, 8 * 200), cow)
    left: list[Pairs] = []
    flush = Mover.flush

    def noting(self: Mover, device: Device) -> None:
        flush(self, device)
        if device is cow:
            entries = list(read_store(cow).entries())
            left.append([pair for e in entries for pair in zip(e.olds, e.news, strict=True)])

    monkeypatch.setattr(Mover, "flush", noting)
    plan.run(Mover(bench.reactor, bench.origin, chunk_size=8))
    assert left == [pairs[:end] for end in (*range(93, 0, -7), 0)]


def test_progress_is_told_while_moves_are_under_way(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving, "PROGRESS_SECONDS", 1e-4)
    told: list[int] = []
    mover = Mover(
        bench.reactor,
        bench.out,
        chunk_size=CHUNK,
        observer=lambda sectors, _: told.append(sectors),
    )
    origin, out = (IoRegion(disk, 0, ORIGIN_SECTORS) for disk in (bench.origin, bench.out))
    plan_extract(origin, bench.cow, out, changed_only=False).run(mover)
    assert told == sorted(told)
    assert told[-1] == ORIGIN_SECTORS
    assert any(0 < sectors < ORIGIN_SECTORS for sectors in told)


class Moves:
    """Moves that count how many of them were asked for."""

    def __init__(self, bench: Bench, count: int) -> None:
        self.bench, self.count, self.begun = bench, count, 0

    def __iter__(self) -> Iterator[Move]:
        for number in range(self.count):
            self.begun = number + 1
            at = number * 2 % 2500 * CHUNK
            yield Move(self.bench.origin, at, at, CHUNK)


def test_an_interrupt_ends_it_long_before_all_is_moved(bench: Bench) -> None:
    """Ctrl-C in the middle of a large image is not answered an hour later."""
    mover = Mover(bench.reactor, bench.out, chunk_size=CHUNK)
    moves = Moves(bench, 20_000)
    mover.start(iter(moves))
    mover.interrupt()
    mover.finish()
    assert mover.interrupted
    assert moves.begun < moves.count, "what was not begun is not begun any more"
    mover.run([Move(bench.origin, 0, 0, CHUNK)])
    assert mover.sectors <= moves.begun * CHUNK, "nor is anything that comes later"
    mover.close()


def test_closing_begins_nothing_more(bench: Bench) -> None:
    """What fails in the middle of a merge closes it, and waits for no more than is under way."""
    moves = Moves(bench, 20_000)
    mover = Mover(bench.reactor, bench.out, chunk_size=CHUNK)
    mover.start(iter(moves))
    mover.close()
    assert moves.begun < moves.count


def test_a_merge_writes_what_it_clears_and_not_what_is_in_front_of_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An area of a large chunk is megabytes of entries: a batch of few must not write all of it."""
    monkeypatch.setattr(merging, "BATCH_BYTES", 16 * CHUNK << 9)  # a quarter of an area
    written: list[tuple[int, int]] = []
    write = Mover.write

    def noting(self: Mover, device: Device, writes: Sequence[moving.Write]) -> None:
        written.extend((one.sector, len(one.data) >> 9) for one in writes)
        write(self, device, writes)

    monkeypatch.setattr(Mover, "write", noting)
    areas = [read_store(bench.cow).area_offset(n) >> 9 for n in range(len(bench.pairs) // 64 + 1)]
    bench.merge()
    # 32 entries are a sector, 64 an area: the second half of one is a write of its second sector.
    halves = [(area + 1, 1) for area in areas[:-1]]
    assert set(halves) <= set(written)
