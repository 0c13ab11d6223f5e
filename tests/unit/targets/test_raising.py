"""A callback of a target that raises, whichever it is: no bio is left waiting."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import pytest

from dmcopy.errors import ClosedError, DeviceError
from dmcopy.io import IoRegion, parts
from dmcopy.io.request import Io, Memory, Op
from dmcopy.io.simulated import SimulatedDisk
from dmcopy.kcopyd import Client
from dmcopy.table import Table
from dmcopy.targets import TARGETS
from dmcopy.targets.guard import FailedTarget, Guard
from dmcopy.targets.mirror_set import Module
from dmcopy.targets.origin import SnapshotModule

from .conftest import Engine, four_disks

SECTORS = 256
DEADLINE = 1000.0


class BugError(Exception):
    """What the callbacks here raise."""


class Countdown:
    """Has callback number `at` of all targets raise: in place of what it does, or behind that."""

    def __init__(self, at: int, *, behind: bool) -> None:
        self.left = at
        self._behind = behind

    def call(self, notify: Callable[..., Any], *args: Any) -> Any:
        self.left -= 1
        if self.left:
            return notify(*args)
        if self._behind:
            notify(*args)
        raise BugError


@contextmanager
def counted(countdown: Countdown) -> Iterator[None]:
    """Count what the reactor, kcopyd, other tables and the ends of bios call in targets."""
    call, copy = Guard.call, Client.copy_chunk

    def call_guarded(guard: Guard, notify: Any, *args: Any) -> Any:
        if is_a_targets(notify):
            notify = partial(countdown.call, notify)
        return call(guard, notify, *args)

    def copy_chunk(client: Client, *args: Any, **flags: Any) -> Any:
        source, dests, notify, *context = args
        return copy(client, source, dests, partial(countdown.call, notify), *context, **flags)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Guard, "call", call_guarded)
        patch.setattr(Client, "copy_chunk", copy_chunk)
        for cls in TARGETS.values():
            if cls.wants_end_io:
                patch.setattr(cls, "end_io", counted_method(countdown, cls.end_io))
        yield


def is_a_targets(function: Any) -> bool:
    """Whether it is a target's own, be it called when several requests have ended."""
    while True:
        if isinstance(function, partial):
            function = function.func
        elif isinstance(getattr(function, "__self__", None), parts.Countdown):
            function = function.__self__._notify
        else:
            return (function.__module__ or "").startswith("dmcopy.targets.")


def counted_method(countdown: Countdown, method: Any) -> Any:
    return lambda *args: countdown.call(method, *args)


