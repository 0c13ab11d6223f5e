"""Power cuts worked out from a record: which states there are, and what a failure says."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmcopy.errors import UsageError
from dmcopy.export.write_log import WriteLog
from dmcopy.io import Io, IoRegion, Op
from dmcopy.table import Table
from dmcopy.testing.explorer import CrashError, Explored, explore, explore_recording, record
from dmcopy.testing.lent import LentDisk
from dmcopy.testing.logfile import LogFile
from dmcopy.testing.recording import Cut, Moment, Recording
from dmcopy.testing.storage import Judge, ModelDisk, Storage

A, B, C = (letter * 512 for letter in (b"a", b"b", b"c"))
SMALL = {"disk": 4}


def states(run: Callable[[Storage], object], **options: object) -> set[bytes]:
    """Return all contents of the disk, a letter for each sector, that a power cut may leave."""
    found = set()

    def check(storage: Storage) -> None:
        found.add(storage.disk.read(0, 4)[::512].replace(b"\0", b"."))

    explore(run, check, SMALL, **options)  # type: ignore[arg-type]
    return found


def test_what_is_not_flushed_may_be_lost_in_any_order() -> None:
    def run(storage: Storage) -> None:
        storage.disk.write(0, A)
        storage.disk.write(1, B)

    assert states(run) == {b"....", b"a...", b".b..", b"ab.."}


def test_what_is_flushed_stays() -> None:
    def run(storage: Storage) -> None:
        storage.disk.write(0, A)
        storage.disk.flush()
        storage.disk.write(0, B)

    assert states(run) == {b"....", b"a...", b"b..."}


def test_a_durable_write_stays_and_takes_no_other_with_it() -> None:
    def run(storage: Storage) -> None:
        storage.disk.write(0, A)
        storage.disk.write(1, B, fua=True)
        storage.disk.write(2, C)

    found = states(run)
    assert {b".b..", b"ab..", b".bc.", b"abc."} <= found
    assert not any(one[1:3] == b".c" for one in found)


def test_a_write_is_torn_by_sector_and_a_discard_zeroes() -> None:
    def run(storage: Storage) -> None:
        storage.disk.write(0, A * 4)
        storage.disk.flush()
        storage.disk.discard(0, 4)

    found = states(run, seeds=200)
    assert {b"....", b"aaaa", b"a...", b"...a", b"a.a."} <= found


def test_a_later_write_to_the_same_place_is_never_undone_alone() -> None:
    def run(storage: Storage) -> None:
        for letter in (A, B, C):
            storage.disk.write(0, letter)
        storage.disk.flush()
        storage.mark("flushed")

    def check(storage: Storage) -> None:
        if storage.marks:
            assert storage.disk.read(0, 1) == C

    assert explore(run, check, SMALL).states > 5


def test_marks_say_how_far_the_run_was() -> None:
    seen = []

    def run(storage: Storage) -> None:
        storage.mark("one")
        storage.disk.write(0, A)
        storage.mark("two")

    explore(run, lambda storage: seen.append(storage.marks), SMALL)
    assert set(seen) == {(), ("one",), ("one", "two")}
    with pytest.raises(CrashError, match="a check marks nothing"):
        explore(run, lambda storage: storage.mark("x"), SMALL)


def commit(*, flush: bool) -> Callable[[Storage], None]:
    """Return a run that writes data, then a header that names it."""

    def run(storage: Storage) -> None:
        for number in range(1, 4):
            storage.disk.write(8 * number, bytes([number]) * 2048)
            if flush:
                storage.disk.flush()
            storage.disk.write(0, bytes([number]) * 512)
            storage.disk.flush()
            storage.mark(str(number))

    return run


def header_names_data(storage: Storage) -> None:
    number = storage.disk.read(0, 1)[0]
    assert number >= len(storage.marks), "a commit is gone"
    data = storage.disk.read(8 * number, 4)
    assert not number or data == bytes([number]) * 2048, f"header {number} has no data"


def test_a_flush_that_is_forgotten_is_found_and_made_small() -> None:
    assert explore(commit(flush=True), header_names_data) == Explored(21, 23)
    with pytest.raises(CrashError) as found:
        explore(commit(flush=False), header_names_data)
    text = str(found.value)
    assert text.startswith("after a power cut at event 3 of 18: header 1 has no data\n")
    assert "write 0, 4 sectors at 8 of disk: lost" in text
    assert found.value.cut == Cut(3, {0: 0})
    assert isinstance(found.value.__cause__, AssertionError)
    for cut, fails in (("3-0", True), ("3-0:7", True), ("3", False), ("3-2", False)):
        again = partial(explore, commit(flush=False), header_names_data, cut=cut)
        if fails:
            with pytest.raises(CrashError):
                again()
        else:
            assert again().states == 1


def test_what_fails_without_any_loss_says_so() -> None:
    with pytest.raises(CrashError, match="nothing was lost"):
        explore(lambda storage: storage.disk.write(0, A), lambda _storage: 1 / 0, SMALL)


def test_of_many_writes_that_are_lost_those_are_told_that_matter() -> None:
    def run(storage: Storage) -> None:
        for number in range(40):
            storage.disk.write(number, A)
        storage.disk.write(50, B)

    def check(storage: Storage) -> None:
        if storage.disk.read(50, 1) == B:
            assert storage.disk.read(17, 1) == A, "17 is not there"

    with pytest.raises(CrashError) as found:
        explore(run, check, {"disk": 64})
    assert found.value.cut.kept == {34: 0}
    assert "1 sectors at 17 of disk: lost" in str(found.value)


def test_several_disks_and_the_engine_over_them() -> None:
    def run(storage: Storage) -> None:
        storage.mapper.create("dev", Table.parse("0 4 linear one 0\n4 4 linear two 0"))
        device = storage.mapper.open("dev")
        device.write(3, A + B)
        device.flush()
        storage.mark("flushed")

    def check(storage: Storage) -> None:
        found = storage["one"].read(3, 1), storage["two"].read(0, 1)
        assert not storage.marks or found == (A, B)
        storage.mapper.create("dev", Table.parse("0 8 linear one 0"))

    assert explore(run, check, {"one": 8, "two": 4}).states > 4


def test_a_command_judges_files_of_the_disks(tmp_path: Path) -> None:
    def run(storage: Storage) -> None:
        storage["b"].write(0, A)
        storage["b"].flush()
        storage["a"].write(0, B)

    good = tmp_path / "good"
    good.write_bytes(bytes(512))
    disks = {"a": 1, "b": 1}
    assert explore(run, "test -s {} -a -s {b}", disks, seeds=0).states == 4
    with pytest.raises(CrashError, match="ended with 1"):
        explore(run, f"cmp {{b}} {good}", disks)


def test_the_content_before_and_larger_blocks() -> None:
    def run(storage: Storage) -> None:
        assert storage.disk.read(0, 8)[:512] == C
        with pytest.raises(UsageError):
            storage.disk.write(1, A)
        storage.disk.write(0, A * 8)

    seen = set()
    explore(
        run,
        lambda storage: seen.add(storage.disk.read(0, 8)),
        {"disk": 16},
        first={"disk": C},
        block_size=4096,
    )
    assert {A * 8, C + bytes(7 * 512)} <= seen


def test_a_run_that_raises_is_no_crash_and_leaves_nothing() -> None:
    with pytest.raises(ZeroDivisionError):
        explore(lambda _storage: 1 / 0, header_names_data)
    with pytest.raises(UsageError, match="in memory, where no program finds it"):
        explore(lambda storage: Path(storage.disk).touch(), header_names_data)


def test_a_log_of_writes_is_explored_as_a_run(tmp_path: Path) -> None:
    for flush in (True, False):
        path = str(tmp_path / f"log{flush}")
        log = WriteLog(path, 512)
        for number in range(1, 4):
            log.write(8 * number, bytes([number]) * 2048)
            if flush:
                log.flush()
            log.write(0, bytes([number]) * 512)
            log.flush()
            log.mark(str(number))
        log.close()
        with LogFile(path) as found:
            recording = Recording.of_log(found, bytes(64 << 9))
        assert recording.marks(len(recording.events)) == ("1", "2", "3", "dm-log-writes-end")

        def check(storage: Storage) -> None:
            number = storage.disk.read(0, 1)[0]
            data = storage.disk.read(8 * number, 4)
            assert not number or data == bytes([number]) * 2048

        if flush:
            assert explore_recording(recording, check).states > 15
        else:
            with pytest.raises(CrashError):
                explore_recording(recording, check)


@given(st.integers(0, 99), st.dictionaries(st.integers(0, 99), st.integers(0, 1 << 70)))
def test_a_cut_is_its_text(at: int, kept: dict[int, int]) -> None:
    assert Cut.parse(str(Cut(at, kept))) == Cut(at, kept)


@pytest.mark.parametrize("text", ["", "x", "1-", "1-2:", "1-2:g", "-1", "1 2"])
def test_what_is_no_cut(text: str) -> None:
    with pytest.raises(UsageError, match="no power cut"):
        Cut.parse(text)


def test_a_cut_behind_the_end() -> None:
    with pytest.raises(UsageError, match="none is 99"):
        explore(commit(flush=True), header_names_data, cut="99")


def test_requests_in_flight_together_complete_in_an_order_that_a_seed_says() -> None:
    """A mirror's two legs are written side by side: either may be first."""

    def run(storage: Storage) -> None:
        storage.mapper.create("m", Table.parse("0 4 mirror core 2 2 nosync 2 one 0 two 0"))
        storage.mapper.open("m").write(0, A)

    disks = {"one": 4, "two": 4}
    orders = {str(record(run, disks, seed=seed).events) for seed in range(8)}
    assert len(orders) == 2
    assert len({str(record(run, disks, seed=3).events) for _ in range(3)}) == 1


