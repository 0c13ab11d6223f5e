"""delay, on a virtual clock: who waits, for how long, where it goes, and what ends the wait."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dmcopy.errors import DeadlineError, UsageError
from dmcopy.io import IoRegion
from dmcopy.io.request import Io, Memory, Op
from dmcopy.io.simulated import SimulatedDisk
from dmcopy.table import Table

from .conftest import Engine

ALL = "0 64 delay a 0 1000"
TWO = "0 64 delay a 0 0 b 8 1000"
THREE = "0 64 delay a 0 100 b 8 1000 c 0 5000"


class DelayEngine(Engine):
    """A userspace engine over simulated disks a, b, c, with requests in flight."""

    def __init__(self) -> None:
        super().__init__(*(SimulatedDisk(256, name) for name in "abc"))
        self.ended: dict[Op, float] = {}

    def start(self, text: str, *ops: Op) -> float:
        """Make the device d, and begin an operation of each kind on its sector 4."""
        self.mapper.create("d", Table.parse(text))
        return self.send(*ops)

    def send(self, *ops: Op) -> float:
        device = self.mapper.open("d")
        memory = Memory(1)
        memory.view[:512] = b"x" * 512
        for op in ops:
            region = IoRegion(device, 4, 0 if op == Op.FLUSH else 1)
            extents = [(0, 512)] if op <= Op.WRITE else []
            self.reactor.submit(Io(op, region, memory, extents, self._end))
        return self.reactor.time()

    def _end(self, io: Io) -> None:
        assert not io.error
        self.ended[io.op] = self.reactor.time()

    def wait(self, *ops: Op) -> None:
        self.reactor.run_until(lambda: self.ended.keys() >= set(ops), 100)

    @property
    def says(self) -> str:
        return str(self.mapper.status("d")[0])


@pytest.fixture
def engine() -> Iterator[DelayEngine]:
    with DelayEngine() as made:
        yield made


@pytest.mark.parametrize(
    ("text", "waits"),
    [
        (ALL, {Op.READ: 1, Op.WRITE: 1, Op.FLUSH: 1, Op.DISCARD: 1}),
        (TWO, {Op.READ: 0, Op.WRITE: 1, Op.FLUSH: 1, Op.DISCARD: 1}),
        (THREE, {Op.READ: 0.1, Op.WRITE: 1, Op.FLUSH: 5, Op.DISCARD: 1}),
    ],
)
def test_each_kind_waits_as_long_as_its_class(
    engine: DelayEngine, text: str, waits: dict[Op, float]
) -> None:
    started = engine.start(text, *waits)
    engine.wait(*waits)
    for op, seconds in waits.items():
        assert engine.ended[op] - started == pytest.approx(seconds, abs=0.01)
        assert engine.ended[op] - started >= seconds
    assert engine.says == "0 64 delay 0 0 0"


def test_the_status_counts_what_waits(engine: DelayEngine) -> None:
    engine.start(THREE, Op.READ, Op.READ, Op.WRITE, Op.DISCARD, Op.FLUSH)
    assert engine.says == "0 64 delay 2 2 1"
    engine.wait(Op.READ)
    assert engine.says == "0 64 delay 0 2 1"
    engine.wait(Op.WRITE, Op.DISCARD)
    assert engine.says == "0 64 delay 0 0 1"
    engine.wait(Op.FLUSH)


def test_classes_have_devices_and_offsets(engine: DelayEngine) -> None:
    engine.disks["a"].write(4, b"a" * 512)
    engine.mapper.create("d", Table.parse(TWO))
    device = engine.mapper.open("d")
    device.write(4, b"b" * 512)
    device.flush()
    assert device.read(4, 1) == b"a" * 512
    assert engine.disks["b"].read(12, 1) == b"b" * 512
    assert engine.mapper.table("d") == Table.parse(TWO)
    assert engine.mapper.deps("d") == ("a", "b")


def test_a_line_in_the_middle_of_a_table(engine: DelayEngine) -> None:
    engine.mapper.create("d", Table.parse("0 8 zero\n8 8 delay a 0 10"))
    engine.mapper.open("d").write(12, b"m" * 512)
    assert engine.disks["a"].read(4, 1) == b"m" * 512


def test_later_bios_of_a_class_wait_in_turn(engine: DelayEngine) -> None:
    started = engine.start(ALL, Op.READ)
    with pytest.raises(DeadlineError):
        engine.reactor.run_until(lambda: engine.ended, 0.5)
    engine.send(Op.WRITE)
    engine.wait(Op.READ)
    assert engine.says == "0 64 delay 0 1 0"
    engine.wait(Op.WRITE)
    assert engine.ended[Op.READ] - started == pytest.approx(1, abs=0.01)
    assert engine.ended[Op.WRITE] - started == pytest.approx(1.5, abs=0.01)


def test_each_of_a_class_ends_in_its_own_turn(engine: DelayEngine) -> None:
    """The clock is set anew for the next one, and not for the one behind it."""
    began: list[float] = []
    ended: list[float] = []
    engine.start(ALL)
    for _ in range(4):
        region = IoRegion(engine.mapper.open("d"), 4, 1)
        io = Io(
            Op.READ, region, Memory(1), [(0, 512)], lambda _: ended.append(engine.reactor.time())
        )
        began.append(engine.reactor.time())
        engine.reactor.submit(io)
        engine.mapper.sleep(0.1)
    engine.reactor.run_until(lambda: len(ended) == 4, 100)
    assert [end - start for start, end in zip(began, ended, strict=True)] == pytest.approx(
        [1] * 4, abs=0.01
    )


def test_one_that_comes_when_nothing_waits_any_more_is_delayed_as_the_first(
    engine: DelayEngine,
) -> None:
    engine.start(ALL, Op.WRITE)
    engine.wait(Op.WRITE)
    again = engine.send(Op.DISCARD)  # of the same class
    engine.wait(Op.DISCARD)
    assert engine.ended[Op.DISCARD] - again == pytest.approx(1, abs=0.01)


def test_a_suspend_releases_everything_and_a_resume_delays_again(engine: DelayEngine) -> None:
    started = engine.start(ALL, Op.READ, Op.WRITE, Op.FLUSH)
    engine.mapper.suspend("d")
    assert engine.ended.keys() == {Op.READ, Op.WRITE, Op.FLUSH}
    assert engine.reactor.time() - started < 0.1
    assert engine.disks["a"].read(4, 1) == b"x" * 512
    engine.ended.clear()
    engine.mapper.resume("d")
    started = engine.send(Op.READ)
    engine.wait(Op.READ)
    assert engine.ended[Op.READ] - started >= 1


def test_a_removal_does_not_wait(engine: DelayEngine) -> None:
    started = engine.start(ALL, Op.WRITE)
    engine.mapper.remove("d")
    assert engine.ended
    assert engine.reactor.time() - started < 0.1


@pytest.mark.parametrize("words", ["a 0", "a 0 1 b 0", "a 0 1 b 0 1 c 0", "a 0 -1", "a 0 1 b 0 x"])
def test_what_is_no_delay(words: str) -> None:
    with pytest.raises(UsageError):
        Table.parse(f"0 64 delay {words}").check()


def test_each_class_must_fit_its_device(engine: DelayEngine) -> None:
    with pytest.raises(Exception, match="b too small for target: start=200, len=64, dev_size=256"):
        engine.mapper.create("d", Table.parse("0 64 delay a 0 1 b 200 1"))


def test_a_device_that_could_not_be_suspended_delays_again(engine: DelayEngine) -> None:
    engine.start(ALL, Op.READ)
    (target,) = engine.mapper.open("d").active.targets  # type: ignore[union-attr]
    target.presuspend()
    engine.wait(Op.READ)
    late = engine.send(Op.FLUSH)
    engine.wait(Op.FLUSH)
    assert engine.ended[Op.FLUSH] - late < 0.1, "it would hold up the suspend"
    target.presuspend_undo()
    began = engine.send(Op.WRITE)
    engine.wait(Op.WRITE)
    assert engine.ended[Op.READ] < 0.1
    assert engine.ended[Op.WRITE] - began >= 1