class Load:
    """Requests, and how each of them has ended."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.memory = Memory(8)
        self.started: list[Io] = []
        self.ended: list[Io] = []

    def start(self, name: str, op: Op, sector: int, count: int, *, fua: bool = False) -> Io:
        size = count << 9 if op <= Op.WRITE else 0
        region = IoRegion(self.engine.mapper.open(name), sector, count)
        request = Io(
            op, region, self.memory, [(0, size)] if size else [], self.ended.append, fua=fua
        )
        self.started.append(request)
        self.engine.mapper.reactor.submit(request)
        return request

    def wait(self) -> None:
        reactor = self.engine.mapper.reactor
        reactor.run_until(lambda: len(self.ended) >= len(self.started), DEADLINE, "every request")


def snapshots(engine: Engine, load: Load) -> Iterator[None]:
    """Two snapshots of an origin, written on all sides."""
    engine.mapper.module(SnapshotModule).cow_threshold = 2
    engine.make("p", "0 256 snapshot a b P 8")
    engine.make("n", "0 256 snapshot a c N 16")
    engine.make("o", "0 256 snapshot-origin a")
    yield
    for place in range(0, 64, 8):
        load.start("o", Op.WRITE, place, 4)
    load.start("p", Op.WRITE, 68, 2)
    load.start("p", Op.WRITE, 64, 8)
    load.start("p", Op.READ, 40, 8)
    load.start("n", Op.WRITE, 136, 3)
    load.start("n", Op.READ, 0, 32)
    load.start("p", Op.FLUSH, 0, 0)
    load.wait()
    load.start("o", Op.WRITE, 136, 16)
    load.start("o", Op.WRITE, 0, 8)


def full(engine: Engine, load: Load) -> Iterator[None]:
    """A snapshot whose COW is too small."""
    engine.make("cow", "0 40 linear b 0")
    engine.make("p", "0 256 snapshot a /dev/mapper/cow P 8")
    engine.make("n", "0 256 snapshot a c N 8")
    engine.make("o", "0 256 snapshot-origin a")
    yield
    for place in range(0, 40, 8):
        load.start("o", Op.WRITE, place, 4)
        load.start("n", Op.WRITE, place + 100, 1)


def merge(engine: Engine, load: Load) -> Iterator[None]:
    """A snapshot that merges, another one of the origin, and writes meanwhile."""
    engine.make("p", "0 256 snapshot a b P 8")
    engine.make("n", "0 256 snapshot a c N 8")
    for place in range(0, 96, 24):
        load.start("p", Op.WRITE, place, 8)
    load.wait()
    engine.mapper.suspend("p")
    engine.make("m", "0 256 snapshot-merge a b P 8")
    yield
    for place in range(0, 96, 8):
        load.start("m", Op.WRITE if place % 3 else Op.READ, place, 3)
    load.start("n", Op.READ, 8, 64)
    load.start("m", Op.FLUSH, 0, 0)
    load.wait()
    engine.mapper.sleep(60)
    assert engine.status("m") in ("16/256 16", "Merge failed"), "it waits for another snapshot"


def mirror(log: str, features: str, recovery: Any, engine: Engine, load: Load) -> Iterator[None]:
    """A mirror that is recovered and written, then fails at a leg."""
    engine.mapper.module(Module).recovery = recovery
    engine.make("m", f"0 80 mirror {log} 2 a 0 b 0 {features}")
    yield
    for place in range(0, 80, 24):
        load.start("m", Op.WRITE, place, 8)
        load.start("m", Op.READ, place + 8, 8)
    load.start("m", Op.FLUSH, 0, 0)
    load.start("m", Op.DISCARD, 32, 48)
    load.wait()
    engine.disks["b"].fail(Op.WRITE, 0, SECTORS)
    load.start("m", Op.WRITE, 0, 8)
    load.start("m", Op.WRITE, 64, 8)
    cycle(engine, flush=False)
    load.start("m", Op.READ, 0, 32)
    cycle(engine, flush=True)  # what is held ends


def cycle(engine: Engine, *, flush: bool) -> None:
    engine.mapper.suspend("m", flush=flush)
    with suppress(ClosedError):  # it cannot, when its callback raises just then
        engine.mapper.resume("m")
    engine.mapper.resume("m")


def others(engine: Engine, load: Load) -> Iterator[None]:
    """Targets with work of their own."""
    engine.make("d", "0 128 delay a 0 5 a 0 9\n128 128 log-writes b c")
    yield
    for place in range(107, 150, 7):
        load.start("d", Op.READ, place, 1)
        load.start("d", Op.WRITE, place, 3, fua=place % 2 > 0)
    load.start("d", Op.FLUSH, 0, 0)
    load.wait()
    load.start("d", Op.WRITE, 10, 3)
    load.start("d", Op.WRITE, 140, 3)
    with suppress(DeviceError):
        engine.mapper.message("d", "mark", "here", sector=200)


Scenario = Callable[[Engine, Load], Iterator[None]]
SCENARIOS: dict[str, Scenario] = {
    "snapshots": snapshots,
    "a full COW": full,
    "merge": merge,
    "core mirror": partial(mirror, "core 1 16", "", "several"),
    "disk mirror": partial(mirror, "disk 2 c 16", "1 handle_errors", "kernel"),
    "disk mirror that keeps its log": partial(
        mirror, "disk 3 c 16 sync", "2 handle_errors keep_log", "several"
    ),
    "others": others,
}


def play(scenario: Scenario, countdown: Countdown) -> None:
    """Play a scenario in which a callback raises, and hold that everything ends, once."""
    engine, told = Engine(*four_disks(SECTORS)), list[Exception]()
    engine.disks["a"].load(b"old." * (SECTORS << 7))
    engine.mapper.reactor.on_exception = told.append
    load = Load(engine)
    with engine.mapper.reactor:
        steps = scenario(engine, load)
        next(steps)
        with counted(countdown):
            next(steps, None)
            load.wait()
            failed = has_failed(engine)
            engine.mapper.close()
    assert sorted(map(id, load.ended)) == sorted(map(id, load.started)), "each ends, once"
    assert {request.error for request in load.ended} <= {0, errno.EIO, errno.EOPNOTSUPP}
    for request in load.ended:
        assert not request.error or request.op == Op.DISCARD or failed[request.device.path[-1]]
    assert [type(error) for error in told] == [BugError] * (countdown.left <= 0)
    if scenario is snapshots:
        hold_snapshot(engine.disks)


def has_failed(engine: Engine) -> dict[str, bool]:
    """Return which devices have failed, or say of themselves that they have."""
    found = {}
    for info in engine.mapper.ls():
        table = engine.mapper.open(info.name).active
        assert table is not None
        says_so = engine.status(info.name) == "Invalid" or bool(engine.disks["b"].faults)
        found[info.name] = says_so or isinstance(table.targets[0], FailedTarget)
    return found


def hold_snapshot(disks: dict[str, SimulatedDisk]) -> None:
    """Whatever the origin has been written, the store says that it is lost, or it is good."""
    engine = Engine(*four_disks(SECTORS))
    engine.disks = disks
    with engine.mapper.reactor, engine.mapper:
        engine.make("p", "0 256 snapshot a b P 8")
        if engine.status("p") != "Invalid":
            load = Load(engine)
            read = load.start("p", Op.READ, 0, 64)
            load.wait()
            assert load.memory.read(read.extents) == b"old." * (64 << 7)


@pytest.mark.parametrize("behind", [False, True], ids=["in place", "behind"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_whichever_callback_raises_every_bio_ends(name: str, behind: bool) -> None:
    at = 0
    while True:
        at += 1
        countdown = Countdown(at, behind=behind)
        try:
            play(SCENARIOS[name], countdown)
        except BaseException as error:
            error.add_note(f"callback number {at} raised")
            raise
        if countdown.left > 0:
            break
    assert at > 10


@pytest.fixture
def told(engine: Engine) -> list[Exception]:
    found: list[Exception] = []
    engine.mapper.reactor.on_exception = found.append
    return found


DEVICES = [
    ("0 256 snapshot a b P 8", "Invalid"),
    ("0 256 snapshot a b N 8", "Invalid"),
    ("0 256 snapshot a b po 0", "Invalid"),
    ("0 256 snapshot-merge a b P 8", "Merge failed"),
    ("0 256 snapshot-origin a", ""),
    ("0 256 mirror core 2 16 nosync 2 a 0 b 0", "2 a b 16/16 1 DD 1 core"),
    ("0 256 delay a 0 5", "1 0 0"),
    ("0 256 log-writes a b", "0 0 logging_disabled"),
    ("0 256 linear a 0", ""),
]


@pytest.mark.parametrize(("text", "status"), DEVICES)
def test_a_device_that_has_failed_says_so_until_it_gets_another_table(
    engine: Engine, told: list[Exception], text: str, status: str
) -> None:
    engine.make("x", text)
    load = Load(engine)
    reactor, events = engine.mapper.reactor, engine.mapper.info("x").events
    if "delay" in text:
        load.start("x", Op.READ, 0, 8)
    (target,) = engine.mapper.open("x").active.targets  # type: ignore[union-attr]
    table = engine.mapper.table("x")
    target.host.reactor.call_soon(lambda: [][0])
    reactor.step()
    assert (engine.status("x"), engine.mapper.table("x")) == (status, table)
    assert engine.mapper.info("x").events > events
    requests = [load.start("x", op, 0, 8 * (op != Op.FLUSH)) for op in list(Op)[:4]]
    load.wait()
    assert [request.error for request in requests] == [errno.EIO] * 4
    with pytest.raises(DeviceError, match="the target has failed; the device needs another table"):
        engine.mapper.message("x", "mark", "it")
    engine.mapper.load("x", Table.parse("0 256 linear a 0"))
    engine.mapper.resume("x")
    well = load.start("x", Op.WRITE, 0, 8)
    load.wait()
    assert not well.error
    assert [(type(error), error.__notes__) for error in told] == [
        (IndexError, ["a target of x raised it: all I/O of its table ends with EIO"])
    ]


@pytest.mark.parametrize("text", [text for text, _ in DEVICES])
def test_a_table_that_was_never_active_fails(
    engine: Engine, told: list[Exception], text: str
) -> None:
    """And leaves what is active alone, and nothing behind it."""
    engine.make("x", "0 256 linear d 0")
    engine.mapper.load("x", Table.parse(text))
    (target,) = engine.mapper._slots["x"].loaded.targets  # type: ignore[union-attr]
    target.host.reactor.call_soon(lambda: [][0])
    engine.mapper.reactor.step()
    load = Load(engine)
    well = load.start("x", Op.READ, 0, 8)
    load.wait()
    engine.mapper.clear("x")
    assert ([type(error) for error in told], well.error) == ([IndexError], 0)
    assert not engine.mapper.module(SnapshotModule).origins


def test_whose_fault_it_is_is_logged(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    engine.make("x", "0 64 delay a 0 5")
    engine.mapper.open("x").active.targets[0].host.reactor.call_soon(lambda: [][0])  # type: ignore[union-attr]
    engine.mapper.reactor.step()
    assert "a target of x raised it: all I/O of its table ends with EIO" in caplog.text
    assert "IndexError" in caplog.text


def test_every_line_of_a_table_fails(engine: Engine, told: list[Exception]) -> None:
    engine.make("x", "0 64 linear b 0\n64 64 zero\n128 128 delay a 0 5")
    load = Load(engine)
    whole = load.start("x", Op.READ, 0, 256)
    engine.mapper.open("x").active.targets[2].host.reactor.call_soon(lambda: [][0])  # type: ignore[union-attr]
    load.wait()
    parts = [load.start("x", Op.READ, place, 8) for place in (8, 60, 100, 200)]
    load.wait()
    assert [one.error for one in (*parts,)] == [errno.EIO] * 4
    assert whole.error in (0, errno.EIO)
    assert len(told) == 1
    assert [str(line.start) for line in engine.mapper.status("x")] == ["0", "64", "128"]


def test_an_opener_that_raises_is_not_the_targets_fault(
    engine: Engine, told: list[Exception]
) -> None:
    """The targets end bios in loops of theirs: the others of a loop must not suffer for it."""
    engine.make("p", "0 256 snapshot a b P 8")
    load = Load(engine)
    requests = [load.start("p", Op.WRITE, place, 1) for place in range(8)]
    requests[0].notify = lambda request: [load.ended.append(request), [][0]]
    load.wait()
    assert [request.error for request in requests] == [0] * 8
    assert engine.status("p") == "24/256 16"
    assert [type(error) for error in told] == [IndexError]
