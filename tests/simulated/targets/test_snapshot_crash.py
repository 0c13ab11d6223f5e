"""Power cuts at every step of snapshot histories, and bugs that they must find."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from dmcopy.errors import DmcopyError
from dmcopy.io import IoRegion, Reactor
from dmcopy.io.parts import FlushFirst
from dmcopy.io.request import Io, Op, Request
from dmcopy.io.simulated import Outcome, SimulatedBackend, SimulatedDisk
from dmcopy.mapper.userspace import UserMapper
from dmcopy.ondisk.exception_store import HEADER_BYTES, VERSION, AreaLayout, StoreHeader
from dmcopy.status import SnapshotStatus
from dmcopy.table import Table
from dmcopy.targets.merge import SnapshotMerge
from dmcopy.targets.persistent import PersistentStore
from dmcopy.targets.store import ignore
from tests.simulated.conftest import Seeds
from tests.simulated.targets.snapshots import CuttingBackend, History
from tests.simulated.targets.stores import Store, Stores


def test_no_power_cut_breaks_a_promise(seeds: Seeds) -> None:
    """Some 800 cuts a history: more than 20,000 in a normal run; tests/simulated/test_power.py."""
    for seed in seeds(26):
        assert History(seed).play()


def test_a_cow_that_is_full_harms_nobody_else(seeds: Seeds) -> None:
    for seed in seeds(20):
        assert History(seed, tight=True).play()


def test_a_store_is_what_an_engine_finds_each_time(
    seeds: Seeds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not loaded once more would be found as it is known."""
    remembered = Stores.load

    def load(self: Stores, table: Table, cow: Outcome, *args: Any) -> Store:
        store = remembered(self, table, cow, *args)
        asked.append(cow)
        if len(asked) % 4 == 0:
            assert store == remembered(Stores(), table, cow, *args)
        return store

    monkeypatch.setattr(Stores, "load", load)
    for seed in seeds(3):
        asked: list[Outcome] = []
        history = History(seed)
        history.play()
        assert 0 < history.stores.loads < len(asked) / 3


def test_a_disk_may_have_its_cache_switched_off_and_on(seeds: Seeds) -> None:
    """What is without a flush where there is no cache is with one as soon as there is one again."""
    for seed in seeds(6):
        assert History(seed, switching=True).play()


def test_a_commit_flushes_a_cow_that_has_a_cache_and_no_other() -> None:
    flushes: list[Io] = []

    class Counting(SimulatedBackend):
        def submit(self, request: Request) -> None:
            if request.op == Op.FLUSH:
                flushes.append(request)  # type: ignore[arg-type]  # it is no copy
            super().submit(request)

    disks = {name: SimulatedDisk(256, name) for name in ("origin", "cow")}
    with Reactor(Counting(), stacked=True) as reactor:
        mapper = UserMapper(reactor, open_device=lambda path, _write: disks[path])
        mapper.create("snap", Table.parse("0 256 snapshot origin cow P 8"))
        mapper.create("live", Table.parse("0 256 snapshot-origin origin"))
        live = mapper.open("live")
        for chunk, cached in enumerate((True, False, False, True, True)):
            disks["cow"].write_through = not cached
            flushes.clear()
            live.write(chunk * 8, bytes(512))
            assert [flush.device.path for flush in flushes] == ["cow"] * cached
        mapper.close()


def no_skip_after_reload(patch: pytest.MonkeyPatch) -> None:
    """next_free may land on an area after a reload (a kernel of 2009; data over metadata)."""
    patch.setattr(AreaLayout, "is_metadata", lambda _self, _chunk: False)


def no_flush_in_merge(patch: pytest.MonkeyPatch) -> None:
    """Exceptions are cleared before the merged data is durable (kernels before 5.11)."""

    async def flush(_self: Any) -> bool:
        return True

    patch.setattr(SnapshotMerge, "_flush", flush)


def header_in_the_buffer_of_the_area(patch: pytest.MonkeyPatch) -> None:
    """Invalidation races a commit for one buffer (61578dcd3faf; the header had chunk size 0)."""

    def invalidate(self: Any, notify: Callable[[], object]) -> None:
        self._busy += 1
        self._memory.view[:HEADER_BYTES] = StoreHeader(False, VERSION, self.chunk_size).build()

        def written(_io: Io) -> None:
            self._busy -= 1
            notify()

        region = IoRegion(self._cow, 0, 1)
        self._reactor.submit(Io(Op.WRITE, region, self._memory, [(0, 512)], written))

    patch.setattr(PersistentStore, "invalidate", invalidate)


