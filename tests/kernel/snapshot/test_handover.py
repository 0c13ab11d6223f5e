"""Handing exceptions over, and merging, on both engines."""

from __future__ import annotations

from .engines import SECTORS, Engine, error_name, pattern
from .recipes import LENGTH, drop, pause, small, take

SNAPSHOT = f"0 {LENGTH} snapshot @A @B P 8"
MERGE = f"0 {LENGTH} snapshot-merge @A @B P 8"
ORIGIN = f"0 {LENGTH} snapshot-origin @A"


def begin_merge(engine: Engine, table: str = MERGE) -> None:
    """Merge `s` into `o`, which takes its exceptions over."""
    engine.load("o", table)
    engine.mapper.suspend("s")
    engine.mapper.suspend("o")
    engine.mapper.resume("o")


def test_a_new_table_takes_the_exceptions_over(engine: Engine) -> None:
    take(engine)
    engine.write("o", 0, pattern(2, 24))
    engine.load("s", f"0 {LENGTH} snapshot @A @B PO 32")
    assert engine.table("s", inactive=True) == f"0 {LENGTH} snapshot @A @B PO 0"
    pause(engine, "s")
    assert engine.table("s") == f"0 {LENGTH} snapshot @A @B PO 8"
    assert (engine.status("s"), engine.events("s")) == (f"40/{SECTORS} 16", 0)
    engine.write("o", 100, pattern(3, 8))
    assert engine.read("s", 0, LENGTH) == pattern(1, LENGTH)
    assert engine.exceptions("B") == [(0, 2), (1, 3), (2, 4), (12, 5), (13, 6)]
    drop(engine, "s", "o")


def test_another_device_takes_the_exceptions_over(engine: Engine) -> None:
    take(engine)
    engine.write("s", 0, pattern(2, 8))
    engine.mapper.create("t")
    engine.load("t", SNAPSHOT)
    assert error_name(lambda: engine.mapper.resume("t")) == "EINVAL"  # s runs
    assert engine.table("t") == f"0 {LENGTH} snapshot @A @B P 0"
    assert engine.status("t") == f"0/{SECTORS} 0"
    engine.mapper.create("u")
    assert error_name(lambda: engine.load("u", SNAPSHOT)) == "EINVAL"  # t waits already
    engine.mapper.suspend("s")
    assert error_name(lambda: engine.mapper.resume("s")) == "EINVAL"  # t waits
    engine.mapper.resume("t")
    assert engine.status("t") == f"24/{SECTORS} 16"
    assert (engine.status("s"), engine.events("s")) == ("Invalid", 0)
    assert engine.read("t", 0, LENGTH) == pattern(2, 8) + pattern(1, LENGTH)[4096:]
    engine.write("o", 8, pattern(3, 8))
    engine.mapper.resume("s")
    assert error_name(lambda: engine.read("s", 0, 8)) == "EIO"
    drop(engine, "u", "s")
    assert engine.status("t") == f"32/{SECTORS} 16"
    assert engine.header("B") == (True, 1, 8)
    drop(engine, "t", "o")


def test_a_handover_that_never_comes(engine: Engine) -> None:
    take(engine)
    engine.write("s", 0, pattern(2, 8))
    engine.mapper.create("t")
    engine.load("t", SNAPSHOT)
    drop(engine, "s")
    engine.mapper.resume("t")
    assert engine.status("t") == "Invalid"
    drop(engine, "t")
    engine.create("s", SNAPSHOT)
    assert engine.status("s") == f"24/{SECTORS} 16"
    drop(engine, "s", "o")


def test_who_waits_for_a_handover_may_give_up(engine: Engine) -> None:
    take(engine)
    engine.load("s", SNAPSHOT)
    engine.mapper.clear("s")
    engine.write("o", 0, pattern(2, 8))
    assert engine.status("s") == f"24/{SECTORS} 16"
    drop(engine, "s", "o")


def test_the_store_stays_what_it_was(engine: Engine) -> None:
    take(engine, store="N")
    engine.write("o", 0, pattern(2, 8))
    engine.swap("s", SNAPSHOT)
    assert engine.table("s") == f"0 {LENGTH} snapshot @A @B N 8"
    assert engine.status("s") == f"8/{SECTORS} 0"
    assert engine.read("s", 0, 8) == pattern(1, LENGTH)[:4096]
    drop(engine, "s", "o")


