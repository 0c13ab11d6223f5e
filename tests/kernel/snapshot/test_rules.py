"""The rules of dm-snapshot on both engines: what is kept where, and when it is lost."""

from __future__ import annotations

import struct

import pytest

from .engines import SECTORS, Engine, error_name, pattern
from .recipes import LENGTH, drop, fill_origin, pause, small, take


def test_the_first_bytes(engine: Engine) -> None:
    take(engine)
    assert engine.status("s") == f"16/{SECTORS} 16"
    assert engine.peek("B", 0, 1)[:16].hex() == "536e4170010000000100000008000000"
    for chunk in (5, 6, 100, 7):
        engine.write("o", chunk * 8, pattern(2, 8))
    assert engine.exceptions("B") == [(5, 2), (6, 3), (100, 4), (7, 5)]
    assert engine.status("s") == f"48/{SECTORS} 16"
    assert engine.read("s", 0, LENGTH) == pattern(1, LENGTH)
    assert engine.table("s") == f"0 {LENGTH} snapshot @A @B P 8"
    assert engine.table("o") == f"0 {LENGTH} snapshot-origin @A"
    assert engine.status("o") == ""
    drop(engine, "s", "o")


@pytest.mark.parametrize("rest", [0, 7], ids=["whole", "and a part of a chunk"])
@pytest.mark.parametrize("cause", ["origin", "snapshot"])
@pytest.mark.parametrize("store", ["P", "PO", "N"])
def test_a_full_cow(engine: Engine, store: str, cause: str, rest: int) -> None:
    small(engine, 4 * 8 + rest)
    take(engine, "@cow", store)
    room = 4 if store == "N" else 2
    engine.write("s", 0, pattern(2, room * 8))
    assert engine.status("s") == f"32/{32 + rest} {0 if store == 'N' else 16}"
    error = error_name(lambda: engine.write("so"[cause == "origin"], 800, pattern(3, 8)))
    assert error == ("" if cause == "origin" else "EIO")
    if (store, cause) == ("PO", "snapshot"):
        assert (engine.status("s"), engine.events("s")) == ("Overflow", 0)
        assert engine.header("B") == (True, 1, 8)
        assert error_name(lambda: engine.write("s", 0, pattern(4, 8))) == "EIO"
        assert engine.read("s", 0, LENGTH) == (
            pattern(2, room * 8) + pattern(1, LENGTH)[room * 4096 :]
        )
        engine.write("o", 0, pattern(5, 8))
        assert engine.status("s") == "Overflow"
        assert error_name(lambda: engine.flush("s")) == ""
        engine.write("o", 800, pattern(5, 8))
    assert (engine.status("s"), engine.events("s")) == ("Invalid", 1)
    assert error_name(lambda: engine.read("s", 0, 8)) == "EIO"
    assert error_name(lambda: engine.write("s", 0, pattern(4, 8))) == "EIO"
    if store != "N":
        assert engine.header("B") == (False, 1, 8)
    engine.write("o", 1600, pattern(5, 8))
    assert (engine.status("s"), engine.events("s")) == ("Invalid", 1)
    pause(engine, "s")
    drop(engine, "s", "o", "cow")


def test_overflow_is_not_kept(engine: Engine) -> None:
    small(engine, 3 * 8)
    take(engine, "@cow", "PO")
    assert error_name(lambda: engine.write("s", 0, pattern(2, 16))) == "EIO"
    assert engine.status("s") == "Overflow"
    engine.swap("s", f"0 {LENGTH} snapshot @A @cow PO 8")
    assert engine.status("s") == "Overflow"
    drop(engine, "s")
    engine.create("s", f"0 {LENGTH} snapshot @A @cow PO 8")
    assert engine.status("s") == "24/24 16"
    drop(engine, "s", "o", "cow")


@pytest.mark.parametrize("chunk", [1, 8])
@pytest.mark.parametrize("spare", [0, 1])
def test_the_last_slot_of_an_area_needs_the_next_area(
    engine: Engine, chunk: int, spare: int
) -> None:
    entries = chunk * 32
    small(engine, (2 + entries + spare) * chunk)
    take(engine, "@cow", chunk=chunk)
    engine.write("o", 0, pattern(2, (entries - 1) * chunk))
    total = (2 + entries + spare) * chunk
    assert engine.status("s") == f"{(1 + entries) * chunk}/{total} {2 * chunk}"
    engine.write("o", (entries - 1) * chunk, pattern(3, chunk))
    if spare:
        assert engine.status("s") == f"{(3 + entries) * chunk}/{total} {3 * chunk}"
        assert (engine.events("s"), engine.header("B")) == (0, (True, 1, chunk))
        engine.write("o", entries * chunk, pattern(4, chunk))
    assert (engine.status("s"), engine.events("s")) == ("Invalid", 1)
    assert engine.header("B") == (False, 1, chunk)
    drop(engine, "s", "o", "cow")


