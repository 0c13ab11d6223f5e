"""What a transfer does about each kind of error, on simulated disks."""

from __future__ import annotations

import contextlib
import errno
from typing import Any

import pytest

from dmcopy.errors import ExitCode, UsageError
from dmcopy.io import IoRegion, Op, Reactor
from dmcopy.io.request import Memory
from dmcopy.io.simulated import SimulatedBackend, SimulatedDisk
from dmcopy.kcopyd import Client
from dmcopy.ranges import RangeSet
from dmcopy.transfer import Transfer, TransferOutcome, TransferPlan, events
from dmcopy.transfer.destination import Destination, FailedRange
from dmcopy.transfer.durability import Durability
from dmcopy.transfer.plan import Piece
from dmcopy.transfer.settings import Settings
from dmcopy.transfer.verify import Verified, Verifier, _piece_sectors
from tests.unit.transfer.bench import SECTORS, Bench


@pytest.fixture
def bench() -> Bench:
    return Bench()


def verify(transfer: Transfer, **how: Any) -> Verified:
    with Reactor(SimulatedBackend(1)) as reactor:
        return Verifier(reactor, transfer.plan, transfer.dests, **{"pages": 64, **how}).run()


def test_all_is_well(bench: Bench) -> None:
    transfer = bench.run()
    assert all(bench.is_copied(index) for index in range(3))
    assert [dest.durable for dest in transfer.dests] == [RangeSet([(0, SECTORS)])] * 3
    last = bench.of(events.Progress)[-1]
    assert (last.sectors, last.total, last.written) == (SECTORS, SECTORS, (SECTORS,) * 3)


def test_stop_drops_the_destination_that_failed_and_the_others_go_on(bench: Bench) -> None:
    bench.dests[1].fail(Op.WRITE, 300, 1)
    transfer = bench.run()
    assert (bench.is_copied(0), bench.is_copied(2)) == (True, True)
    failed = transfer.dests[1]
    assert (failed.error, failed.cause) == (errno.EIO, "write")
    assert list(failed.failures) == [FailedRange(256, 320, errno.EIO)]
    assert [event.path for event in bench.of(events.Dropped)] == ["dest1"]


def test_stop_ends_at_a_read_error(bench: Bench) -> None:
    bench.source.fail(Op.READ, 300, 1)
    transfer = bench.run()
    assert transfer.source_error == errno.EIO
    assert list(transfer.unread) == [FailedRange(256, 320, errno.EIO)]
    assert not transfer.bad
    for dest in transfer.dests:
        assert dest.ok
        assert 300 not in dest.written
        assert dest.durable == dest.written


@pytest.mark.parametrize("block", [512, 4096])
def test_skip_leaves_out_exactly_the_bad_blocks(block: int) -> None:
    bench, step = Bench(block), block >> 9
    before = bytes(bench.dests[0].content)
    bench.source.fail(Op.READ, 300, 3)
    bench.dests[1].fail(Op.WRITE, 100, 1, error=errno.EILSEQ)
    transfer = bench.run(on_error="skip")
    low, high = 300 // step * step, -(-303 // step) * step
    assert transfer.bad.ranges() == RangeSet([(low, high)])
    for index, dest in enumerate(transfer.dests):
        bad = RangeSet([(low, high)])
        if index == 1:
            start = 100 // step * step
            assert list(dest.failures) == [FailedRange(start, start + step, errno.EILSEQ)]
            bad.add(start, start + step)
        assert not dest.error
        assert dest.written == RangeSet(bad.gaps(0, SECTORS))
        for start, end in bad:
            same = bench.dests[index].read(start, end - start)
            assert same == before[start << 9 : end << 9], "nothing was to be written there"


def test_skip_looks_no_closer_where_a_disk_is_full(bench: Bench) -> None:
    fault = bench.dests[0].fail(Op.WRITE, 320, 320, error=errno.ENOSPC)
    fault.times = 100
    transfer = bench.run(on_error="skip")
    assert list(transfer.dests[0].failures) == [FailedRange(320, 640, errno.ENOSPC)]
    assert fault.times == 95  # five pieces of 64 sectors, tried once each


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_a_source_that_vanishes_ends_the_copy(bench: Bench, on_error: str) -> None:
    def vanish(_: Transfer, reactor: Reactor) -> None:
        reactor.call_later(0.002, lambda: setattr(bench.source, "vanished", True))

    transfer = bench.run(vanish, on_error=on_error)
    assert transfer.source_error == errno.ENODEV
    assert 0 < transfer.dests[0].sectors < SECTORS
    assert len(bench.of(events.ReadFailed)) <= 8, "no search for good blocks in a missing disk"


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_a_destination_that_vanishes_is_dropped(bench: Bench, on_error: str) -> None:
    def vanish(_: Transfer, reactor: Reactor) -> None:
        reactor.call_later(0.002, lambda: setattr(bench.dests[2], "vanished", True))

    transfer = bench.run(vanish, on_error=on_error)
    assert (bench.is_copied(0), bench.is_copied(1)) == (True, True)
    assert transfer.dests[2].error == errno.ENODEV


