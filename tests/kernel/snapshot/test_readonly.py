"""Read-only tables on both engines: who opens the device is refused, everything else continues."""

from __future__ import annotations

import errno

import pytest

from dmcopy.io import IoRegion
from dmcopy.io.request import Io, Memory, Op

from .engines import SECTORS, WAIT_SECONDS, Engine, pattern
from .recipes import LENGTH, drop, fill_origin, pause

BOTH = " 2 discard_zeroes_cow discard_passdown_origin"


def refusal(engine: Engine, name: str, op: Op = Op.WRITE, sector: int = 0) -> str:
    """Return the errno's name that a request ends with which nothing checks before."""
    done: list[Io] = []
    memory, extents = Memory(1), [(0, 4096)] if op is Op.WRITE else []
    region = IoRegion(engine.open(name), sector, 8)
    engine.reactor.submit(Io(op, region, memory, extents, done.append))
    engine.reactor.run_until(lambda: done, WAIT_SECONDS, op.name)
    return errno.errorcode[done[0].error] if done[0].error else ""


def is_read_only(engine: Engine, name: str) -> bool:
    """Return whether a device refuses writes, and says so; it lets itself be flushed."""
    engine.flush(name)
    refuses = refusal(engine, name) == "EPERM"
    assert engine.mapper.info(name).readonly == refuses
    return refuses


@pytest.mark.parametrize("store", ["P", "PO", "N"])
def test_a_snapshot(engine: Engine, store: str) -> None:
    fill_origin(engine)
    engine.create("o", f"0 {LENGTH} snapshot-origin @A")
    engine.create("s", f"0 {LENGTH} snapshot @A @B {store} 8", readonly=True)
    pause(engine, "o")
    assert is_read_only(engine, "s")
    assert (engine.header("B") is None) == (store == "N")
    engine.write("o", 80, pattern(2, 8))
    assert engine.read("s", 80, 8) == pattern(1, 88)[80 * 512 :]
    assert engine.status("s") == (f"8/{SECTORS} 0" if store == "N" else f"24/{SECTORS} 16")
    drop(engine, "s", "o")


@pytest.mark.parametrize("store", ["P", "N"])
def test_a_live_snapshot_becomes_read_only_and_back(engine: Engine, store: str) -> None:
    table = f"0 {LENGTH} snapshot @A @B {store} 8"
    fill_origin(engine)
    engine.create("o", f"0 {LENGTH} snapshot-origin @A")
    engine.create("s", table)
    pause(engine, "o")
    engine.write("s", 0, pattern(2, 8))
    for readonly in (True, False):
        engine.load("s", table, readonly=readonly)
        assert engine.mapper.info("s").readonly is not readonly
        engine.mapper.suspend("o")
        pause(engine, "s")
        engine.mapper.resume("o")
        assert is_read_only(engine, "s") is readonly
        engine.write("o", 80 if readonly else 160, pattern(3, 8))
    assert engine.status("s") == (f"24/{SECTORS} 0" if store == "N" else f"40/{SECTORS} 16")
    drop(engine, "s", "o")


def test_a_merge(engine: Engine) -> None:
    fill_origin(engine)
    engine.create("s", f"0 {LENGTH} snapshot @A @B P 8")
    engine.write("s", 24, pattern(2, 8))
    drop(engine, "s")
    engine.create("m", f"0 {LENGTH} snapshot-merge @A @B P 8", readonly=True)
    engine.wait_merged("m")
    assert engine.status("m") == f"16/{SECTORS} 16"
    assert engine.peek("A", 24, 8) == pattern(2, 8)
    assert is_read_only(engine, "m")
    drop(engine, "m")


def test_what_is_above_writes_through(engine: Engine) -> None:
    fill_origin(engine)
    engine.create("low", f"0 {LENGTH} linear @A 0", readonly=True)
    engine.create("cow", f"0 {SECTORS} linear @B 0", readonly=True)
    engine.create("o", f"0 {LENGTH} snapshot-origin @low")
    engine.create("s", f"0 {LENGTH} snapshot @low @cow P 8")
    pause(engine, "o")
    engine.write("o", 80, pattern(2, 8))
    engine.write("s", 0, pattern(3, 4))
    assert engine.status("s") == f"32/{SECTORS} 16"
    assert engine.peek("A", 80, 8) == pattern(2, 8)
    assert is_read_only(engine, "low")
    drop(engine, "s", "o", "cow", "low")


def test_a_snapshot_takes_the_bios_of_a_device_above(engine: Engine) -> None:
    fill_origin(engine)
    engine.create("s", f"0 {LENGTH} snapshot @A @B P 8{BOTH}", readonly=True)
    engine.create("top", f"0 {LENGTH} linear @s 0")
    engine.write("top", 0, pattern(2, 8))
    assert engine.status("s") == f"24/{SECTORS} 16"
    assert refusal(engine, "s", Op.DISCARD, 80) == "EPERM"
    engine.discard("top", 80, 8)
    assert engine.peek("A", 80, 8) == bytes(4096)
    assert is_read_only(engine, "s")
    drop(engine, "top", "s")


@pytest.mark.parametrize("origin", ["@A", "@low"])
def test_a_discard_is_passed_down(engine: Engine, origin: str) -> None:
    fill_origin(engine)
    engine.create("low", f"0 {LENGTH} linear @A 0", readonly=True)
    if origin == "@A":
        drop(engine, "low")
    engine.create("s", f"0 {LENGTH} snapshot {origin} @B P 8{BOTH}")
    engine.discard("s", 80, 8)
    assert engine.peek("A", 80, 8) == bytes(4096)
    assert engine.status("s") == f"16/{SECTORS} 16"
    drop(engine, "s", *(["low"] if origin == "@low" else []))


def test_the_table_says_whether_it_is_read_only_and_not_the_device(engine: Engine) -> None:
    engine.mapper.create("d", readonly=True)
    for readonly in (False, True, False):
        engine.swap("d", f"0 {LENGTH} linear @A 0", readonly=readonly)
        assert is_read_only(engine, "d") is readonly
    drop(engine, "d")


def test_a_device_is_open_once_for_each_that_is_above(engine: Engine) -> None:
    engine.create("low", "0 64 linear @A 0")
    engine.create("top", "0 8 linear @low 0\n8 8 linear @low 8")
    engine.load("top", "0 8 linear @low 0")
    assert engine.mapper.info("low").open_count == 1
    engine.create("other", "0 8 linear @low 0")
    assert engine.mapper.info("low").open_count == 2
    drop(engine, "top", "other", "low")