def test_a_cow_of_few_chunks(engine: Engine) -> None:
    fill_origin(engine)
    engine.create("o", f"0 {LENGTH} snapshot-origin @A")
    for chunks in (1, 2, 3):
        engine.poke("B", 0, bytes(8192))
        small(engine, 8 * chunks)
        table = f"0 {LENGTH} snapshot @A @cow P 8"
        if chunks == 1:
            assert error_name(lambda: engine.create("s", table)) == "EIO"  # noqa: B023
        else:
            engine.create("s", table)
            pause(engine, "o")
            assert engine.status("s") == f"16/{8 * chunks} 16"
            engine.write("o", 0, pattern(2, 8))
            if chunks == 3:
                assert engine.status("s") == "24/24 16"
                engine.write("o", 8, pattern(2, 8))
            assert engine.status("s") == "Invalid"
            drop(engine, "s")
        drop(engine, "cow")
    drop(engine, "o")


def test_the_store_knows_its_chunk_size(engine: Engine) -> None:
    take(engine)
    engine.write("o", 0, pattern(2, 24))
    drop(engine, "s")
    for chunk in (16, 4, 1, 0, 1024):
        engine.create("s", f"0 {LENGTH} snapshot @A @B P {chunk}")
        assert engine.table("s") == f"0 {LENGTH} snapshot @A @B P 8"
        assert engine.status("s") == f"40/{SECTORS} 16"
        assert engine.read("s", 0, LENGTH) == pattern(1, LENGTH)
        drop(engine, "s")
    drop(engine, "o")


@pytest.mark.parametrize("store", ["P", "p", "PO", "po", "Poverflow", "N", "no"])
def test_stores_as_they_are_echoed(engine: Engine, store: str) -> None:
    chunk = 32 if store[0] in "nN" else 0
    take(engine, store=store, chunk=chunk)
    shown = "N" if store[0] in "nN" else store.upper()[:2]
    assert engine.table("s") == f"0 {LENGTH} snapshot @A @B {shown} 32"
    assert engine.status("s") == (f"0/{SECTORS} 0" if shown == "N" else f"64/{SECTORS} 64")
    drop(engine, "s", "o")


HEADER = struct.Struct("<4I")


@pytest.mark.parametrize(
    ("magic", "valid", "version", "chunk", "result"),
    [
        (b"SnAp", 1, 1, 8, f"16/{SECTORS} 16"),
        (b"SnAp", 2, 1, 8, f"16/{SECTORS} 16"),
        (b"SnAp", 0, 1, 8, "Invalid"),
        (b"SnAp", 0, 1, 16, "Invalid"),
        (b"SnAp", 1, 1, 2048, f"4096/{SECTORS} 4096"),
        (b"SnAp", 1, 2, 8, "EINVAL"),
        (b"SnAp", 0, 2, 8, "EINVAL"),
        (b"SnAp", 1, 0, 8, "EINVAL"),
        (b"SnAp", 1, 1, 0, "EINVAL"),
        (b"SnAp", 1, 1, 12, "EINVAL"),
        (b"SnAp", 0, 1, 12, "EINVAL"),
        (b"SnAp", 1, 2, 12, "EINVAL"),
        (b"SnAp", 1, 1, 1 << 22, "EINVAL"),
        (b"SnAp", 1, 1, 1 << 31, "EINVAL"),
        (b"snap", 1, 1, 8, "ENXIO"),
        (b"\0\0\0\0", 0, 7, 3, f"16/{SECTORS} 16"),
    ],
)
def test_headers(
    engine: Engine, magic: bytes, valid: int, version: int, chunk: int, result: str
) -> None:
    (number,) = struct.unpack("<I", magic)
    engine.poke("B", 0, HEADER.pack(number, valid, version, chunk))
    table = f"0 {LENGTH} snapshot @A @B P 8"
    error = error_name(lambda: engine.create("s", table))
    if error:
        assert error == result
        return
    assert (engine.status("s"), engine.events("s")) == (result, 0)
    if result == "Invalid":
        assert error_name(lambda: engine.read("s", 0, 8)) == "EIO"
        assert error_name(lambda: engine.flush("s")) == ""
    drop(engine, "s")


def test_exceptions_are_believed(engine: Engine) -> None:
    take(engine)
    entries = [(5, 2), (6, 77), (5, 3), (7, 40), (9, 0), (0, 0)]
    drop(engine, "s")
    engine.poke("B", 8, b"".join(struct.pack("<2Q", *entry) for entry in entries))
    engine.poke("B", 3 * 8, pattern(9, 8))
    engine.create("s", f"0 {LENGTH} snapshot @A @B P 8")
    assert engine.status("s") == f"{78 * 8}/{SECTORS} 16"
    assert engine.read("s", 72, 8) == pattern(1, LENGTH)[72 * 512 : 80 * 512]
    engine.write("s", 0, pattern(3, 8))
    assert engine.exceptions("B") == [*entries[:4], (0, 78)]
    drop(engine, "s", "o")


