"""Devices of the userspace engine that are above each other: by what they are, not by name."""

from __future__ import annotations

import contextlib
import errno
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from dmcopy.errors import BusyError, DeadlineError, DeviceError, UsageError
from dmcopy.io import IoRegion, Reactor
from dmcopy.io.request import Io, Memory, Op
from dmcopy.io.simulated import SimulatedBackend, SimulatedDisk
from dmcopy.ledger import Ledger
from dmcopy.mapper import engines
from dmcopy.mapper.base import Mapper
from dmcopy.mapper.mapped import MappedDevice
from dmcopy.mapper.userspace import UserMapper
from dmcopy.table import Table
from dmcopy.targets.origin import SnapshotModule

DISKS = "12"
NAMES = "abcde"
SEEDS, STEPS = 40, 100
LINE = 8  # sectors


class Disk(SimulatedDisk):
    """A disk that is full of its own letter, and knows whether it is open."""

    def __init__(self, name: str) -> None:
        super().__init__(64, name)
        self.load(name.encode() * (64 << 9))
        self.is_open = False

    def close(self) -> None:
        assert self.is_open
        self.is_open = False


class Disks:
    """Opens disks for an engine, each only once."""

    def __init__(self) -> None:
        self.disks = {name: Disk(name) for name in DISKS}

    def open(self, path: str, write: bool) -> Disk:
        if path not in self.disks:
            raise DeviceError(path, "open it", errno.ENOENT)
        disk = self.disks[path]
        assert write
        assert not disk.is_open
        disk.is_open = True
        return disk


@dataclass(eq=False)
class Model:
    """A device as it should be. Tables: what is below each line, a disk's name or a device."""

    name: str
    uuid: str = ""
    live: list[str | Model] | None = None
    loaded: list[str | Model] | None = None
    live_readonly: bool = False
    loaded_readonly: bool = False
    suspended: bool = True
    deferred: bool = False
    events: int = 0

    @property
    def below(self) -> list[Model]:
        lines = [*(self.live or []), *(self.loaded or [])]
        return [one for one in lines if isinstance(one, Model)]

    def leads_to(self, other: Model) -> bool:
        return self is other or any(one.leads_to(other) for one in self.below)

    @property
    def runs(self) -> bool:
        """Whether a read of it ends."""
        devices = [one for one in self.live or [] if isinstance(one, Model)]
        return not self.suspended and self.live is not None and all(one.runs for one in devices)

    def content(self, line: int) -> str:
        assert self.live is not None
        below = self.live[line]
        return below.content(0) if isinstance(below, Model) else below


def errno_of(action: Callable[[], object]) -> int:
    try:
        action()
    except DeviceError as error:
        return error.errno
    except BusyError:
        return errno.EBUSY
    return 0