def test_what_a_check_writes_is_gone_before_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """One image serves all checks: what is there is what the record says, each time."""
    seen = 0

    def run(storage: Storage) -> None:
        for number in range(1, 12):
            storage.disk.write(number, bytes([number]) * 1024)
            if number % 2:
                storage.disk.flush()

    def check(storage: Storage) -> None:
        nonlocal seen
        seen += 1
        at, cut = lent[-1]
        moment = Moment(recording)
        while moment.at < at:
            moment.next()
        assert storage.disk.read(0, 64) == moment.image(cut, 0)
        storage.disk.write(seen % 60, b"\xff" * 2048)
        storage.disk.discard(2, 30)
        storage.disk.flush()
        assert isinstance(storage.disk, ModelDisk)
        late = IoRegion(storage.disk.device, 0, 60)  # is in flight when the check has ended
        storage.disk._reactor.submit(Io(Op.WRITE_ZEROES, late, notify=ended.append))

    lent: list[tuple[int, Cut]] = []
    ended: list[Io] = []
    lend = Judge.storage

    def storage(self: Judge, moment: Moment, cut: Cut) -> AbstractContextManager[Storage]:
        lent.append((moment.at, cut))
        return lend(self, moment, cut)

    monkeypatch.setattr(Judge, "storage", storage)
    recording = record(run, {"disk": 64})
    assert explore_recording(recording, check).states == seen > 20
    assert ended


def test_a_disk_that_is_still_used_becomes_a_copy() -> None:
    content = bytearray(b"a" * 2048)
    for in_use in (True, False):
        disk = LentDisk(content, "disk", 512)
        disk.write(1, b"b" * 512)
        disk.write(1, b"c" * 1024)
        disk.give_back(in_use=in_use)
        assert content == b"a" * 2048
        assert disk.vanished is not in_use
        if in_use:
            assert disk.read(0, 4)[::512] == b"acca"
            disk.write(0, b"d" * 512)
            assert content == b"a" * 2048
