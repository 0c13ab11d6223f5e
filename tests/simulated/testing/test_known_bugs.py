"""Known bugs of snapshots and mirrors: found by power cuts, or by two engines that are compared.

The targets without the bugs pass.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from dmcopy.errors import DeadlineError
from dmcopy.ondisk.mirror_log import MirrorLog
from dmcopy.table import Table
from dmcopy.testing.compare import DifferenceError
from dmcopy.testing.explorer import CrashError, Explored
from dmcopy.testing.storage import Storage
from tests.unit.targets.examples import forgotten

SECTORS = 64
CHUNK = 4
BEFORE = random.Random(1).randbytes(SECTORS << 9)
Explore = Callable[..., Explored]
Workloads = Callable[..., int]


@pytest.fixture(autouse=True)
def _buggy() -> Iterator[None]:
    with forgotten("tests.simulated.testing.buggy"):
        __import__("tests.simulated.testing.buggy")
        yield


def make(storage: Storage, name: str, words: str) -> None:
    storage.mapper.create(name, Table.parse(f"0 {SECTORS} {words}"))


def pause(storage: Storage, seconds: float) -> None:
    """Let what is behind the devices continue, on a virtual clock."""
    try:
        storage.mapper.reactor.run_until(lambda: False, seconds)
    except DeadlineError:
        pass


# A snapshot reads as the origin was, whatever happens to the origin.


def write_to_the_origin(target: str) -> Callable[[Storage], None]:
    def run(storage: Storage) -> None:
        make(storage, "snap", f"{target} origin cow P {CHUNK}")
        make(storage, "live", "snapshot-origin origin")
        rng = random.Random(2)
        for _ in range(12):
            storage.mapper.open("live").write(rng.randrange(SECTORS - 4), rng.randbytes(4 << 9))

    return run


def snapshot_is_as_before(storage: Storage) -> None:
    make(storage, "snap", f"snapshot origin cow P {CHUNK}")
    assert storage.mapper.open("snap").read(0, SECTORS) == BEFORE, "the snapshot has changed"


@pytest.mark.parametrize("target", ["snapshot", "hasty-snap"])
def test_an_exception_before_its_data(crash_explorer: Explore, target: str) -> None:
    disks = {"origin": SECTORS, "cow": 4 * SECTORS}
    words = write_to_the_origin(target), snapshot_is_as_before, disks
    explore_one(crash_explorer, target == "snapshot", "has changed", *words)


def explore_one(explore: Explore, good: bool, says: str, *words: object) -> None:
    first = {"origin": BEFORE}
    if good:
        assert explore(*words, first=first).states > 100
        return
    with pytest.raises(CrashError, match=says) as found:
        explore(*words, first=first)
    cut = found.value.cut
    assert cut.kept, "nothing had to be lost for it"
    assert f"DMCOPY_CRASH={cut} pytest 'tests/simulated/" in str(found.value)
    with pytest.raises(CrashError, match=says):  # and what was printed repeats it
        explore(*words, first=first, cut=str(cut))


# A merge ends with the origin as the snapshot was, however often it is cut off.


def merge(target: str) -> Callable[[Storage], None]:
    def run(storage: Storage) -> None:
        make(storage, "snap", f"snapshot origin cow P {CHUNK}")
        rng = random.Random(3)
        for sector in range(0, SECTORS, 2 * CHUNK):
            storage.mapper.open("snap").write(sector, rng.randbytes(CHUNK << 9))
        storage.mapper.open("snap").flush()
        storage.mark("merging")
        storage.mapper.remove("snap")
        make(storage, "live", f"{target} origin cow P {CHUNK}")
        pause(storage, 5)
        assert "merging" in storage.marks

    return run


def origin_becomes_the_snapshot(storage: Storage) -> None:
    if "merging" not in storage.marks:
        return
    rng = random.Random(3)
    wanted = bytearray(BEFORE)
    for sector in range(0, SECTORS, 2 * CHUNK):
        wanted[sector << 9 : (sector + CHUNK) << 9] = rng.randbytes(CHUNK << 9)
    make(storage, "live", f"snapshot-merge origin cow P {CHUNK}")
    assert storage.mapper.open("live").read(0, SECTORS) == wanted, "a merged chunk is lost"


@pytest.mark.parametrize("target", ["snapshot-merge", "unflushed-merge"])
def test_a_merge_that_counts_before_it_is_durable(crash_explorer: Explore, target: str) -> None:
    words = merge(target), origin_becomes_the_snapshot, {"origin": SECTORS, "cow": 4 * SECTORS}
    explore_one(crash_explorer, target == "snapshot-merge", "a merged chunk is lost", *words)


# The legs of a mirror agree where its log says that they do.


def write_to_a_mirror(target: str) -> Callable[[Storage], None]:
    def run(storage: Storage) -> None:
        make(storage, "m", f"{target} disk 3 log 4 nosync 2 one 0 two 0")
        rng = random.Random(4)
        for _ in range(6):
            storage.mapper.open("m").write(rng.randrange(SECTORS - 2), rng.randbytes(2 << 9))
            pause(storage, rng.random())

    return run


def clean_regions_agree(storage: Storage) -> None:
    data = storage["log"].read(0, storage["log"].sectors)
    if not any(data[:512]):
        return
    log = MirrorLog.parse(data)
    one, two = (storage[leg].read(0, SECTORS) for leg in ("one", "two"))
    dirty = set(log.dirty())
    for region in range(log.nr_regions):
        place = slice(region * 4 << 9, (region + 1) * 4 << 9)
        assert region in dirty or one[place] == two[place], f"region {region} is clean and differs"


@pytest.mark.parametrize("target", ["mirror", "early-clean"])
def test_a_region_that_is_clean_before_its_legs(crash_explorer: Explore, target: str) -> None:
    disks = {"one": SECTORS, "two": SECTORS, "log": 8}
    words = write_to_a_mirror(target), clean_regions_agree, disks
    explore_one(crash_explorer, target == "mirror", "is clean and differs", *words)


# What shows without a power cut is found by playing histories on two engines.


@pytest.mark.parametrize(
    ("target", "bug"), [("snapshot-merge", "deaf-merge"), ("snapshot-origin", "wide-origin")]
)
def test_a_workload_finds_what_two_engines_differ_in(
    workload: Workloads, target: str, bug: str
) -> None:
    """Seed 6 is the first that finds them, to save time."""
    with pytest.raises(DifferenceError) as found:
        workload(range(6, 60), patience=1, instead={target: bug})
    (note,) = found.value.__notes__
    assert "this history alone: DMCOPY_SEED=" in note


def test_the_same_target_twice_makes_no_difference(workload: Workloads) -> None:
    assert workload([6]) == workload([3], depth=8, length=5) == 1
