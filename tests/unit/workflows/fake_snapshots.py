"""Origins and snapshots that hold data over the fake mapper.

A disk is a list of CHUNKS numbers. The device `user` is written to before every call, unless
it is suspended: a snapshot that misses a write, or has one too many, is found out.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

from dmcopy.block.holders import Holder
from dmcopy.errors import BusyError, DeadlineError, DeviceError
from dmcopy.ledger import Ledger
from dmcopy.status import Silent, SnapshotMergeStatus, SnapshotStatus, StatusLine
from dmcopy.table import Linear, Ratio, Snapshot, SnapshotMerge, SnapshotOrigin, Table
from dmcopy.workflows.journal import Journal
from dmcopy.workflows.machine import Machine, machine_of
from dmcopy.workflows.record import Plan
from dmcopy.workflows.session import Session
from dmcopy.workflows.snapshot import Growth, merge, plan_drop, plan_extend, plan_take
from dmcopy.workflows.snapshot_layout import SnapshotLayout

from .fake import FakeMapper, Mapped

CHUNK = 8
CHUNKS = 4
SECTORS = CHUNK * CHUNKS
COW_SECTORS = CHUNK * 8


class FakeSnapshots(FakeMapper):
    """See above."""

    def __init__(self) -> None:
        super().__init__()
        self.disks: dict[str, list[int]] = {}
        self.sizes: dict[str, int] = {}
        self.stores: dict[str, dict[int, int]] = {}
        self.lost: set[str] = set()
        self.unreadable: set[str] = set()
        self.loops: set[str] = set()
        self.content: dict[str, str] = {}
        self.expected: list[int] = []
        self.machine: FakeMachine

    # What a test does to it.

    def disk(self, path: str, sectors: int = SECTORS) -> str:
        self.disks[path] = [100 + chunk for chunk in range(CHUNKS)]
        self.sizes[path] = sectors
        return path

    def use(self, name: str) -> None:
        self.user = name
        self.expected = self.read(name)

    def restart(self) -> None:
        """All that is in memory is gone; what is on disks stays."""
        self.devices.clear()
        self.loops.clear()

    def tables(self) -> dict[str, str]:
        """Return all active tables, numbers replaced by names: what is left in the end."""
        names = {f"254:{mapped.number}": name for name, mapped in self.devices.items()}
        assert not any(mapped.suspended for mapped in self.devices.values())
        assert not any(mapped.inactive for mapped in self.devices.values())
        return {
            name: str((mapped.live or Table()).with_devices(lambda key: names.get(key, key)))
            for name, mapped in sorted(self.devices.items())
        }

    def read(self, name: str) -> list[int]:
        table = self.devices[name].live
        assert table is not None
        assert not self.devices[name].handed_over
        target = table.lines[0].target
        if isinstance(target, Snapshot):
            assert self._store(target.cow) not in self.lost
        below = self._content(target.devices[0])
        if isinstance(target, Snapshot | SnapshotMerge):
            for chunk, value in self.stores[self._store(target.cow)].items():
                below[chunk] = value
        return below

    def write_chunk(self, name: str, chunk: int, value: int) -> None:
        table = self.devices[name].live
        assert table is not None
        target = table.lines[0].target
        disk = self.disks[self._bottom(target.devices[0])]
        if isinstance(target, SnapshotOrigin | SnapshotMerge):
            self._copy_out(target.devices[0], chunk, disk[chunk])
        if isinstance(target, SnapshotMerge):
            self.stores[self._store(target.cow)].pop(chunk, None)
        disk[chunk] = value

    # What the mapper is asked.

    def status(self, name: str, *, flush: bool = True) -> tuple[StatusLine, ...]:
        del flush
        self.alive()
        table = self.get(name).live
        assert table is not None
        target = table.lines[0].target
        status: SnapshotStatus | Silent = Silent()
        if isinstance(target, Snapshot | SnapshotMerge):
            store = self._store(target.cow)
            kind = SnapshotMergeStatus if isinstance(target, SnapshotMerge) else SnapshotStatus
            used = 16 + CHUNK * len(self.stores.get(store, {}))
            cow = self.mapped(target.cow)
            total = cow.live.length if cow and cow.live else self.sizes.get(store, SECTORS)
            lost = store in self.lost
            status = kind("Invalid") if lost else kind("", Ratio(used, total), 16)
            if store in self.unreadable and isinstance(target, SnapshotMerge):
                status = kind("Merge failed")
        return (StatusLine(0, table.length, target.name, status),)

    def wait(self, name: str, event: int, *, timeout: float) -> int:
        del event
        self.alive()
        table = self.get(name).live
        target = table.lines[0].target if table else None
        if isinstance(target, SnapshotMerge):

            def merge_one() -> None:
                store = self.stores[self._store(target.cow)]
                if store:
                    chunk, value = store.popitem()
                    disk = self.disks[self._bottom(target.origin)]
                    self._copy_out(target.origin, chunk, disk[chunk])
                    disk[chunk] = value

            self.call("merge", merge_one)
        raise DeadlineError(f"nothing within {timeout} s")

    # How it works.

    def write(self) -> None:
        mapped = self.devices.get(self.user)
        if mapped is not None and not mapped.suspended and mapped.live is not None:
            self.written += 1
            chunk = self.written % CHUNKS
            self.write_chunk(self.user, chunk, 1000 + self.written)
            self.expected[chunk] = 1000 + self.written

    def _bottom(self, device: str) -> str:
        mapped = self.mapped(device)
        while mapped is not None:
            table = mapped.live or mapped.inactive
            assert table is not None
            device = table.lines[0].target.devices[0]
            mapped = self.mapped(device)
        return device.removeprefix("loop:")

    def _store(self, cow: str) -> str:
        return self._bottom(cow)

    def _content(self, device: str) -> list[int]:
        return list(self.disks[self._bottom(device)])

    def _copy_out(self, base: str, chunk: int, old: int) -> None:
        """Copy a chunk into every active snapshot of `base` that has it not."""
        for mapped in self.devices.values():
            target = mapped.live.lines[0].target if mapped.live else None
            if mapped.handed_over:
                continue
            if isinstance(target, Snapshot) and self._bottom(target.origin) == self._bottom(base):
                self.stores[self._store(target.cow)].setdefault(chunk, old)

    def _pairs(self, target: Snapshot | SnapshotMerge) -> list[Mapped]:
        """Return the devices with an active table over the same store."""
        return [
            mapped
            for mapped in self.devices.values()
            if mapped.live is not None
            and not mapped.handed_over
            and isinstance(other := mapped.live.lines[0].target, Snapshot | SnapshotMerge)
            and self._store(other.cow) == self._store(target.cow)
        ]

    def loaded(self, mapped: Mapped, table: Table) -> None:
        for device in table.devices:
            known = self.mapped(device) or device.removeprefix("loop:") in self.disks
            self.need(known, f"{mapped.name}: {device}", errno.ENODEV)
            assert not device.endswith(".img") or device.startswith("loop:"), device
            attached = device.removeprefix("loop:") in self.loops or not device.startswith("loop:")
            self.need(attached, device, errno.ENXIO)
        target = table.lines[0].target
        if isinstance(target, Snapshot | SnapshotMerge):
            self.stores.setdefault(self._store(target.cow), {})
            merging = [m for m in self._pairs(target) if isinstance(_target(m), SnapshotMerge)]
            if isinstance(target, SnapshotMerge) and merging:
                raise DeviceError(mapped.name, "load it", errno.EINVAL, "already merging")

    def paused(self, mapped: Mapped, *, flush: bool, lockfs: bool) -> None:
        del flush, lockfs
        if mapped.name == self.user:
            mapped.moments.append(self.read(mapped.name))

    def swapped(self, mapped: Mapped) -> None:
        assert mapped.inactive is not None
        target = mapped.inactive.lines[0].target
        if isinstance(target, Snapshot | SnapshotMerge):
            for other in self._pairs(target):
                if other is not mapped and not other.suspended:
                    raise DeviceError(mapped.name, "resume it", errno.EINVAL, "handover")
                other.handed_over = other is not mapped  # it is invalid from now on

    def resumed(self, mapped: Mapped) -> None:
        self._check_alone(mapped)

    def _check_alone(self, mapped: Mapped) -> None:
        """Two devices with one table, the origin and its hidden one, are never active together."""
        for other in self.devices.values():
            same = other is not mapped and other.live == mapped.live and not other.suspended
            assert not (same and isinstance(_target(mapped), Linear)), f"{mapped.name} {other.name}"


def _target(mapped: Mapped) -> object:
    assert mapped.live is not None
    return mapped.live.lines[0].target


class FakeMachine(Machine):
    """The disks of a fake mapper. Those whose name ends in .img are files."""

    def __init__(self, fake: FakeSnapshots, folder: Path) -> None:
        super().__init__(Ledger(folder / "ledger.jsonl"))
        self.fake = fake
        self.mounts: dict[str, list[str]] = {}
        self.blocks: dict[str, int] = {}
        self.tops: dict[str, set[str]] = {}

    def key(self, device: str) -> str:
        mapped = self.fake.mapped(device)
        return f"254:{mapped.number}" if mapped else device.removeprefix("loop:")

    def exists(self, device: str) -> bool:
        return device in self.fake.disks or self.fake.mapped(device) is not None

    def is_file(self, device: str) -> bool:
        return device.endswith(".img") and not device.startswith("loop:")

    def sectors(self, device: str) -> int:
        mapped = self.fake.mapped(device)
        if mapped is not None:
            return mapped.live.length if mapped.live else 0
        return self.fake.sizes[device.removeprefix("loop:")]

    def block_size(self, device: str) -> int:
        return self.blocks.get(device, 512)

    def claim(self, device: str) -> None:
        if device in self.mounts:
            raise BusyError(device, [f"the file system mounted on {self.mounts[device][0]}"])

    def holders(self, device: str) -> list[Holder]:
        mounts = [Holder("mount", point) for point in self.mounts.get(device, [])]
        return mounts or [Holder("process", "somebody", pid=1)]

    def below(self, device: str) -> set[str]:
        return self.tops.get(device, {self.key(device)})

    def content(self, device: str) -> str:
        return self.fake.content.get(device, "")

    def stable(self, device: str) -> str:
        return device.removeprefix("loop:")

    def usable(self, device: str) -> str:
        return f"loop:{device}" if self.is_file(device) else device

    def has_store(self, device: str) -> bool:
        return device in self.fake.stores

    def wipe(self, device: str, count: int) -> None:
        assert count >= CHUNK

        def wipe() -> None:
            self.fake.stores.pop(device, None)
            self.fake.lost.discard(device)

        self.fake.call(f"wipe {device}", wipe)

    def attach(self, file: str) -> None:
        self.fake.call(f"attach {file}", lambda: self.fake.loops.add(file))

    def attached(self, file: str) -> bool:
        return file in self.fake.loops

    def detach(self, file: str) -> None:
        self.fake.call(f"detach {file}", lambda: self.fake.loops.discard(file))

    def grow(self, file: str, sectors: int) -> None:
        def grow() -> None:
            self.fake.sizes[file] = max(sectors, self.fake.sizes[file])

        self.fake.call(f"grow {file}", grow)


machine_of.register(FakeSnapshots, lambda fake: fake.machine)


class Process(Session):
    """A process that runs one workflow, as a command does."""

    def take(self, name: str, origin: str, cow: str, **options: Any) -> SnapshotLayout:
        self.check_free(name, origin)
        return self._done(plan_take(self.mapper, name, origin, cow, **options))

    def drop(self, name: str) -> SnapshotLayout:
        self.check_free(name)
        return self._done(plan_drop(self.mapper, name))

    def extend(
        self, name: str, size: int, *, more: str = "", force: bool = False
    ) -> SnapshotLayout:
        self.check_free(name)
        plan = plan_extend(self.mapper, name, Growth(size), more=more, force=force)
        return self._done(plan)

    def merge(self, name: str) -> SnapshotLayout:
        return merge(self, name)

    def _done(self, plan: Plan) -> SnapshotLayout:
        self.run(plan)
        assert plan.layout is not None
        return plan.layout


class Stage:
    """A fake mapper with a journal. `process()` is a new process that finds both as they are.

    The next one is killed at its call `crash_in_next`; its first call `failing` is refused.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fake = FakeSnapshots()
        self.machine = self.fake.machine = FakeMachine(self.fake, folder)
        self.processes = 0
        self.crash_in_next = -1

    def process(self, failing: str = "") -> Process:
        self.fake.revive()
        self.fake.failing = failing
        self.processes += 1
        self.fake.calls, self.fake.crash_at = 0, self.crash_in_next
        self.crash_in_next = -1
        journal = Journal(self.folder / "workflows", owner=f"0 {self.processes}")
        return Process(self.fake, journal)

    def origin(self, name: str = "data", disk: str = "/dev/a") -> None:
        """Make a mapped device that is written to all the time."""
        table = Table.of(SECTORS, Linear(self.fake.disk(disk), 0))
        self.fake.create(name, table, keep=True)
        self.fake.use(name)

    def origin_again(self) -> None:
        """Make the origin as the machine's own start does, with what is on its disk."""
        table = Table.of(SECTORS, Linear("/dev/a", 0))
        self.fake.create("data", table, keep=True)

    def records(self) -> list[str]:
        return [str(record) for record in Journal(self.folder / "workflows").records()]
