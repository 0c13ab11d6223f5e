"""Moves put together to few requests: every byte arrives, and no more is read than should be."""

from __future__ import annotations

import random

import pytest

from dmcopy.io.simulated import SimulatedDisk
from dmcopy.kcopyd.moves import GAP_SECTORS, MAX_EXTENTS, Move, gather, scatter

SPARE = 1024


def disk(sectors: int, name: str, *, block: int = 512) -> SimulatedDisk:
    made = SimulatedDisk(sectors, name, logical_block_size=block)
    made.load(random.Random(name).randbytes(sectors << 9))
    return made


def shape(moves: list[Move], spare: int = SPARE) -> tuple[list[str], list[str]]:
    """Return the reads and the writes of moves to the disk `out`, as `sector+count`."""
    reads, placed = gather(moves, spare)
    writes = scatter(placed, disk(8, "out"))
    return (
        [f"{part.region.sector}+{part.region.count}" for part in reads],
        [f"{part.region.sector}+{part.region.count}" for part in writes],
    )


def do(moves: list[Move], out: SimulatedDisk, spare: int = SPARE) -> int:
    """Do moves as the requests say; return how much memory that took, in bytes."""
    reads, placed = gather(moves, spare)
    memory = bytearray(4 << 20)
    used = 0
    for region, extents in reads:
        region.check()
        ((start, length),) = extents
        assert not start % region.device.logical_block_size
        assert length == region.count << 9
        assert isinstance(region.device, SimulatedDisk)
        memory[start : start + length] = region.device.read(region.sector, region.count)
        assert start >= used  # none over another
        used = start + length
    for region, extents in scatter(placed, out):
        region.check(write=True)
        assert len(extents) <= MAX_EXTENTS
        data = b"".join(memory[start : start + length] for start, length in extents)
        assert len(data) == region.count << 9
        out.write(region.sector, data)
    return used


def test_what_is_side_by_side_is_one_read_and_one_write() -> None:
    cow = disk(100, "cow")
    assert shape([Move(cow, 8, 40, 4), Move(cow, 12, 32, 4), Move(cow, 16, 36, 4)]) == (
        ["8+12"],
        ["32+12"],
    )


def test_a_short_gap_is_read_along_and_a_long_one_is_not() -> None:
    cow = disk(1000, "cow")
    far = 4 + GAP_SECTORS
    assert shape([Move(cow, 0, 0, 4), Move(cow, far, 8, 4)])[0] == [f"0+{far + 4}"]
    assert shape([Move(cow, 0, 0, 4), Move(cow, far + 1, 8, 4)])[0] == ["0+4", f"{far + 1}+4"]


def test_no_more_is_read_in_vain_than_there_is_room_for() -> None:
    cow, origin = disk(1000, "cow"), disk(1000, "origin")
    moves = [Move(device, 20 * k, 40 * k, 10) for device in (cow, origin) for k in range(4)]
    moves = [move._replace(dest=20 * place) for place, move in enumerate(moves)]
    assert len(shape(moves)[0]) == 2
    assert shape(moves, spare=45)[0] == ["0+70", "0+30", "40+10", "60+10"]
    assert do(moves, disk(1000, "out"), spare=45) == (80 + 40) << 9
    assert shape(moves, spare=30)[0] == ["0+70", "0+10", "20+10", "40+10", "60+10"], "all is used"


def test_a_write_has_no_more_extents_than_the_kernel_takes() -> None:
    cow = disk(4096, "cow")
    moves = [Move(cow, 2 * k, 1500 - k, 1) for k in range(1400)]
    assert shape(moves, spare=4096) == (
        ["0+2799"],
        [f"101+{MAX_EXTENTS}", f"{101 + MAX_EXTENTS}+{MAX_EXTENTS}", "1125+376"],
    )


def test_the_end_of_a_short_chunk_is_read_with_its_block() -> None:
    cow, origin, out = disk(512, "cow", block=4096), disk(64, "origin"), disk(64, "out")
    before = out.read(17, 1)
    moves = [Move(cow, 8, 16, 1), Move(origin, 0, 0, 8), Move(cow, 256, 8, 8)]
    assert shape(moves) == (["8+8", "256+8", "0+8"], ["0+17"])
    do(moves, out)
    assert out.read(0, 8) == origin.read(0, 8)
    assert out.read(8, 8) == cow.read(256, 8)
    assert out.read(16, 1) == cow.read(8, 1)
    assert out.read(17, 1) == before


def test_a_read_begins_on_a_block_in_memory() -> None:
    origin, cow, out = disk(64, "origin"), disk(64, "cow", block=4096), disk(64, "out")
    moves = [Move(origin, 0, 0, 1), Move(cow, 8, 8, 8)]
    do(moves, out)
    assert out.read(8, 8) == cow.read(8, 8)


@pytest.mark.parametrize("seed", range(40))
def test_every_byte_arrives(seed: int) -> None:
    rnd = random.Random(seed)
    devices = [disk(1500, "cow", block=rnd.choice((512, 4096))), disk(1500, "origin")]
    out, unit = disk(1500, "out"), rnd.choice((8, 16))
    places = list(range(0, 1500 - unit, unit))
    moves = [
        Move(rnd.choice(devices), rnd.choice(places), dest, unit)
        for dest in rnd.sample(places, rnd.randrange(1, 60))
    ]
    expected = bytearray(out.content)
    for source, sector, dest, count in moves:
        assert isinstance(source, SimulatedDisk)
        expected[dest << 9 : (dest + count) << 9] = source.read(sector, count)
    used = do(moves, out, spare=200)
    assert out.content == expected
    assert used <= (len(moves) * unit + 200) << 9