def no_flush_before_the_area(patch: pytest.MonkeyPatch) -> None:
    """The area may be durable before the data that it names."""

    def start(self: Any) -> None:
        self._flushed(Io(Op.FLUSH, IoRegion(self._request.device, 0, 0)))

    patch.setattr(FlushFirst, "start", start)


def a_cache_that_is_asked_for_once(patch: pytest.MonkeyPatch) -> None:
    """A COW that had no cache when it was opened has one now."""
    start = FlushFirst.start

    def start_without(self: Any) -> None:
        with pytest.MonkeyPatch.context() as stale:
            stale.setattr(self._request.device, "write_through", True)
            start(self)

    patch.setattr(FlushFirst, "start", start_without)


def next_area_not_zeroed(patch: pytest.MonkeyPatch) -> None:
    """A reader of a full area continues into what was on the COW before."""
    write_batch = PersistentStore._write_batch

    def without_zeroing(self: Any) -> None:
        self._writing = True
        self._zeroed(0)

    assert write_batch is not None
    patch.setattr(PersistentStore, "_write_batch", without_zeroing)


def early_callback(patch: pytest.MonkeyPatch) -> None:
    """Writers proceed before the exception is durable."""
    commit, batch_written = PersistentStore.commit, PersistentStore._batch_written

    def early(self: Any, prepared: Any) -> None:
        self.on_committed((prepared,), not prepared.failed)
        commit(self, prepared)

    def without_telling(self: Any, error: int) -> None:
        with pytest.MonkeyPatch.context() as quiet:
            quiet.setattr(self, "on_committed", ignore)
            batch_written(self, error)

    patch.setattr(PersistentStore, "commit", early)
    patch.setattr(PersistentStore, "_batch_written", without_telling)


@pytest.mark.parametrize(
    ("mutate", "tight", "first_seed"),
    [
        (no_skip_after_reload, False, 20),
        (no_flush_in_merge, False, 0),
        (header_in_the_buffer_of_the_area, True, 39),
        (no_flush_before_the_area, False, 0),
        (a_cache_that_is_asked_for_once, False, 0),
        (next_area_not_zeroed, False, 2),
        (early_callback, False, 0),
    ],
)
def test_a_known_bug_is_found(
    mutate: Callable[[pytest.MonkeyPatch], None],
    tight: bool,
    first_seed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first seed is the first that finds it, to save time; the next ones find it as well."""
    mutate(monkeypatch)
    with pytest.raises((AssertionError, DmcopyError)):
        _play(range(first_seed, first_seed + 60), tight=tight)


def _play(seeds: Iterable[int], *, tight: bool) -> None:
    for seed in seeds:
        History(seed, tight=tight).play()


def test_a_store_in_the_making_is_new_or_empty(seeds: Seeds) -> None:
    """On a recycled COW: a power cut never leaves a header over an area of garbage."""
    for seed in seeds(200):
        rng = random.Random(seed)
        cow = SimulatedDisk(64, "cow")
        cow.load(bytes(512) + rng.randbytes(63 * 512))
        disks = {"cow": cow, "origin": SimulatedDisk(64, "origin")}
        backend = CuttingBackend(seed)
        cuts: list[SimulatedDisk] = []
        backend.on_step = lambda: cuts.append(backend.outcomes([cow], rng)[0].disk())  # noqa: B023
        with Reactor(backend, stacked=True) as reactor:
            mapper = UserMapper(reactor, open_device=lambda path, _write: disks[path])  # noqa: B023
            mapper.create("snap", Table.parse(f"0 64 snapshot origin cow P {2 ** (seed % 4)}"))
        assert len(cuts) > 3
        for left in cuts:
            assert _loads_empty(left), seed


def _loads_empty(cow: SimulatedDisk) -> bool:
    disks = {"cow": cow, "origin": SimulatedDisk(64, "origin")}
    with Reactor(SimulatedBackend(), stacked=True) as reactor:
        mapper = UserMapper(reactor, open_device=lambda path, _write: disks[path])
        mapper.create("snap", Table.parse("0 64 snapshot origin cow P 1"))
        status = mapper.status("snap")[0].status
        assert isinstance(status, SnapshotStatus)
        return status.empty