class Stacks:
    """Every public operation that changes devices, in any order, beside a model of objects."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.history: list[str] = []
        self.disks = Disks()
        self.reactor = Reactor(SimulatedBackend(1), stacked=True)
        self.mapper: Mapper = UserMapper(self.reactor, open_device=self.disks.open, timeout=1)
        self.models: dict[str, Model] = {}
        self.nodes = "/dev/mapper"
        self.place = ""

    def step(self) -> None:
        """Do something, mostly to a device that is there; then everything is looked at."""
        rng = self.rng
        name = self._name()
        choices: list[tuple[Callable[..., None], tuple[object, ...]]] = [
            (self.create, (rng.choice(NAMES), rng.choice(("", "", "U", "V")))),
            (self.load, (name, self._lines(), rng.random() < 0.3)),
            (self.load, (name, self._lines(), rng.random() < 0.3)),
            (self.resume, (name,)),
            (self.resume, (name,)),
            (self.rename, (name, rng.choice(NAMES))),
            (self.suspend, (name, rng.random() < 0.5)),
            (self.clear, (name,)),
            (self.set_uuid, (name, rng.choice(("U", "V")))),
            (self.remove, (name, rng.random() < 0.7)),
        ]
        action, arguments = rng.choice(choices)
        self.history.append(f"{action.__name__} {arguments}")
        action(*arguments)
        self.look()

    def _name(self) -> str:
        there = sorted(self.models)
        return self.rng.choice(there if there and self.rng.random() < 0.9 else NAMES)

    def _lines(self) -> list[str]:
        count = self.rng.randint(1, 3)
        return [self.rng.choice((self._name(), *DISKS)) for _ in range(count)]

    def close(self) -> None:
        """Close the engine, whatever there is; nothing may stay open."""
        self.mapper.close()
        assert self.mapper.ls() == []
        assert not any(disk.is_open for disk in self.disks.disks.values())
        self.reactor.close()

    def create(self, name: str, uuid: str) -> None:
        taken = name in self.models or self._has_uuid(uuid)
        found = errno_of(lambda: self.mapper.create(name, uuid=uuid))
        assert found == (errno.EBUSY if taken else 0)
        if not taken:
            self.models[name] = Model(name, uuid)

    def load(self, name: str, below: list[str], readonly: bool) -> None:
        lines = [self.models.get(word, word) for word in below]
        paths = (self.path(one) if isinstance(one, Model) or one in DISKS else f"/dev/mapper/{one}"
                 for one in lines)  # fmt: skip
        table = Table.parse("\n".join(
            f"{number * LINE} {LINE} linear {word} 0" for number, word in enumerate(paths)
        ))  # fmt: skip
        found = errno_of(lambda: self.mapper.load(name, table, readonly=readonly))
        expected = self._load_error(name, lines)
        assert found == expected
        if not expected:
            model = self.models[name]
            model.loaded, model.loaded_readonly = lines, readonly
        self._let_go()

    def _load_error(self, name: str, lines: list[str | Model]) -> int:
        model = self.models.get(name)
        if model is None:
            return errno.ENXIO
        for one in lines:
            if isinstance(one, Model):
                if one.leads_to(model):
                    return errno.EINVAL
            elif one not in DISKS:
                return errno.ENOENT
        too_small = any(isinstance(one, Model) and one.live is None for one in lines)
        return errno.EINVAL if too_small else 0

    def clear(self, name: str) -> None:
        model = self._do(self.mapper.clear, name)
        if model is not None:
            model.loaded = None
        self._let_go()

    def suspend(self, name: str, flush: bool) -> None:
        model = self.models.get(name)
        if model is not None and model.live is not None and not model.runs:
            return
        model = self._do(lambda name: self.mapper.suspend(name, flush=flush), name)
        if model is not None:
            model.suspended = True

    def resume(self, name: str) -> None:
        model = self.models.get(name)
        found = errno_of(lambda: self.mapper.resume(name))
        if model is None:
            assert found == errno.ENXIO
        elif model.live is None and model.loaded is None:
            assert found == errno.EINVAL
        else:
            assert not found
            if model.loaded is not None:
                model.live, model.loaded = model.loaded, None
                model.live_readonly = model.loaded_readonly
            model.suspended = False
        self._let_go()

    def rename(self, name: str, new: str) -> None:
        model = self.models.get(name)
        found = errno_of(lambda: self.mapper.rename(name, new))
        if model is None:
            assert found == errno.ENXIO
        elif new in self.models:
            assert found == errno.EBUSY
        else:
            assert not found
            self.models[new] = self.models.pop(name)
            model.name = new
            model.events += model.live is not None

    def set_uuid(self, name: str, uuid: str) -> None:
        model = self.models.get(name)
        found = errno_of(lambda: self.mapper.set_uuid(name, uuid))
        if model is None:
            assert found == errno.ENXIO
        elif self._has_uuid(uuid):
            assert found == errno.EBUSY
        elif model.uuid:
            assert found == errno.EINVAL
        else:
            assert not found
            model.uuid = uuid
            model.events += model.live is not None

    def remove(self, name: str, deferred: bool) -> None:
        model = self.models.get(name)
        found = errno_of(lambda: self.mapper.remove(name, deferred=deferred))
        if model is None:
            assert found == errno.ENXIO
        elif self._users(model):
            assert found == (0 if deferred else errno.EBUSY)
            model.deferred |= deferred
        else:
            assert not found
            del self.models[name]
        self._let_go()

    def look(self) -> None:
        """Check that everything is as it should be."""
        assert [info.name for info in self.mapper.ls()] == sorted(self.models)
        for name, model in self.models.items():
            info = self.mapper.info(name)
            assert (info.uuid, info.events) == (model.uuid, model.events)
            assert info.open_count == len(self._users(model))
            assert (info.live, info.inactive) == (model.live is not None, model.loaded is not None)
            assert info.suspended == model.suspended
            assert info.readonly == (model.live is not None and model.live_readonly)
            assert self.mapper.table(name) == self.words(model.live)
            assert self.mapper.table(name, inactive=True) == self.words(model.loaded)
            assert self.mapper.deps(name) == tuple(dict.fromkeys(map(self.path, model.live or [])))
            if model.runs:
                for line in range(len(model.live or [])):
                    assert self.read(name, line * LINE).decode() == model.content(line) * 512

    def read(self, name: str, sector: int) -> bytes:
        return self.mapper.open(name).read(sector, 1)

    def words(self, lines: list[str | Model] | None) -> Table:
        """Return the table that should be seen, with the names that the devices have now."""
        text = (
            f"{number * LINE} {LINE} linear {self.path(below)} 0"
            for number, below in enumerate(lines or [])
        )
        return Table.parse("\n".join(text)) if lines else Table(())

    def path(self, below: str | Model) -> str:
        return f"{self.nodes}/{below.name}" if isinstance(below, Model) else self.place + below

    def _do(self, action: Callable[[str], object], name: str) -> Model | None:
        """Do what only a device that is not there refuses; return its model."""
        model = self.models.get(name)
        assert errno_of(lambda: action(name)) == (errno.ENXIO if model is None else 0)
        return model

    def _has_uuid(self, uuid: str) -> bool:
        return bool(uuid) and uuid in {model.uuid for model in self.models.values()}

    def _users(self, model: Model) -> list[Model]:
        return [one for one in self.models.values() if model in one.below]

    def _let_go(self) -> None:
        """Remove the devices whose removal was deferred and that are not in use any more."""
        while free := [
            one for one in self.models.values() if one.deferred and not self._users(one)
        ]:
            for one in free:
                del self.models[one.name]


@pytest.mark.parametrize("first", range(0, SEEDS, 10))
def test_stacks_of_devices(first: int) -> None:
    forced = os.environ.get("DMCOPY_SEED")
    for seed in [int(forced)] if forced else range(first, first + 10):
        stacks = Stacks(seed)
        try:
            for _ in range(STEPS):
                stacks.step()
            stacks.close()
        except BaseException as error:
            error.add_note("\n".join([f"replay with DMCOPY_SEED={seed}", *stacks.history]))
            raise


@dataclass
class Bench:
    """An engine over disks 1 and 2."""

    disks: Disks = field(default_factory=Disks)

    def __post_init__(self) -> None:
        self.reactor = Reactor(SimulatedBackend(1), stacked=True)
        self.mapper = UserMapper(self.reactor, open_device=self.disks.open, timeout=1)

    def make(self, name: str, text: str) -> None:
        self.mapper.create(name, Table.parse(text))

    def begin(self, op: Op, device: MappedDevice) -> list[Io]:
        """Begin a request; return the list that it is in when it has ended."""
        done: list[Io] = []
        self.reactor.submit(Io(op, IoRegion(device, 0, 1), Memory(1), [(0, 512)], done.append))
        return done


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    with made.reactor:
        yield made


def test_what_cannot_be_removed_keeps_nothing_else(bench: Bench) -> None:
    """A read waits for `low`, which is suspended: `top` cannot go, nor what is below it."""
    bench.make("low", "0 8 linear 1 0")
    bench.make("top", "0 8 linear /dev/mapper/low 0")
    bench.make("other", "0 8 linear 2 0")
    bench.mapper.suspend("low")
    done = bench.begin(Op.READ, bench.mapper.open("top"))
    with pytest.raises(DeadlineError, match="the I/O in flight on top"):
        bench.mapper.close()
    assert [info.name for info in bench.mapper.ls()] == ["low", "top"]
    assert not done
    bench.mapper.resume("low")
    bench.mapper.close()
    assert done
    assert bench.mapper.ls() == []


def test_an_engine_that_could_not_be_closed_works(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"1" * (8 << 9))
    mapper = UserMapper(timeout=0.1)
    mapper.create("low", Table.parse(f"0 8 linear {image} 0"))
    mapper.create("top", Table.parse("0 8 linear /dev/mapper/low 0"))
    mapper.suspend("low")
    with pytest.raises(DeadlineError):
        mapper.open("top").read(0, 1)
    with pytest.raises(DeadlineError, match="the I/O in flight on top"):
        mapper.close()
    mapper.resume("low")
    assert mapper.open("top").read(0, 1) == b"1" * 512
    mapper.close()


def test_what_went_wrong_before_is_not_hidden_by_what_then_cannot_be_removed(bench: Bench) -> None:
    bench.make("d", "0 8 linear 1 0")
    bench.make("top", "0 8 linear /dev/mapper/d 0")
    bench.mapper.suspend("d")
    bench.begin(Op.READ, bench.mapper.open("top"))
    with pytest.raises(UsageError, match="first") as caught, bench.mapper:
        raise UsageError("first")
    assert "the I/O in flight on top" in caught.value.__notes__[0]
    bench.mapper.resume("d")
    bench.mapper.close()
    bench.mapper.close()  # which does nothing


def test_the_handle_of_a_device_that_is_gone_reaches_nothing(bench: Bench) -> None:
    bench.make("one", "0 8 linear 1 0")
    bench.make("two", "0 8 linear 1 8")  # keeps the disk open
    device = bench.mapper.open("one")
    bench.mapper.remove("one")
    for op in (Op.READ, Op.WRITE):
        done = bench.begin(op, device)
        bench.reactor.run_until(lambda: done, 1, op.name)  # noqa: B023 - ends before
        assert done[0].error == errno.EIO
    assert bench.disks.disks["1"].read(0, 1) == b"1" * 512
    bench.mapper.close()


def test_whoever_is_in_the_way_is_named_as_it_is_called_now(bench: Bench) -> None:
    bench.make("low", "0 8 linear 1 0")
    bench.make("top", "0 8 linear /dev/mapper/low 0")
    bench.mapper.rename("top", "upper")
    with pytest.raises(BusyError, match="the mapped device upper"):
        bench.mapper.remove("low")
    bench.mapper.close()


@pytest.mark.parametrize("top", ["a", "b", "c"])
def test_a_ring_is_refused_and_everything_stays(bench: Bench, top: str) -> None:
    bench.make("a", "0 8 linear 1 0")
    bench.make("b", "0 8 linear /dev/mapper/a 0")
    bench.make("c", "0 8 linear /dev/mapper/b 0")
    hint = "it is a itself" if top == "a" else "it is above a"
    with pytest.raises(DeviceError, match=hint) as caught:
        bench.mapper.load("a", Table.parse(f"0 8 linear /dev/mapper/{top} 0"))
    assert caught.value.errno == errno.EINVAL
    assert not bench.mapper.info("a").inactive
    assert bench.mapper.open("c").read(0, 1) == b"1" * 512
    bench.mapper.close()


def test_a_status_line_follows_a_rename(bench: Bench) -> None:
    for name, disk in (("a", 1), ("b", 2)):
        bench.make(name, f"0 16 linear {disk} 0")
    bench.make("log", "0 16 linear 1 16")
    legs = "2 /dev/mapper/a 0 /dev/mapper/b 0"
    bench.make("m", f"0 16 mirror disk 3 /dev/mapper/log 8 nosync {legs}")
    for name in ("a", "log"):
        bench.mapper.rename(name, f"old-{name}")
    status = "2 /dev/mapper/old-a /dev/mapper/b 2/2 1 AA 3 disk /dev/mapper/old-log A"
    assert str(bench.mapper.status("m")[0]) == f"0 16 mirror {status}"
    bench.mapper.close()


def test_a_file_is_itself_and_not_its_name(tmp_path: Path) -> None:
    """The one that a table has open stays below it; a new one at its path is another."""
    image, link = tmp_path / "image", tmp_path / "link"
    image.write_bytes(b"1" * (8 << 9))
    link.hardlink_to(image)
    new = tmp_path / "new"
    new.write_bytes(b"2" * (8 << 9))
    with UserMapper() as mapper:
        mapper.create("one", Table.parse(f"0 8 linear {image} 0"))
        mapper.create("same", Table.parse(f"0 8 linear {link} 0"))
        os.replace(new, image)
        mapper.create("two", Table.parse(f"0 8 linear {image} 0"))
        read = [mapper.open(name).read(0, 1)[:1] for name in ("one", "same", "two")]
    assert read == [b"1", b"1", b"2"]


def test_a_handle_goes_with_a_rename(bench: Bench) -> None:
    handle = bench.mapper.create("one", Table.parse("0 8 linear 1 0"))
    handle.rename("old")
    bench.make("one", "0 8 linear 2 0")
    assert (handle.path, handle.table) == ("/dev/mapper/old", Table.parse("0 8 linear 1 0"))
    handle.remove()
    assert [info.name for info in bench.mapper.ls()] == ["one"]
    bench.mapper.close()


def test_a_file_becomes_one_loop_device_by_whatever_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else an origin and its snapshot, written differently, would be on two devices."""
    image, link = tmp_path / "image", tmp_path / "link"
    image.write_bytes(bytes(4096))
    link.symlink_to(image)
    made: list[str] = []

    @contextlib.contextmanager
    def loop_device(path: str, **_: object) -> Iterator[SimpleNamespace]:
        made.append(path)
        yield SimpleNamespace(path=f"/dev/loop{len(made)}")

    monkeypatch.setattr(engines, "loop_device", loop_device)
    with engines.engine("kernel", ledger=Ledger(tmp_path / "ledger")) as engine:
        words = [str(image), str(link), f"{tmp_path}/./image", str(image)]
        assert [engine.lower(word) for word in words] == ["/dev/loop1"] * 4
    assert made == [str(image)]