def test_all_destinations_fail(bench: Bench) -> None:
    for dest in bench.dests:
        dest.fail(Op.WRITE, 0, SECTORS)
    transfer = bench.run()
    assert all(dest.error == errno.EIO for dest in transfer.dests)
    assert not any(dest.sectors for dest in transfer.dests)


def test_what_no_flush_has_covered_is_not_called_written(bench: Bench) -> None:
    bench.dests[0].fail(Op.FLUSH, 0, SECTORS)
    transfer = bench.run()
    dest = transfer.dests[0]
    assert (dest.error, dest.cause, dest.sectors) == (errno.EIO, "flush", 0)
    assert list(dest.failures) == [FailedRange(0, SECTORS, errno.EIO)]
    assert [(one.path, one.cause) for one in bench.of(events.Dropped)] == [("dest0", "flush")]
    assert transfer.dests[1].ok


def test_a_failed_flush_takes_back_only_what_came_after_the_last_good_one() -> None:
    disk = SimulatedDisk(100, "disk")
    dest = Destination(IoRegion(disk, 0, 100))
    dest.wrote(0, 40)
    dest.flushed(dest.written.copy())
    dest.wrote(40, 60)
    dest.drop(errno.EIO, "flush")
    assert dest.written == RangeSet([(0, 40)])
    assert list(dest.failures) == [FailedRange(40, 60, errno.EIO)]
    assert dest.sectors == 40


def test_a_failed_flush_takes_back_what_lies_between_good_ones() -> None:
    dest = Destination(IoRegion(SimulatedDisk(100, "disk"), 0, 100))
    dest.wrote(5, 10)
    dest.wrote(50, 60)
    dest.flushed(dest.written.copy())
    dest.wrote(0, 80)
    dest.drop(errno.EIO, "flush")
    lost = [(0, 5), (10, 50), (60, 80)]
    assert list(dest.failures) == [FailedRange(*one, errno.EIO) for one in lost]
    assert dest.written == RangeSet([(5, 10), (50, 60)])
    assert dest.sectors == 15


def test_one_that_is_given_up_already_is_not_given_up_for_its_flush(bench: Bench) -> None:
    """A flush may be under way when a write fails: what that says of the disk is known by then."""

    def prepare(transfer: Transfer, reactor: Reactor) -> None:
        submit = reactor.submit

        def fail(request: Any) -> None:
            if request.op == Op.FLUSH and request.device is bench.dests[0]:
                transfer.dests[0].drop(errno.ENOSPC, "write")
            submit(request)

        reactor.submit = fail
        bench.dests[0].fail(Op.FLUSH, 0, SECTORS)

    dest = bench.run(prepare).dests[0]
    assert (dest.error, dest.cause) == (errno.ENOSPC, "write")
    assert dest.written == RangeSet([(0, SECTORS)])
    assert not bench.of(events.Dropped)


def test_a_verification_reads_no_more_at_a_time_than_its_pages_hold(bench: Bench) -> None:
    source, dest = IoRegion(bench.source, 0, SECTORS), IoRegion(bench.dests[0], 0, SECTORS)
    plan = TransferPlan(source, (dest,), 64)
    assert [_piece_sectors(plan, pages) for pages in (1, 3, 8, 9)] == [8, 24, 64, 64]
    blocks = Bench(8192)
    source, dest = IoRegion(blocks.source, 0, SECTORS), IoRegion(blocks.dests[0], 0, SECTORS)
    plan = TransferPlan(source, (dest,), 64)
    assert [_piece_sectors(plan, pages) for pages in (1, 3, 8)] == [16, 16, 64]


