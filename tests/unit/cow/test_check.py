"""Every rule of the store, broken one at a time: the byte is named, and nothing else is said."""

from __future__ import annotations

import contextlib
import json
import random
import struct
import tracemalloc
from array import array
from collections.abc import Sequence
from pathlib import Path

import pytest

from dmcopy.cow import load as loading
from dmcopy.cow.check import LISTED, Problem, StoreReport, check
from dmcopy.cow.load import load
from dmcopy.cow.store import Store, read_header, read_store
from dmcopy.errors import MetadataError
from dmcopy.ondisk.exception_store import AreaLayout, StoreError, build_entry
from tests.unit.cow.conftest import Run
from tests.unit.cow.memory import MemoryDisk
from tests.unit.cow.stores import allocate, build, scattered

CHUNKS = 620
PAIRS = allocate(scattered(600, 1500), 8)
AREA_0, AREA_2 = 4096, 515 * 4096


@pytest.fixture(params=[1 << 20, 512])
def piece(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How much is read at a time: more than a chunk, or, as of a large one, a part of it."""
    length = int(request.param)
    for module in ("store", "check"):
        monkeypatch.setattr(f"dmcopy.cow.{module}.PIECE_BYTES", length)
    return length


def report(data: bytes | bytearray, **expected: int) -> StoreReport:
    return check(MemoryDisk(data), **expected)


def errors(data: bytes | bytearray, **expected: int) -> list[Problem]:
    found = report(data, **expected)
    assert found.errors == sum(problem.is_error for problem in found.problems)
    return [problem for problem in found.problems if problem.is_error]


def refused(data: bytes | bytearray, offset: int, **expected: int) -> str:
    """Check that there is one error, at `offset`, and that loading ends with it; return it."""
    (problem,) = errors(data, **expected)
    assert problem.offset == offset
    with pytest.raises(StoreError, match="'dmcopy cow check' lists everything") as caught:
        load(read_store(MemoryDisk(data)), **expected)  # type: ignore[arg-type]
    assert caught.value.offset == offset
    return problem.text


def with_entry(number: int, old: int, new: int, pairs: int = 600) -> bytearray:
    """Return a store in which entry `number` says something else."""
    changed = PAIRS[:pairs]
    changed[number] = (old, new)
    return build(8, changed, CHUNKS)


def test_chunks_one_after_the_other_up_to_metadata_and_into_it() -> None:
    """The quick look at what is in order has to see the one chunk that is none of the data's."""
    for last in (257, 258):
        data = build(8, [(old, old + 2) for old in range(last - 1)], CHUNKS)
        sound = last == 257
        assert bool(errors(data)) != sound
        with pytest.raises(StoreError) if not sound else contextlib.nullcontext():
            load(read_store(MemoryDisk(data)))


def test_metadata_among_chunks_with_a_gap_is_seen_by_the_quick_look() -> None:
    """As above, of chunks in ascending order that are not one after the other."""
    news = [3, *range(10, 200, 2), 258]
    data = build(8, list(enumerate(news)), CHUNKS)
    assert "258" in refused(data, AREA_0 + 16 * (len(news) - 1) + 8)


@pytest.mark.parametrize("chunk_size", [1, 2, 8, 64])
def test_a_sound_store(chunk_size: int) -> None:
    pairs = allocate(scattered(700, 900), chunk_size)
    data = build(chunk_size, pairs, 760)
    found = report(data, origin_sectors=900 * chunk_size, chunk_size=chunk_size)
    assert (found.valid, found.problems) == (True, [])
    exceptions = load(read_store(MemoryDisk(data)), origin_sectors=900 * chunk_size)
    assert dict(exceptions) == dict(pairs)


@pytest.mark.parametrize("chunk_size", [1, 2, 8])
@pytest.mark.parametrize("olds", [scattered(700, 900), range(900)], ids=["scattered", "in a row"])
def test_a_sound_store_is_loaded_without_the_long_check(
    monkeypatch: pytest.MonkeyPatch, chunk_size: int, olds: Sequence[int]
) -> None:
    """It remembers every chunk, and takes several times as long as the rest."""
    monkeypatch.setattr(loading, "_require_sound", lambda *_: pytest.fail("it was checked"))
    pairs = allocate(olds, chunk_size)
    data = build(chunk_size, pairs, pairs[-1][1] + 1)
    exceptions = load(read_store(MemoryDisk(data)), origin_sectors=900 * chunk_size)
    assert dict(exceptions) == dict(pairs)


def test_chunks_far_apart_are_compared_without_what_is_between_them() -> None:
    """Of a COW of a tebibyte that would be gigabytes."""
    numbers = array("Q", [2, 1 << 20])
    tracemalloc.start()
    assert not loading._is_consecutive(numbers)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 16


@pytest.mark.parametrize("together", [1, 7, 700])
def test_what_is_too_much_to_be_sorted_as_a_whole_is_merged(
    monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    monkeypatch.setattr(loading, "_SORTED_TOGETHER", together)
    pairs = allocate(scattered(700, 900), 1)
    data = build(1, pairs, 760)
    assert list(load(read_store(MemoryDisk(data)))) == sorted(pairs)
    twins = allocate([*scattered(700, 900), pairs[3][0]], 1)
    with pytest.raises(StoreError, match=f"chunk {pairs[3][0]} "):
        load(read_store(MemoryDisk(build(1, twins, 760))))


def test_an_invalidated_store_is_consistent_and_said_to_be_lost() -> None:
    found = report(build(8, PAIRS, CHUNKS, valid=False))
    assert (found.valid, found.errors) == (False, 0)
    assert [problem.offset for problem in found.problems] == [4]
    with pytest.raises(MetadataError, match="byte 4: the snapshot was invalidated"):
        load(read_store(MemoryDisk(build(8, PAIRS, CHUNKS, valid=False))))


@pytest.mark.parametrize(
    ("offset", "value"), [(0, 0x31534658), (8, 7), (12, 0), (12, 9), (12, 1 << 31)]
)
def test_a_header_that_is_no_header(offset: int, value: int) -> None:
    data = build(8, PAIRS, CHUNKS)
    struct.pack_into("<I", data, offset, value)
    (problem,) = errors(data)
    assert problem.offset == offset
    with pytest.raises(MetadataError, match=rf"cow: byte {offset}: "):
        read_header(MemoryDisk(data))


def test_no_store_yet() -> None:
    found = report(bytes(1 << 20))
    assert (found.valid, found.errors, found.notes) == (None, 0, 1)
    with pytest.raises(MetadataError, match="byte 0: the magic is 0: there is no exception store"):
        read_store(MemoryDisk(bytes(1 << 20)))


def test_an_empty_device() -> None:
    assert [problem.offset for problem in errors(b"")] == [0]


def test_valid_is_neither_0_nor_1() -> None:
    data = build(8, PAIRS, CHUNKS)
    struct.pack_into("<I", data, 4, 3)
    assert [problem.offset for problem in errors(data)] == [4]


def test_another_chunk_size_than_the_tables() -> None:
    (problem,) = errors(build(8, PAIRS, CHUNKS), chunk_size=16)
    assert problem.offset == 12
    assert "8 sectors and not 16" in problem.text


@pytest.mark.usefixtures("piece")
@pytest.mark.parametrize("at", [16, 511, 512, 1024, 4095])
def test_rubbish_behind_the_header_is_noted(at: int) -> None:
    data = build(8, PAIRS, CHUNKS)
    data[at] = 1
    assert [problem[::2] for problem in report(data).problems] == [(at, False)]


@pytest.mark.usefixtures("piece")
def test_past_the_end() -> None:
    text = refused(with_entry(599, 3, CHUNKS), AREA_2 + 87 * 16 + 8)
    assert "chunk 3 of the origin is said to be in chunk 620, past the end" in text


@pytest.mark.usefixtures("piece")
def test_in_metadata() -> None:
    text = refused(with_entry(255, 1400, 258), AREA_0 + 255 * 16 + 8)
    assert "chunk 258, which holds metadata: area 1" in text


@pytest.mark.usefixtures("piece")
def test_two_in_one_chunk_of_the_cow() -> None:
    text = refused(with_entry(599, 1400, PAIRS[0][1]), AREA_2 + 87 * 16 + 8)
    assert f"which the entry at byte {AREA_0} has already" in text


@pytest.mark.usefixtures("piece")
def test_one_chunk_of_the_origin_twice() -> None:
    text = refused(with_entry(599, PAIRS[1][0], PAIRS[599][1]), AREA_2 + 87 * 16)
    assert f"is in the entry at byte {AREA_0 + 16}, too" in text


@pytest.mark.usefixtures("piece")
def test_past_the_end_of_the_origin() -> None:
    data = with_entry(599, 1500, PAIRS[599][1])
    assert not errors(data)
    refused(data, AREA_2 + 87 * 16, origin_sectors=1500 * 8)
    assert not errors(data, origin_sectors=1500 * 8 + 1)


@pytest.mark.usefixtures("piece")
def test_out_of_order_is_noted_and_can_be_loaded() -> None:
    """Kernels before snapshot 1.12.0 wrote their entries in the order in which copies ended."""
    pairs = [PAIRS[1], PAIRS[0], *PAIRS[2:]]
    data = build(8, pairs, CHUNKS)
    assert [problem[::2] for problem in report(data).problems] == [(AREA_0 + 16 + 8, False)]
    assert dict(load(read_store(MemoryDisk(data)))) == dict(PAIRS)


def test_holes_are_fine() -> None:
    pairs = [*PAIRS[:10], *PAIRS[12:300]]
    assert report(build(8, pairs, CHUNKS)).problems == []


@pytest.mark.usefixtures("piece")
@pytest.mark.parametrize("number", [11, 20, 32, 255])
def test_left_from_before_is_noted(number: int) -> None:
    data = build(8, PAIRS[:10], CHUNKS)
    at = AREA_0 + number * 16
    data[at : at + 16] = build_entry(7, 5)
    assert [problem[::2] for problem in report(data).problems] == [(at, False)]
    assert len(load(read_store(MemoryDisk(data)))) == 10


def test_an_end_with_an_old_chunk_is_noted() -> None:
    data = build(8, PAIRS[:10], CHUNKS)
    data[AREA_0 + 160 : AREA_0 + 176] = build_entry(7, 0)
    assert [problem[::2] for problem in report(data).problems] == [(AREA_0 + 160, False)]


def test_the_last_area_is_full_and_there_is_no_room_for_another() -> None:
    data = build(8, PAIRS[:256], 300)[: 258 * 4096]
    (problem,) = errors(data)
    assert problem.offset == 258 * 4096
    assert "area 0 is full, so it must be there" in problem.text
    with pytest.raises(StoreError, match="area 1 would be here, past the end"):
        load(read_store(MemoryDisk(data)))


@pytest.mark.parametrize(("chunks", "count"), [(1, 2), (2, 0)])
def test_smaller_than_three_chunks(chunks: int, count: int) -> None:
    data = build(8, [], 4)[: chunks * 4096]
    found = report(data)
    assert found.errors == count
    assert found.problems[0].offset == 12


def test_cut_off_in_a_chunk() -> None:
    data = build(8, PAIRS, CHUNKS)[: 516 * 4096 - 512]  # within area 2
    assert [problem.offset for problem in errors(data)][-1] == 515 * 4096


def test_thousands_of_errors_are_counted_and_the_first_listed() -> None:
    pairs = [(old, 10**6 + old) for old in range(3000)]
    found = report(build(8, pairs, 4000))
    assert (found.errors, len(found.problems)) == (3000, LISTED)


def test_a_gibibyte_chunk_is_read_in_pieces(cow: Run) -> None:
    """A sparse file: what would take memory is the area, as large as a chunk."""
    size = 1 << 30
    with open("cow", "wb") as file:
        file.truncate(4 * size)
        file.write(bytes.fromhex("536e4170010000000100000000002000"))
        file.seek(size)
        file.write(build_entry(0, 2))
    code, out, _ = cow("info", "--json", "cow")
    info = json.loads(out)
    assert (code, info["exceptions"], info["chunk_size"]) == (0, 1, 2097152)
    assert info["status"] == f"{3 * 2097152}/{4 * 2097152} {2 * 2097152}"
    assert cow("dump", "cow")[:2] == (0, "0 2\n")
    assert cow("map", "cow")[0] == 0


def test_an_area_of_many_pieces_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where chunks are larger than what is read at a time."""
    monkeypatch.setattr("dmcopy.cow.store.PIECE_BYTES", 512)
    pairs = allocate(scattered(300, 900), 8)
    assert dict(load(read_store(MemoryDisk(build(8, pairs, 400))))) == dict(pairs)


def test_only_what_is_needed_is_read() -> None:
    """The header, and the areas up to the end of the list: a COW of any size is as quick."""
    disk = MemoryDisk(build(8, PAIRS[:300], CHUNKS))
    header = read_header(disk)
    assert header is not None
    assert sum(len(entries.pairs) for entries in Store(disk, header).entries()) == 600
    assert disk.reads == [(0, 1), (8, 8), (258 * 8, 8)]


def test_a_few_twins_are_looked_for_and_all_are_counted() -> None:
    pairs = [(old % 30, new) for old, new in allocate(range(100), 1)]
    found = errors(build(1, pairs, 200))
    assert len(found) == 70
    texts = [problem.text for problem in found]
    assert texts[0] == "chunk 0 of the origin is in the entry at byte 512, too"
    assert texts[19] == f"chunk 19 of the origin is in the entry at byte {512 + 19 * 16}, too"
    assert texts[20] == "chunk 20 of the origin is in an entry before this one, too"


def test_a_check_remembers_little() -> None:
    olds = random.Random(1).sample(range(100_000), 50_000)
    disk = MemoryDisk(build(1, allocate(olds, 1), 52_000))
    tracemalloc.start()
    found = check(disk, origin_sectors=100_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not found.problems
    assert peak < 1 << 20


def test_a_hundred_gibibytes(cow: Run) -> None:
    """A hundred areas, on a sparse file."""
    layout = AreaLayout(8)
    with open("cow", "wb") as file:
        file.truncate(100 << 30)
        file.write(bytes.fromhex("536e4170010000000100000008000000"))
        for area in range(100):
            file.seek(layout.area_location(area) * 4096)
            first = layout.area_location(area) + 1
            file.writelines(
                build_entry(400 * (area * 256 + place), first + place) for place in range(256)
            )
    code, out, _ = cow("info", "--json", "cow")
    assert (code, json.loads(out)["exceptions"]) == (0, 25600)
    code, out, _ = cow("dump", "cow")
    assert (code, out.count("\n"), out[:6]) == (0, 25600, "0 2\n40")
    assert cow("check", "cow")[0] == 0


@pytest.mark.parametrize(
    "words", [["info"], ["dump"], ["check"], ["map"], ["diff", "--origin", "o"]]
)
def test_looking_never_writes(cow: Run, words: list[str]) -> None:
    data = with_entry(599, 3, CHUNKS)
    Path("cow").write_bytes(data)
    Path("cow").chmod(0o400)
    Path("o").write_bytes(bytes(1 << 20))
    before = Path("cow").stat()
    cow(*words, "cow")
    assert Path("cow").read_bytes() == data
    assert Path("cow").stat().st_mtime_ns == before.st_mtime_ns