MIRRORS = """0 8 snapshot-origin 1
8 24 mirror core 1 8 2 1 16 2 16
32 8 mirror disk 2 /dev/mapper/slow 8 2 1 56 2 56"""


def hosts(bench: Bench) -> int:
    """Return how many devices take part as an origin's."""
    return sum(len(one.hosts) for one in bench.mapper.module(SnapshotModule).origins.values())


def test_a_resume_that_fails_leaves_no_target_running(bench: Bench) -> None:
    bench.make("slow", "0 16 linear 2 0")
    bench.mapper.suspend("slow")
    bench.mapper.create("d")
    bench.mapper.load("d", Table.parse(MIRRORS))
    with pytest.raises(DeadlineError, match="the log of d"):
        bench.mapper.resume("d")
    assert bench.mapper.info("d").suspended
    assert hosts(bench) == 0
    bench.mapper.resume("slow")
    bench.mapper.resume("d")
    assert hosts(bench) == 1
    bench.mapper.close()
    assert hosts(bench) == 0


def test_a_suspend_that_fails_stops_no_target(bench: Bench) -> None:
    bench.make("slow", "0 8 linear 2 40")
    bench.mapper.suspend("slow")
    bench.make(
        "d", "0 24 mirror core 1 8 2 1 16 2 16\n24 8 mirror core 1 8 2 1 40 /dev/mapper/slow 0"
    )
    with pytest.raises(DeadlineError, match="the recovery of a region of d"):
        bench.mapper.suspend("d", flush=False)
    assert not bench.mapper.open("d").noflush
    in_sync = "2 1 2 3/3 1 AA 1 core"
    bench.reactor.run_until(
        lambda: str(bench.mapper.status("d")[0].status) == in_sync,
        10,
        "the mirror that can continue",
    )
    bench.mapper.resume("slow")
    bench.mapper.close()


def test_what_never_had_a_table_is_left_as_it_is() -> None:
    """It is suspended from the beginning, and cannot be resumed."""
    with UserMapper() as mapper:
        mapper.create("d")
        mapper.load("d", Table.parse("0 8 zero"))
        mapper.thaw("d")
        info = mapper.info("d")
        assert (info.live, info.inactive) == (False, False)


def test_a_file_that_has_grown_is_longer_in_the_next_table(tmp_path: Path) -> None:
    """Also while another table has it open."""
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(4096))
    with UserMapper() as mapper:
        device = mapper.create("x", Table.parse(f"0 8 linear {disk} 0"))
        with pytest.raises(DeviceError, match="too small"):
            device.load(Table.parse(f"0 16 linear {disk} 0"))
        os.truncate(disk, 8192)
        device.load(Table.parse(f"0 16 linear {disk} 0"))
        device.resume()
        assert mapper.open("x").sectors == 16
