"""The mirror target: its error matrix line by line, as measured on the kernels 6.1 and 6.12."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Iterator

import pytest

from dmcopy.errors import DeadlineError, DeviceError, UsageError
from dmcopy.io import IoRegion
from dmcopy.io.request import Io, Memory, Op, Request
from dmcopy.io.simulated import SimulatedBackend, SimulatedDisk
from dmcopy.ondisk.mirror_log import MirrorLog
from dmcopy.table import Table
from dmcopy.targets.mirror import Mirror
from dmcopy.targets.mirror_set import COPY_PAGES, Module
from dmcopy.targets.region_hash import RegionState
from dmcopy.units import PAGE_SECTORS

from .conftest import BareEngine

SECTORS = 256
REGION = 16
REGIONS = SECTORS // REGION


class HoldingBackend(SimulatedBackend):
    """Keeps the reads of one disk back, until they are let go."""

    silent: SimulatedDisk | None = None

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.held: list[Io] = []
        self.watch: Callable[[], object] = lambda: None

    def submit(self, request: Request) -> None:
        self.watch()
        if isinstance(request, Io) and request.op == Op.READ and request.device is self.silent:
            self.held.append(request)
        else:
            super().submit(request)

    def let_go(self) -> None:
        self.silent = None
        for request in self.held:
            self.submit(request)


class Bench(BareEngine):
    """Legs a to i, which hold different things, and a log device l; `make` makes a mirror."""

    def __init__(self) -> None:
        self.backend = HoldingBackend(3)
        disks = (SimulatedDisk(SECTORS, name) for name in "abcdefghil")
        super().__init__(*disks, backend=self.backend)
        for name, disk in self.disks.items():
            if name != "l":
                disk.load(random.Random(name).randbytes(SECTORS << 9))
        self.reactor.on_exception = self._raise
        self.memory = Memory(REGION >> 3)

    def _raise(self, error: BaseException) -> None:
        raise error

    def table(self, features: str, *, log: str = "disk", legs: str = "ab", sync: str = "") -> Table:
        words = ["disk", "l", str(REGION)] if log == "disk" else ["core", str(REGION)]
        words += [sync] if sync else []
        words.insert(1, str(len(words) - 1))
        places = " ".join(f"{leg} 0" for leg in legs)
        text = f"0 {SECTORS} mirror {' '.join(words)} {len(legs)} {places} {features}"
        return Table.parse(text.strip())

    def make(
        self, features: str = "", *, log: str = "disk", legs: str = "ab", sync: str = ""
    ) -> None:
        self.mapper.create("m", self.table(features, log=log, legs=legs, sync=sync))
        self.device = self.mapper.open("m")

    def settled(
        self, features: str = "", *, log: str = "disk", legs: str = "ab", sync: str = ""
    ) -> None:
        """Make a mirror, and let its recovery end."""
        self.make(features, log=log, legs=legs, sync=sync)
        self.settle()

    def cycle(self, *, flush: bool = True) -> None:
        """Suspend and resume, and let everything end that can."""
        self.mapper.suspend("m", flush=flush)
        self.mapper.resume("m")
        self.settle()

    def status(self) -> str:
        return str(self.mapper.status("m")[0]).partition(" mirror ")[2]

    @property
    def mirror(self) -> Mirror:
        assert self.device.active is not None
        target = self.device.active.targets[0]
        assert isinstance(target, Mirror)
        return target

    @property
    def events(self) -> int:
        return self.mapper.info("m").events

    @property
    def is_several(self) -> bool:
        return self.mapper.module(Module).recovery == "several"

    def start_write(self, sector: int, count: int = 1) -> Io:
        """Begin a write; its `context` becomes True when it has ended."""

        def ended(request: Io) -> None:
            request.context = True

        extents = [(0, count << 9)]
        request = Io(Op.WRITE, IoRegion(self.device, sector, count), self.memory, extents, ended)
        self.reactor.submit(request)
        return request

    def settled_write(self, sector: int) -> Io:
        """Begin a write, and let it come as far as it does by itself."""
        write = self.start_write(sector)
        self.settle()
        return write

    def log(self) -> MirrorLog:
        return MirrorLog.parse(self.disks["l"].content)

    def agree(self, legs: str = "ab") -> bool:
        return len({bytes(self.disks[leg].content) for leg in legs}) == 1


@pytest.fixture(params=["several", "kernel"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """A bench whose mirrors recover several regions at a time, and one as the kernel does."""
    with Bench() as made:
        made.mapper.module(Module).recovery = request.param
        yield made


HANDLE = "1 handle_errors"
KEEP = "2 handle_errors keep_log"


@pytest.mark.parametrize("legs", ["ab", "abc", "abcdefghi"])
@pytest.mark.parametrize("log", ["core", "disk"])
def test_the_legs_are_made_equal_with_one_event(bench: Bench, legs: str, log: str) -> None:
    before = bytes(bench.disks["a"].content)
    bench.settled(legs=legs, log=log)
    assert bench.agree(legs)
    assert bench.disks["a"].content == before
    words = "3 disk l A" if log == "disk" else "1 core"
    assert bench.status() == f"{len(legs)} {' '.join(legs)} 16/16 1 {'A' * len(legs)} {words}"
    assert bench.events == 1
    if log == "disk":
        assert (bench.log().nr_regions, bench.log().clean.count()) == (REGIONS, REGIONS)


def test_nosync_copies_nothing_and_raises_no_event(bench: Bench) -> None:
    bench.settled(log="core", sync="nosync")
    assert not bench.agree()
    assert (bench.status(), bench.events) == ("2 a b 16/16 1 AA 1 core", 0)


def test_nosync_of_a_disk_log_counts_at_every_resume(bench: Bench) -> None:
    bench.make(sync="nosync")
    bench.disks["l"].content[1024] = 0
    bench.cycle()
    assert bench.log().clean.count() == REGIONS
    assert not bench.agree()


def test_the_table_comes_back_as_the_kernel_prints_it(bench: Bench) -> None:
    bench.make("2 keep_log handle_errors", sync="sync")
    text = "0 256 mirror disk 3 l 16 sync 2 a 0 b 0 2 handle_errors keep_log"
    assert str(bench.mapper.table("m")) == text
    assert bench.mapper.targets()["mirror"] == (1, 14, 0)


def test_writes_reach_every_leg_and_the_log_says_clean_again(bench: Bench) -> None:
    bench.settled(legs="abc")
    data = random.Random(5).randbytes(40 << 9)
    bench.device.write(10, data)  # three regions
    bench.device.flush()
    bench.settle()
    assert bench.agree("abc")
    assert bench.disks["c"].read(10, 40) == data
    assert bench.device.read(10, 40) == data
    assert bench.log().clean.count() == REGIONS


def test_a_log_in_memory_holds_up_no_write(bench: Bench) -> None:
    bench.settled(HANDLE, log="core")
    data = random.Random(6).randbytes(8 << 9)
    bench.device.write(10, data)
    assert bench.agree()
    assert bench.device.read(10, 8) == data
    assert (bench.status(), bench.events) == ("2 a b 16/16 1 AA 1 core", 1)


def test_the_log_is_dirty_while_a_write_is_under_way(bench: Bench) -> None:
    bench.settled()
    seen = []
    disk = bench.disks["b"]
    plain = disk.write

    def write(sector: int, data: bytes, *, durable: bool = False) -> None:
        seen.append(list(bench.log().dirty()))
        plain(sector, data, durable=durable)

    disk.write = write  # type: ignore[method-assign]
    bench.device.write(80, bytes(512))
    assert seen == [[5]]
    bench.settle()
    assert list(bench.log().dirty()) == []


# A write to a region in sync, and one leg fails.


@pytest.mark.parametrize(
    ("features", "outcome", "events"),
    [("", 0, 0), (HANDLE, "held", 1), (KEEP, 0, 1)],
)
def test_a_leg_fails_a_write(bench: Bench, features: str, outcome: int | str, events: int) -> None:
    bench.settled(features)
    bench.disks["b"].fail(Op.WRITE, REGION, 1)
    write = bench.settled_write(REGION)
    assert (write.error if write.context else "held") == outcome
    assert bench.status() == "2 a b 15/16 1 AD 3 disk l A"
    assert list(bench.log().dirty()) == [1]
    assert bench.events == 1 + events


def test_a_held_write_goes_on_after_a_suspend_without_flush(bench: Bench) -> None:
    bench.settled(HANDLE)
    fault = bench.disks["b"].fail(Op.WRITE, REGION, 1)
    write = bench.settled_write(REGION)
    fault.times = 0
    bench.mapper.suspend("m", flush=False)
    assert not write.context
    bench.mapper.resume("m")
    bench.settle()
    # The region is copied first; with that the mirror is in sync, and its letters are forgotten.
    assert (write.context, write.error) == (True, 0)
    assert bench.status() == "2 a b 16/16 1 AA 3 disk l A"
    assert bench.events == 3
    assert bench.agree()


@pytest.mark.parametrize("op", [Op.WRITE, Op.WRITE_ZEROES])
def test_of_a_write_that_was_cut_only_what_is_held_goes_on(bench: Bench, op: Op) -> None:
    """The part that has ended is not written again, so its region can be recovered (6.1, 6.12)."""
    bench.settled(HANDLE, sync="sync")
    fault = bench.disks["b"].fail(Op.WRITE, SECTORS - REGION, REGION)
    region = IoRegion(bench.device, SECTORS - 2 * REGION, 2 * REGION)
    ended: list[Io] = []
    memory = Memory(2 * REGION >> 3)
    extents = [(0, region.count << 9)] if op == Op.WRITE else []
    bench.reactor.submit(Io(op, region, memory, extents, ended.append))
    bench.settle()
    fault.times = 0
    assert not ended
    bench.cycle(flush=False)
    if bench.is_several:  # the recovery of the last region begins before the write comes
        assert f" {REGIONS}/{REGIONS} 1 AA " in bench.status()
    else:
        # The last region waits for the write, and that for a leg that is not called failed.
        assert f" {REGIONS - 1}/{REGIONS} 1 AD " in bench.status()
        bench.mapper.load("m", bench.table(HANDLE, sync="sync"))
        bench.cycle(flush=False)
    assert [io.error for io in ended] == [0]
    assert bench.agree()
    memory.close()


def test_a_held_write_goes_on_with_a_table_without_the_leg(bench: Bench) -> None:
    bench.settled(HANDLE)
    bench.disks["b"].fail(Op.WRITE, 0, SECTORS)
    write = bench.settled_write(REGION)
    bench.mapper.load("m", Table.parse(f"0 {SECTORS} linear a 0"))
    bench.cycle(flush=False)
    assert (write.context, write.error) == (True, 0)


def test_a_held_write_fails_at_a_suspend_with_flush(bench: Bench) -> None:
    bench.settled(HANDLE)
    bench.disks["b"].fail(Op.WRITE, REGION, 1)
    write = bench.settled_write(REGION)
    bench.mapper.suspend("m")
    assert (write.context, write.error) == (True, errno.EIO)


def test_a_held_write_fails_at_any_suspend_when_no_leg_is_left(bench: Bench) -> None:
    """As the kernel mostly does, 6.1 and 6.12: it tries it again before it takes it back."""
    bench.settled(HANDLE)
    faults = [bench.disks["a"].fail(Op.WRITE, REGION, 1), bench.disks["b"].fail(Op.READ, REGION, 1)]
    write = bench.settled_write(REGION)
    with pytest.raises(DeviceError):
        bench.device.read(REGION, 1)
    for fault in faults:
        fault.times = 0
    bench.mapper.suspend("m", flush=False)
    assert (write.context, write.error) == (True, errno.EIO)


def test_a_held_flush_is_done_at_a_suspend_without_flush(bench: Bench) -> None:
    bench.settled(HANDLE)
    fault = bench.disks["b"].fail(Op.FLUSH, 0, 1)
    flushes: list[Io] = []
    bench.reactor.submit(Io(Op.FLUSH, IoRegion(bench.device, 0, 0), notify=flushes.append))
    bench.settle()
    fault.times = 0
    assert not flushes
    bench.mapper.suspend("m", flush=False)
    assert [flush.error for flush in flushes] == [0]


def test_after_a_failure_writes_to_regions_out_of_sync_are_held_too(bench: Bench) -> None:
    bench.settled(HANDLE)
    bench.disks["b"].fail(Op.WRITE, REGION, 1)
    bench.start_write(REGION)
    bench.settle()
    second = bench.start_write(REGION + 1)
    other = bench.settled_write(5 * REGION)
    assert not second.context
    assert (other.context, other.error) == (True, 0)


def test_with_keep_log_writes_to_regions_out_of_sync_go_on(bench: Bench) -> None:
    bench.settled(KEEP)
    bench.disks["b"].fail(Op.WRITE, REGION, 1)
    bench.device.write(REGION, bytes(512))
    bench.device.write(REGION + 1, b"x" * 512)
    assert bench.disks["a"].read(REGION + 1, 1) == b"x" * 512
    assert bench.disks["b"].read(REGION + 1, 1) != b"x" * 512
    assert bench.device.read(REGION + 1, 1) == b"x" * 512


@pytest.mark.parametrize("features", ["", HANDLE, KEEP])
def test_all_legs_fail_a_write(bench: Bench, features: str) -> None:
    bench.settled(features)
    for leg in "ab":
        bench.disks[leg].fail(Op.WRITE, 0, SECTORS)
    write = bench.settled_write(REGION)
    assert (write.context, write.error) == (True, errno.EIO)
    assert bench.status() == "2 a b 15/16 1 DD 3 disk l A"
    assert bench.events == (2 if features else 1)


@pytest.mark.parametrize(("features", "outcome"), [("", 0), (HANDLE, "held"), (KEEP, errno.EIO)])
def test_the_log_fails(bench: Bench, features: str, outcome: int | str) -> None:
    bench.settled(features)
    fault = bench.disks["l"].fail(Op.WRITE, 0, 1)
    write = bench.settled_write(REGION)
    assert (write.error if write.context else "held") == outcome
    assert bench.status() == "2 a b 16/16 1 AA 3 disk l D"
    assert bench.events == 2
    # It stays failed until there is another table, though the device works again.
    fault.times = 0
    later = bench.settled_write(3 * REGION)
    assert (later.error if later.context else "held") == outcome
    assert bench.status().endswith(" D")


def test_a_flush_of_the_log_fails(bench: Bench) -> None:
    bench.settled(HANDLE)
    bench.disks["l"].fail(Op.FLUSH, 0, 1, times=1)
    write = bench.settled_write(REGION)
    assert not write.context
    assert bench.status() == "2 a b 16/16 1 AA 3 disk l F"


def test_the_log_cannot_be_read(bench: Bench) -> None:
    bench.disks["l"].fail(Op.READ, 0, 1)
    bench.make()
    assert bench.events == 1
    bench.settle()
    assert bench.status() == "2 a b 16/16 1 AA 3 disk l D"
    assert bench.agree()
    assert bench.events == 2


def test_a_log_of_a_future_version_counts_as_failed_and_keeps_its_version(bench: Bench) -> None:
    bench.disks["l"].load(MirrorLog.parse(_log_of(16)).build() + bytes((SECTORS << 9) - 1536))
    bench.disks["l"].content[4] = 9
    bench.settled()
    assert bench.status() == "2 a b 16/16 1 AA 3 disk l D"
    assert bench.disks["l"].content[4] == 9


def _log_of(regions: int) -> bytes:
    from dmcopy.ondisk.bitset import Bitset

    return MirrorLog(Bitset(0).resized(regions, True)).build()


# Flushes of the legs.


def test_a_leg_fails_the_flush_before_a_bit_becomes_clean(bench: Bench) -> None:
    bench.settled(HANDLE)
    bench.disks["b"].fail(Op.FLUSH, 0, 1, times=1)
    bench.device.write(REGION, bytes(512))
    bench.settle()
    assert bench.status() == "2 a b 16/16 1 AF 3 disk l A"
    assert bench.log().clean.count() == 0  # it is not known what was lost
    bench.device.write(3 * REGION, bytes(512))
    bench.settle()
    assert bench.log().clean.count() == 0
    assert bench.events == 2


@pytest.mark.parametrize(("features", "outcome"), [("", 0), (HANDLE, "held"), (KEEP, 0)])
def test_a_flush_of_the_mirror_fails_on_a_leg(
    bench: Bench, features: str, outcome: int | str
) -> None:
    bench.settled(features)
    bench.disks["b"].fail(Op.FLUSH, 0, 1, times=1)
    ended: list[Io] = []
    flush = Io(Op.FLUSH, IoRegion(bench.device, 0, 0), notify=ended.append)
    bench.reactor.submit(flush)
    bench.settle()
    assert (flush.error if ended else "held") == outcome
    assert bench.status() == "2 a b 16/16 1 AD 3 disk l A"
    # A write that ends now leaves its region out of sync: the flush may have lost something.
    bench.device.write(2 * REGION, bytes(512))
    bench.settle()
    assert list(bench.log().dirty()) == [2]


# Reads.


def test_a_read_that_fails_is_done_on_another_leg(bench: Bench) -> None:
    bench.settled(HANDLE, legs="abc")
    bench.disks["a"].fail(Op.READ, 0, SECTORS)
    expected = bench.disks["b"].read(3, 2)
    assert bench.device.read(3, 2) == expected
    bench.settle()
    assert bench.status() == "3 a b c 16/16 1 RAA 3 disk l A"
    assert bench.events == 2
    assert bench.device.read(3, 2) == expected


def test_without_handle_errors_a_failed_read_is_repeated_without_an_event(bench: Bench) -> None:
    bench.settled()
    bench.disks["a"].fail(Op.READ, 0, SECTORS)
    assert bench.device.read(3, 2) == bench.disks["b"].read(3, 2)
    assert bench.status() == "2 a b 16/16 1 RA 3 disk l A"
    assert bench.events == 1


def test_a_read_fails_when_all_legs_do(bench: Bench) -> None:
    bench.settled(HANDLE)
    for leg in "ab":
        bench.disks[leg].fail(Op.READ, 0, SECTORS)
    for _ in range(2):
        with pytest.raises(DeviceError) as caught:
            bench.device.read(0, 1)
        assert caught.value.errno == errno.EIO
    assert bench.status() == "2 a b 16/16 1 RR 3 disk l A"


def test_reads_out_of_sync_come_from_the_default_leg_only(bench: Bench) -> None:
    bench.disks["b"].fail(Op.WRITE, 0, SECTORS)
    bench.settled(HANDLE)
    assert bench.status() == "2 a b 0/16 1 AS 3 disk l A"
    assert bench.device.read(3, 2) == bench.disks["a"].read(3, 2)
    assert bench.events == 1


def test_the_primary_fails_while_out_of_sync(bench: Bench) -> None:
    bench.disks["a"].fail(Op.READ, 0, SECTORS)
    bench.settled(HANDLE)
    assert bench.status() == "2 a b 0/16 1 SA 3 disk l A"
    with pytest.raises(DeviceError):
        bench.device.read(0, 1)
    assert bench.events == 1


def test_with_keep_log_the_primary_changes_even_out_of_sync(bench: Bench) -> None:
    bench.disks["a"].fail(Op.READ, 0, REGION, times=1)
    before = {leg: bench.disks[leg].read(REGION, SECTORS - REGION) for leg in "ab"}
    bench.settled(KEEP)
    assert bench.status() == "2 a b 15/16 1 SA 3 disk l A"
    assert bench.device.read(0, 1) == bench.disks["b"].read(0, 1)
    # Regions behind the first are copied the other way round, if they had not begun.
    source = "a" if bench.is_several else "b"
    for leg in "ab":
        assert bench.disks[leg].read(REGION, SECTORS - REGION) == before[source]


def test_the_default_leg_fails_a_write_in_sync_and_another_takes_over(bench: Bench) -> None:
    bench.settled(KEEP, legs="abc")
    bench.disks["a"].fail(Op.WRITE, 0, SECTORS)
    data = random.Random(1).randbytes(512)
    bench.device.write(REGION, data)
    bench.settle()
    assert bench.status() == "3 a b c 15/16 1 DAA 3 disk l A"
    assert bench.device.read(REGION, 1) == data  # region out of sync: from the new default


# Recovery.


def test_without_handle_errors_a_failed_recovery_counts_as_good(bench: Bench) -> None:
    bench.disks["b"].fail(Op.WRITE, 0, SECTORS)
    bench.settled()
    assert bench.status() == "2 a b 16/16 1 AA 3 disk l A"
    assert bench.log().clean.count() == 0  # but the log does not lie
    assert bench.events == 1


def test_each_region_is_tried_once_for_each_resume(bench: Bench) -> None:
    fault = bench.disks["b"].fail(Op.WRITE, 0, REGION, times=1)
    bench.settled(HANDLE)
    assert bench.status() == "2 a b 15/16 1 AS 3 disk l A"
    assert fault.times == 0
    bench.cycle()
    assert bench.status() == "2 a b 16/16 1 AA 3 disk l A"
    assert bench.agree()


def test_the_last_region_may_be_short(bench: Bench) -> None:
    table = Table.parse("0 250 mirror core 1 16 2 a 6 b 0")
    bench.mapper.create("m", table)
    bench.device = bench.mapper.open("m")
    bench.settle()
    assert bench.disks["a"].read(6, 250) == bench.disks["b"].read(0, 250)
    assert bench.disks["a"].read(0, 6) != bench.disks["b"].read(250, 6)
    assert bench.status() == "2 a b 16/16 1 AA 1 core"


def test_a_mirror_that_cannot_be_suspended_goes_on(bench: Bench) -> None:
    """Its leg does not answer for longer than any caller waits; then it does."""
    bench.backend.silent = bench.disks["a"]
    bench.settled(log="core")
    with pytest.raises(DeadlineError, match="the recovery of a region of m"):
        bench.mapper.suspend("m")
    assert not bench.mapper.info("m").suspended
    assert bench.status() == "2 a b 0/16 1 AA 1 core"
    bench.backend.let_go()
    bench.settle()
    assert bench.agree()


@pytest.mark.parametrize(
    ("region_size", "regions"),
    [(2, 2049), (16, 1025), (1024, 17), (4096, 5), (16384, 2), (32768, 2)],
)
def test_one_region_more_than_the_pages_hold_is_recovered_at_a_time(
    bench: Bench, region_size: int, regions: int
) -> None:
    """That many wait for the source leg, which does not answer, and never more when it does."""
    length = region_size * (regions + 2) + 1
    for leg in "ab":
        bench.disks[leg] = SimulatedDisk(length, leg)
    bench.disks["a"].load(random.Random(9).randbytes(length << 9))
    bench.backend.silent = bench.disks["a"]
    bench.mapper.create("m", Table.parse(f"0 {length} mirror core 1 {region_size} 2 a 0 b 0"))
    bench.device = bench.mapper.open("m")
    bench.settle()
    recovery = bench.mirror.work.hash
    assert recovery.recovering == (regions if bench.is_several else 1)
    held = sum(read.count for read in bench.backend.held)
    assert 0 < held <= COPY_PAGES * PAGE_SECTORS
    seen: list[int] = []
    bench.backend.watch = lambda: seen.append(recovery.recovering)
    bench.backend.let_go()
    bench.reactor.run_until(lambda: bench.mirror.work.idle, 100.0, "the recovery")
    assert max(seen) <= (regions if bench.is_several else 1)
    assert bench.agree()


def test_a_leg_that_fails_during_several_recoveries_is_told_once(bench: Bench) -> None:
    """Its regions stay out of sync, the others do not; the other leg has all of them."""
    for region in (1, 3, 4, 15):
        bench.disks["b"].fail(Op.WRITE, region * REGION + 2, 1)
    bench.settled(HANDLE, legs="abc")
    assert bench.status() == "3 a b c 12/16 1 ASA 3 disk l A"
    assert list(bench.log().dirty()) == [1, 3, 4, 15]
    assert bench.events == 1
    assert bench.agree("ac")


def test_each_further_failure_is_an_event(bench: Bench) -> None:
    """Who watches the mirror hears of a leg only by it; the first failure may not be the last."""
    bench.settled(HANDLE, legs="abc", sync="nosync")
    for number, leg in enumerate("bc", 1):
        bench.disks[leg].fail(Op.WRITE, 0, SECTORS)
        bench.start_write(number * REGION)  # a region that is in sync: it goes to every leg
        bench.settle()
        assert bench.events == number
    assert bench.status() == "3 a b c 14/16 1 ADD 3 disk l A"


def test_a_mirror_under_recovery_is_not_destroyed(bench: Bench) -> None:
    """What copies its regions would take no more of them, and the mirror is to continue whole."""
    bench.backend.silent = bench.disks["a"]
    bench.settled(log="core")
    with pytest.raises(DeadlineError, match="the last work of m"):
        bench.mirror.destroy()
    bench.backend.let_go()
    bench.settle()
    assert bench.agree()


def test_a_suspend_waits_for_every_recovery_and_begins_none(bench: Bench) -> None:
    bench.backend.silent = bench.disks["a"]
    bench.settled(log="core", legs="abc")
    recovery = bench.mirror.work.hash
    begun = recovery.recovering
    bench.reactor.call_later(0.5, bench.backend.let_go)
    bench.mapper.suspend("m")
    assert recovery.recovering == 0
    assert f" {begun}/16 " in bench.status()
    assert bench.mirror.work.idle
    bench.mapper.resume("m")
    bench.settle()
    assert bench.agree("abc")
    assert bench.events == 1


def test_writes_to_regions_in_recovery_wait_and_others_do_not(bench: Bench) -> None:
    bench.settled()
    bench.mapper.suspend("m")
    bench.disks["l"].content[1024] &= ~0b1010  # regions 1 and 3 are dirty
    bench.backend.silent = bench.disks["a"]
    bench.mapper.resume("m")
    writes = {region: bench.start_write(region * REGION) for region in (1, 2, 3)}
    bench.settle()
    assert [bool(writes[region].context) for region in (1, 2)] == [False, True]
    # One that is not chosen yet is written to, on the default leg.
    assert bool(writes[3].context) is not bench.is_several
    bench.backend.let_go()
    bench.settle()
    assert all(write.context and not write.error for write in writes.values())
    assert bench.agree()
    assert bench.log().clean.count() == REGIONS


def test_a_write_that_is_delayed_while_its_recovery_ends_is_not_forgotten(bench: Bench) -> None:
    """The recovery waits for another write, which ends while the log is flushed; and it fails."""
    bench.settled()
    regions = bench.mirror.work.hash
    regions.begin_write(1)
    regions.mark_nosync(1)
    bench.cycle()
    assert (regions.state(1), regions.recovering) == (RegionState.RECOVERING, 1)
    regions.flush_failure = True
    plain = bench.disks["l"].write

    def write(sector: int, data: bytes, *, durable: bool = False) -> None:
        if regions.recovering and not data[1024] & 1 << 3:  # of the write to region 3
            regions.end_write(1)
        plain(sector, data, durable=durable)

    bench.disks["l"].write = write  # type: ignore[method-assign]
    writes = [bench.start_write(REGION), bench.start_write(3 * REGION)]
    bench.settle()
    assert [(write.context, write.error) for write in writes] == [(True, 0)] * 2
    assert (regions.state(1), regions.recovering) == (RegionState.NOSYNC, 0)


def test_a_mirror_may_begin_anywhere_in_its_table(bench: Bench) -> None:
    begin, length = 24, 4 * REGION
    mirror = f"{begin} {length} mirror disk 2 l {REGION} 2 a 0 b 8 1 handle_errors"
    bench.mapper.create("m", Table.parse(f"0 {begin} linear c 0\n{mirror}"))
    bench.device = bench.mapper.open("m")
    bench.settle()
    assert bench.disks["b"].read(8, length) == bench.disks["a"].read(0, length)
    data = random.Random(8).randbytes(2 << 9)
    bench.device.write(begin + 2 * REGION, data)
    assert bench.disks["a"].read(2 * REGION, 2) == data
    assert bench.disks["b"].read(8 + 2 * REGION, 2) == data
    assert bench.device.read(begin + 2 * REGION, 2) == data
    bench.disks["a"].fail(Op.READ, 3 * REGION, 1)
    assert bench.device.read(begin + 3 * REGION, 1) == bench.disks["b"].read(8 + 3 * REGION, 1)
    bench.disks["b"].fail(Op.WRITE, 8 + REGION, 1)
    bench.start_write(begin + REGION)
    bench.settle()
    assert list(bench.log().dirty()) == [1]


def test_writes_during_a_recovery_wait_for_their_region(bench: Bench) -> None:
    bench.make()
    rng = random.Random(4)
    expected = bytearray(bench.disks["a"].content)
    pending = []
    for _ in range(60):
        sector = rng.randrange(SECTORS)
        bench.memory.view[:512] = data = rng.randbytes(512)
        expected[sector << 9 : sector + 1 << 9] = data
        pending.append(bench.start_write(sector))
        bench.reactor.run_until(lambda: pending[-1].context)
    bench.settle()
    assert bench.agree()
    assert bench.disks["b"].content == expected


def test_a_region_that_was_recovered_costs_one_write_of_the_log(bench: Bench) -> None:
    bench.settled()
    # One at the resume, one of the bits that it touched, and one for the end of each region, or
    # of all that ended in the meantime.
    if bench.is_several:
        assert 3 <= bench.disks["l"].writes < 2 + REGIONS
    else:
        assert bench.disks["l"].writes == 2 + REGIONS
    assert bench.log().clean.count() == REGIONS


def test_only_dirty_regions_are_copied_at_a_resume(bench: Bench) -> None:
    bench.settled()
    bench.mapper.suspend("m")
    bench.disks["l"].content[1024] &= ~0b1010
    for region in range(REGIONS):
        bench.disks["b"].content[region * REGION << 9] ^= 1
    bench.mapper.resume("m")
    bench.settle()
    a, b = bench.disks["a"], bench.disks["b"]
    same = [n for n in range(REGIONS) if a.read(n * REGION, 16) == b.read(n * REGION, 16)]
    assert same == [1, 3]


def test_the_throttle_is_shared_by_the_mirrors_of_an_engine(bench: Bench) -> None:
    throttle = bench.mapper.module(Module).resync_throttle
    bench.make()
    assert bench.mapper.module(Module).resync_throttle is throttle
    assert throttle.percent == 100


# Discards.


def test_a_discard_reaches_every_leg_and_its_failure_degrades_none(bench: Bench) -> None:
    bench.settled(HANDLE)
    bench.device.discard(REGION, 8)
    assert bench.disks["b"].read(REGION, 8) == bytes(8 << 9)
    bench.disks["b"].fail(Op.DISCARD, 0, SECTORS, error=errno.EOPNOTSUPP)
    with pytest.raises(DeviceError) as caught:
        bench.device.discard(REGION, 8)
    assert caught.value.errno == errno.EOPNOTSUPP
    assert bench.status() == "2 a b 16/16 1 AA 3 disk l A"


# Refusals.


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"0 {SECTORS} mirror core 1 16 2 a 0 b 8", "b too small for target: start=8, len=256"),
        (f"0 {SECTORS} mirror core 1 16 1 a 0", "must be from 2 to 9"),
        (f"0 {SECTORS} mirror core 1 12 2 a 0 b 0", "power of two"),
        (f"0 {SECTORS} mirror core 1 16 2 a 0 a 0", "two legs are the same place"),
        (f"0 {SECTORS} mirror disk 2 s 2 2 a 0 b 0", "log device s too small: need 1536 bytes"),
        (f"0 {SECTORS} mirror userspace 1 x 2 a 0 b 0", "Error creating mirror dirty log"),
    ],
)
def test_what_cannot_be_is_refused(bench: Bench, text: str, says: str) -> None:
    bench.disks["s"] = SimulatedDisk(2, "s")
    with pytest.raises((DeviceError, UsageError), match=says):
        bench.mapper.create("m", Table.parse(text))
    assert not bench.mapper.exists("m")