def test_a_store_that_ends_at_an_area_goes_on_behind_it(engine: Engine) -> None:
    take(engine, chunk=1)
    engine.write("o", 0, pattern(2, 32))
    assert engine.status("s") == f"35/{SECTORS} 3"
    drop(engine, "s")
    engine.create("s", f"0 {LENGTH} snapshot @A @B P 1")
    assert engine.status("s") == f"35/{SECTORS} 3"
    engine.write("s", 64, pattern(3, 1))
    assert engine.exceptions("B")[-1] == (64, 35)
    drop(engine, "s", "o")


def test_the_origins_end_may_be_within_a_chunk(engine: Engine) -> None:
    engine.poke("A", 0, pattern(1, 100))
    engine.create("low", "0 100 linear @A 0")
    engine.create("o", "0 100 snapshot-origin @low")
    engine.create("s", "0 100 snapshot @low @B P 16")
    engine.create("t", "0 50 snapshot @low @C P 32")
    pause(engine, "o")
    engine.write("o", 97, pattern(2, 3))
    assert engine.status("s") == f"48/{SECTORS} 32"
    assert engine.status("t") == f"64/{SECTORS} 64"  # the write is behind its end
    engine.write("o", 40, pattern(2, 20))
    assert engine.exceptions("B") == [(6, 2), (2, 3), (3, 4)]
    assert engine.exceptions("C") == [(1, 2)]
    assert engine.read("s", 0, 100) == pattern(1, 100)
    assert engine.read("t", 0, 50) == pattern(1, 50)
    engine.write("s", 98, pattern(3, 2))
    engine.write("t", 49, pattern(3, 1))
    assert engine.read("s", 0, 100) == pattern(1, 98) + pattern(3, 2)
    drop(engine, "s", "t", "o", "low")


def test_several_snapshots_have_several_chunk_sizes(engine: Engine) -> None:
    take(engine, chunk=8)
    engine.create("t", f"0 {LENGTH} snapshot @A @C N 64")
    engine.create("u", f"0 {LENGTH} snapshot @A @D P 1")
    pause(engine, "o")
    engine.write("o", 60, pattern(2, 10))
    assert engine.exceptions("B") == [(7, 2), (8, 3)]
    assert engine.exceptions("D") == [(60 + n, 2 + n) for n in range(10)]
    assert engine.status("t") == f"128/{SECTORS} 0"
    for name in "stu":
        assert engine.read(name, 0, LENGTH) == pattern(1, LENGTH)
    drop(engine, "t", "s", "u", "o")


def test_only_a_resumed_snapshot_takes_part(engine: Engine) -> None:
    fill_origin(engine)
    engine.create("o", f"0 {LENGTH} snapshot-origin @A")
    engine.mapper.create("s")
    engine.load("s", f"0 {LENGTH} snapshot @A @B P 8")
    engine.write("o", 0, pattern(2, 8))
    engine.mapper.resume("s")
    pause(engine, "o")
    assert engine.status("s") == f"16/{SECTORS} 16"
    engine.mapper.suspend("s")
    engine.write("o", 8, pattern(2, 8))
    engine.mapper.resume("s")
    assert engine.exceptions("B") == [(1, 2)]
    assert engine.read("s", 0, 16) == pattern(2, 8) + pattern(1, LENGTH)[4096:8192]
    drop(engine, "s", "o")


def test_a_write_past_the_origins_device_is_not_seen(engine: Engine) -> None:
    take(engine)
    engine.poke("A", 0, pattern(2, 8))
    assert engine.status("s") == f"16/{SECTORS} 16"
    assert engine.read("s", 0, 8) == pattern(2, 8)
    drop(engine, "s", "o")


@pytest.mark.parametrize("chunk", [1, 2, 16, 128, 1024])
def test_writes_of_every_shape(engine: Engine, chunk: int) -> None:
    take(engine, chunk=chunk)
    model = bytearray(pattern(1, LENGTH))
    shapes = [(0, chunk), (chunk, 1), (3 * chunk - 1, 2), (2 * chunk, 2 * chunk), (chunk // 2, 1)]
    for sector, count in shapes:
        if sector + count <= LENGTH:
            engine.write("s", sector, pattern(sector, count))
            model[sector * 512 : (sector + count) * 512] = pattern(sector, count)
    assert engine.read("s", 0, LENGTH) == bytes(model)
    assert engine.read("o", 0, LENGTH) == pattern(1, LENGTH)
    used = len(engine.exceptions("B"))
    assert engine.status("s") == f"{(2 + used) * chunk}/{SECTORS} {2 * chunk}"
    drop(engine, "s", "o")