def test_a_merge_puts_everything_back(engine: Engine) -> None:
    take(engine)
    engine.create("t", f"0 {LENGTH} snapshot @A @C P 16")
    pause(engine, "o")
    engine.write("s", 24, pattern(2, 40))
    engine.write("o", 8, pattern(3, 8))
    engine.write("s", 1000, pattern(4, 1))
    before, other = engine.read("s", 0, LENGTH), engine.read("t", 0, LENGTH)
    begin_merge(engine)
    assert (engine.status("s"), engine.events("s")) == ("Invalid", 0)
    assert error_name(lambda: engine.mapper.resume("s")) == ""
    assert error_name(lambda: engine.read("s", 0, 8)) == "EIO"
    engine.wait_merged("o")
    assert (engine.status("o"), engine.events("o")) == (f"16/{SECTORS} 16", 0)
    assert engine.table("o") == MERGE
    assert engine.read("o", 0, LENGTH) == before
    assert engine.read("t", 0, LENGTH) == other
    assert sorted(old for old, _ in engine.exceptions("C")) == [0, 1, 2, 3, 62]
    assert engine.exceptions("B") == []
    assert engine.header("B") == (True, 1, 8)
    engine.write("o", 0, pattern(5, 16))  # as on an origin, for t
    assert engine.read("t", 0, LENGTH) == other
    assert engine.status("o") == f"16/{SECTORS} 16"
    drop(engine, "s")
    engine.swap("o", ORIGIN)
    drop(engine, "t", "o")


def test_the_order_in_which_a_merge_goes(engine: Engine) -> None:
    # From the last exception backwards; another snapshot shows the order in which it was copied.
    take(engine, chunk=1)
    for chunk in (7, 8, 9, 3, 20, 21, 5):
        engine.write("s", chunk, pattern(2, 1))
    engine.create("t", f"0 {LENGTH} snapshot @A @C P 1")
    pause(engine, "o")
    begin_merge(engine, MERGE.replace("P 8", "P 1"))
    engine.wait_merged("o")
    assert [old for old, _ in engine.exceptions("C")] == [5, 20, 21, 3, 7, 8, 9]
    drop(engine, "s", "t", "o")


def test_a_merge_is_continued_after_everything_was_removed(engine: Engine) -> None:
    take(engine, chunk=1)
    engine.write("s", 5, pattern(2, 70))
    before = engine.read("s", 0, LENGTH)
    begin_merge(engine)
    engine.mapper.suspend("o")
    frozen = engine.status("o")
    assert engine.status("o") == frozen
    engine.mapper.resume("o")
    drop(engine, "s", "o")
    engine.create("o", MERGE)
    engine.wait_merged("o")
    assert engine.status("o") == f"2/{SECTORS} 2"
    assert engine.read("o", 0, LENGTH) == before
    assert engine.exceptions("B") == []
    drop(engine, "o")


def test_only_one_snapshot_of_an_origin_merges(engine: Engine) -> None:
    take(engine)
    engine.create("t", f"0 {LENGTH} snapshot @A @C P 8")
    pause(engine, "o")
    begin_merge(engine)
    assert error_name(lambda: engine.load("o", MERGE)) == "EINVAL"
    engine.mapper.create("m")
    second = f"0 {LENGTH} snapshot-merge @A @C P 8"
    assert error_name(lambda: engine.load("m", second)) == "EINVAL"
    drop(engine, "m", "s", "t", "o")


def test_a_transient_store_cannot_be_merged(engine: Engine) -> None:
    take(engine, store="N")
    engine.mapper.create("m")
    assert error_name(lambda: engine.load("m", MERGE)) == "EINVAL"
    drop(engine, "m", "s", "o")


def test_a_lost_snapshot_has_nothing_to_merge(engine: Engine) -> None:
    small(engine, 24)
    take(engine, "@cow")
    engine.write("o", 0, pattern(2, 16))
    assert engine.status("s") == "Invalid"
    drop(engine, "s", "o")
    engine.create("o", f"0 {LENGTH} snapshot-merge @A @cow P 8")
    assert engine.status("o") == "Invalid"
    assert engine.read("o", 0, 16) == pattern(2, 16)
    engine.write("o", 0, pattern(3, 8))
    assert engine.read("o", 0, 8) == pattern(3, 8)
    assert engine.peek("A", 0, 8) == pattern(3, 8)
    drop(engine, "o", "cow")


def test_io_goes_on_while_a_merge_runs(engine: Engine) -> None:
    take(engine, chunk=1)
    engine.create("t", f"0 {LENGTH} snapshot @A @C P 4")
    pause(engine, "o")
    model = bytearray(pattern(1, LENGTH))
    for place in range(0, 400, 3):
        engine.write("s", place, pattern(place, 2))
        model[place * 512 : (place + 2) * 512] = pattern(place, 2)
    begin_merge(engine, MERGE.replace("P 8", "P 1"))
    for place in range(0, 600, 7):
        engine.write("o", place, pattern(place + 1, 3))
        model[place * 512 : (place + 3) * 512] = pattern(place + 1, 3)
        assert engine.read("o", place, 8) == model[place * 512 : (place + 8) * 512]
    engine.wait_merged("o")
    assert engine.read("o", 0, LENGTH) == bytes(model)
    assert engine.read("t", 0, LENGTH) == pattern(1, LENGTH)
    drop(engine, "s", "t", "o")