def test_what_cannot_be_read_back_is_not_called_good(bench: Bench) -> None:
    transfer = bench.run()
    bench.dests[1].fail(Op.READ, 100, 1)
    found = verify(transfer)
    assert [found.is_good(index) for index in range(3)] == [True, False, True]
    outcome = TransferOutcome(transfer, Settings("simulated", 8, 64, 64), found)
    assert outcome.exit_code == ExitCode.PARTIAL
    (unreadable,) = outcome.as_dict()["destinations"][1]["unreadable"]
    assert unreadable["sector"] <= 100 < unreadable["sector"] + unreadable["count"]


def test_where_nothing_was_read_back_nothing_is_verified(bench: Bench) -> None:
    """Not one sector of the source could be read: that no difference was found says nothing."""
    bench.source.fail(Op.READ, 0, SECTORS)
    found = verify(bench.run(on_error="skip"))
    assert found.checked == [0, 0, 0]
    assert not any(map(found.is_good, range(3)))


@pytest.mark.parametrize(
    ("pages", "taken"), [(1, 4), (4, 4), (32, 32), (63, 32), (64, 64), (1000, 8 * 32)]
)
def test_a_verification_takes_no_more_memory_than_its_pages(
    bench: Bench, pages: int, taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight pages a piece and device, and eight pieces at most; less than a block is of no use."""
    memories: list[int] = []

    def allocate(number: int) -> Memory:
        memories.append(number)
        return Memory(number)

    transfer = bench.run()
    monkeypatch.setattr("dmcopy.transfer.verify.Memory", allocate)
    assert verify(transfer, pages=pages).checked == [SECTORS] * 3
    assert memories == [taken]


def test_a_verification_keeps_to_the_limit_and_leaves_nothing_out(bench: Bench) -> None:
    transfer = bench.run()
    bench.seen.clear()
    found = verify(transfer, limit=SECTORS << 9, observer=bench.observe)
    assert 0.8 < found.seconds < 1.1
    assert found.checked == [SECTORS] * 3
    told = [(one.phase, one.sectors <= one.total) for one in bench.of(events.Progress)]
    assert told == [("verify", True)] * len(told)
    assert len(told) > 8
    last = bench.of(events.Progress)[-1]
    assert (last.sectors, last.total, last.written) == (SECTORS, SECTORS, (SECTORS,) * 3)


def test_an_interrupt_of_a_verification_does_not_wait_for_the_limit(bench: Bench) -> None:
    transfer = bench.run()
    with Reactor(SimulatedBackend(1)) as reactor:
        verifier = Verifier(reactor, transfer.plan, transfer.dests, pages=64, limit=1 << 9)
        reactor.call_later(1, verifier.interrupt)
        found = verifier.run()
    assert (found.interrupted, found.seconds < 3) == (True, True)
    assert not any(map(found.is_good, range(3)))


def test_interrupted_it_ends_soon_and_says_what_is_written(bench: Bench) -> None:
    def interrupt(transfer: Transfer, reactor: Reactor) -> None:
        reactor.call_later(0.002, transfer.interrupt)

    transfer = bench.run(interrupt)
    assert transfer.interrupted
    assert not transfer.abandoned
    for index, dest in enumerate(transfer.dests):
        assert 0 < dest.sectors < SECTORS
        assert dest.durable == dest.written
        for start, end in dest.written:
            assert bench.dests[index].read(start, end - start) == bench.source.read(
                start, end - start
            )


def test_zeroes_that_are_there_already_are_done_without_a_write(bench: Bench) -> None:
    """Where a map is kept it says so, and the next run does not begin with them."""
    for disk in bench.dests:
        disk.load(b"-" * (SECTORS << 9))
    empty = (RangeSet([(100, 300)]), RangeSet([(0, 80)]), RangeSet())
    transfer = bench.run(holes=RangeSet([(64, 192)]), empty=empty)
    for disk, dest, (left, end) in zip(
        bench.dests, transfer.dests, [(100, 192), (64, 80), (64, 64)], strict=True
    ):
        assert (dest.durable, dest.sectors) == (RangeSet([(0, SECTORS)]), SECTORS)
        expected = bytearray(bench.source.content)
        expected[64 << 9 : 192 << 9] = bytes(128 << 9)
        expected[left << 9 : end << 9] = b"-" * ((end - left) << 9)
        assert disk.content == expected
    assert bench.of(events.Progress)[-1].written == (SECTORS,) * 3


def test_pieces_give_each_what_it_needs(bench: Bench) -> None:
    source, first, second, _ = (IoRegion(disk, 0, SECTORS) for disk in (bench.source, *bench.dests))
    plan = TransferPlan(source, (first, second), 64, holes=RangeSet([(192, 256)]))
    needs = [RangeSet([(0, 100)]), RangeSet([(80, 130), (192, 260)])]
    assert list(plan.pieces(needs)) == [
        Piece(0, 64, (0,)),
        Piece(64, 16, (0,)),
        Piece(80, 20, (0, 1)),
        Piece(100, 28, (1,)),
        Piece(128, 2, (1,)),
        Piece(192, 64, (1,), zero=True),
        Piece(256, 4, (1,)),
    ]


def test_zeroes_are_in_longer_pieces() -> None:
    """They take no pages: terabytes of them are few requests."""
    disk = SimulatedDisk(1 << 17, "disk")
    plan = TransferPlan(None, (IoRegion(disk, 0, 1 << 17),), 64)
    pieces = list(plan.pieces([RangeSet([(32760, 70000)])]))
    assert [(one.start, one.length) for one in pieces] == [
        *((32760, 8), (32768, 32768), (65536, 4464)),
    ]


def test_halves_are_whole_blocks() -> None:
    piece = Piece(80, 24, (0,))
    assert piece.halves(8) == (Piece(80, 8, (0,)), Piece(88, 16, (0,)))
    assert piece.halves(1) == (Piece(80, 12, (0,)), Piece(92, 12, (0,)))


def test_a_plan_refuses_what_cannot_be(bench: Bench) -> None:
    source, dest = IoRegion(bench.source, 0, 64), IoRegion(bench.dests[0], 0, 64)
    with pytest.raises(UsageError, match="1 to 8 destinations, not 0"):
        TransferPlan(source, (), 64)
    with pytest.raises(UsageError, match="dest0 is given twice"):
        TransferPlan(source, (dest, IoRegion(bench.dests[0], 64, 64)), 64)
    with pytest.raises(UsageError, match="overlaps the source"):
        TransferPlan(source, (IoRegion(bench.source, 32, 64),), 64)
    with pytest.raises(UsageError, match="past the end"):
        TransferPlan(source, (IoRegion(bench.dests[0], 600, 64),), 64)
    with pytest.raises(UsageError, match="is empty"):
        TransferPlan(IoRegion(bench.source, 0, 0), (dest,), 64)
    blocks = Bench(8192)
    source, dest = IoRegion(blocks.source, 0, 64), IoRegion(blocks.dests[0], 0, 64)
    assert TransferPlan(source, (dest,), 16).piece == 16
    for piece in (0, 8, 24):
        says = f"a piece of {piece} sectors is not a whole number of blocks: .* of 8192 bytes"
        with pytest.raises(UsageError, match=says):
            TransferPlan(source, (dest,), piece)


def test_an_observer_that_raises_changes_nothing(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    def observe(_: events.TransferEvent) -> None:
        raise BrokenPipeError

    bench.observe = observe
    bench.dests[1].fail(Op.WRITE, 300, 1)
    transfer = bench.run()
    assert len(caplog.records) == 1
    assert (bench.is_copied(0), bench.is_copied(2)) == (True, True)
    assert transfer.dests[1].error == errno.EIO


def test_what_raises_while_it_saves_is_reported_and_saves_again(bench: Bench) -> None:
    reported, calls = list[BaseException](), list[Transfer]()

    def prepare(_: Transfer, reactor: Reactor) -> None:
        reactor.on_exception = reported.append

    def save(transfer: Transfer) -> None:
        calls.append(transfer)
        raise ValueError("no such books")

    transfer = bench.run(prepare, saved=save, interval=0.0001)
    assert len(calls) == len(reported) > 1
    assert all(bench.is_copied(index) for index in range(3))
    assert transfer.finished


def test_the_books_are_kept_before_anybody_is_told(bench: Bench) -> None:
    """Whatever an observer looks at, it sees what the event says."""
    transfers = list[Transfer]()
    looked = list[str]()

    def look(event: events.TransferEvent) -> None:
        (transfer,) = transfers
        if isinstance(event, events.WriteFailed | events.Dropped):
            looked.append(type(event).__name__)
            assert transfer.dests[1].error == errno.EIO
            assert transfer.dests[1].failures
        if isinstance(event, events.ReadFailed):
            looked.append(type(event).__name__)
            assert transfer.unread
            assert transfer.source_error

    bench.observe = look
    bench.dests[1].fail(Op.WRITE, 100, 1)
    bench.source.fail(Op.READ, 600, 1)
    bench.run(lambda transfer, _: transfers.append(transfer))
    assert looked == ["WriteFailed", "Dropped", "ReadFailed"]


@pytest.mark.parametrize("rate", [64 << 9, 640 << 9])
def test_a_limit_is_kept_in_the_whole_and_on_the_way(bench: Bench, rate: int) -> None:
    transfer = bench.run(limit=rate)
    assert all(bench.is_copied(index) for index in range(3))
    wanted = (SECTORS << 9) / rate
    assert wanted - 0.11 <= transfer.seconds < wanted * 1.1
    for event in bench.of(events.Progress):
        begun = event.seconds + 0.11 + (64 << 9) / rate  # a piece begins, and is paid for after
        assert event.sectors << 9 <= begun * rate


def test_how_far_it_is_is_told_ten_times_a_second_until_it_ends(bench: Bench) -> None:
    """Who looks at a copy of an hour would take it to hang."""
    transfer = bench.run(limit=(SECTORS << 9) // 2)
    seconds = [event.seconds for event in bench.of(events.Progress)]
    assert seconds == pytest.approx([0.1 * n for n in range(len(seconds) - 1)] + seconds[-1:])
    assert seconds[-1] == transfer.seconds
    assert len(seconds) > 15


def test_only_what_was_written_to_is_flushed(bench: Bench) -> None:
    """A flush of a disk in use by others takes long, and may fail for reasons of theirs."""
    flushed: list[Any] = []

    def prepare(transfer: Transfer, reactor: Reactor) -> None:
        transfer.dests[1].resume(RangeSet([(0, SECTORS)]))
        submit = reactor.submit

        def watch(request: Any) -> None:
            if request.op == Op.FLUSH:
                flushed.append(request.device)
            submit(request)

        reactor.submit = watch

    assert bench.run(prepare).dests[1].ok
    assert flushed == [bench.dests[0], bench.dests[2]]


def test_an_interrupt_does_not_wait_for_the_limit(bench: Bench) -> None:
    def prepare(transfer: Transfer, reactor: Reactor) -> None:
        reactor.call_later(1, transfer.interrupt)

    transfer = bench.run(prepare, limit=1 << 9)
    assert (transfer.interrupted, transfer.seconds < 3) == (True, True)


def test_the_time_that_is_left_is_that_of_what_is_left() -> None:
    later = events.Progress("copy", 300, 1000, (300,), 2.0, already=100)
    assert (later.rate, later.seconds_left) == (100.0, 7.0)
    assert events.Progress("copy", 100, 1000, (100,), 2.0, already=100).seconds_left is None
    assert events.Progress("copy", 1000, 1000, (1000,), 0.0).seconds_left == 0.0
    first = events.Progress("copy", 100, 1000, (100,), 0.0)
    assert (first.rate, first.seconds_left) == (0.0, None)
    quick = events.Progress("copy", 100, 1000, (100,), 0.5)
    assert (quick.rate, quick.seconds_left) == (200.0, 4.5)
    slow = events.Progress("copy", 1, 2, (1,), 4.0)
    assert (slow.rate, slow.seconds_left) == (0.25, 4.0)


def raising(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, calls: int) -> None:
    """Have a function raise when it is called for the nth time, and each time after."""
    original, left = getattr(owner, name), calls

    def call(*args: Any, **options: Any) -> Any:
        nonlocal left
        left -= 1
        if left <= 0:
            raise ZeroDivisionError(name)
        return original(*args, **options)

    monkeypatch.setattr(owner, name, call)


@pytest.mark.parametrize("calls", [1, 2, 7])
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        *((Transfer, name) for name in ("_book", "_fill", "_begin", "_settled", "_finish")),
        *((Destination, name) for name in ("wrote", "needs", "flushed")),
        *((Durability, name) for name in ("_begin", "_flushed", "_submit")),
        (RangeSet, "add"),
    ],
)
def test_a_fault_in_a_callback_ends_the_copy_with_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, calls: int
) -> None:
    """Whatever raises, and however often: it does not wait for what will not come any more."""
    raising(monkeypatch, owner, name, calls)
    with Reactor(SimulatedBackend(1)) as reactor:
        client = Client(64, reactor=reactor, depth=4)
        source, *dests = (IoRegion(disk, 0, SECTORS) for disk in (bench.source, *bench.dests))
        transfer = Transfer(
            client, TransferPlan(source, tuple(dests), 64), outstanding=4, interval=0.001
        )
        with contextlib.suppress(ZeroDivisionError):
            transfer.run()
            assert all(bench.is_copied(index) for index in range(3))  # not called so often
        client.destroy()
        assert transfer.finished
