"""A state machine of an origin, its snapshots and its merges, beside plain byte arrays."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from dmcopy.io import Reactor
from dmcopy.io.simulated import SimulatedBackend, SimulatedDisk
from dmcopy.mapper.userspace import UserMapper
from dmcopy.status import SnapshotMergeStatus, SnapshotStatus
from dmcopy.table import Table

SECTORS = 48
EXTENT = st.tuples(st.integers(0, SECTORS - 1), st.integers(1, 12)).map(
    lambda extent: (extent[0], min(extent[1], SECTORS - extent[0]))
)
NAME = st.sampled_from("abc")


class Snapshots(RuleBasedStateMachine):
    """Up to three snapshots of one origin, of different chunk sizes and stores."""

    @initialize(seed=st.integers(0, 1000), content=st.binary(min_size=8, max_size=8))
    def build(self, seed: int, content: bytes) -> None:
        self.disks = {"origin": SimulatedDisk(SECTORS, "origin")}
        self.disks["origin"].load(content * (SECTORS * 64))
        self.reactor = Reactor(SimulatedBackend(seed), stacked=True)
        self.mapper = self._engine()
        self.mapper.create("live", self._table("snapshot-origin origin"))
        self.origin = bytearray(self.disks["origin"].content)
        self.snaps: dict[str, bytearray] = {}
        self.words: dict[str, str] = {}
        self.merging = ""

    def _engine(self) -> UserMapper:
        return UserMapper(self.reactor, open_device=lambda path, _write: self.disks[path])

    @staticmethod
    def _table(words: str) -> Table:
        return Table.parse(f"0 {SECTORS} {words}")

    @precondition(lambda self: not self.merging)
    @rule(name=NAME, power=st.integers(0, 4), store=st.sampled_from(("P", "PO", "N")))
    def take(self, name: str, power: int, store: str) -> None:
        if name in self.words:
            return
        self.disks[name] = SimulatedDisk(SECTORS * 2 + 64, name)
        self.words[name] = f"origin {name} {store} {1 << power}"
        self.snaps[name] = self.origin[:]
        self.mapper.create(name, self._table(f"snapshot {self.words[name]}"))
        self.mapper.suspend("live")
        self.mapper.resume("live")

    @rule(extent=EXTENT, byte=st.integers(1, 255))
    def write_origin(self, extent: tuple[int, int], byte: int) -> None:
        self._write("live", self.origin, extent, byte)

    @rule(name=NAME, extent=EXTENT, byte=st.integers(1, 255))
    def write_snapshot(self, name: str, extent: tuple[int, int], byte: int) -> None:
        if name in self.snaps:
            self._write(name, self.snaps[name], extent, byte)

    def _write(self, name: str, content: bytearray, extent: tuple[int, int], byte: int) -> None:
        sector, count = extent
        data = bytes([byte]) * (count << 9)
        self.mapper.open(name).write(sector, data)
        content[sector << 9 : sector + count << 9] = data

    @rule(extent=EXTENT)
    def read(self, extent: tuple[int, int]) -> None:
        sector, count = extent
        for name, content in (("live", self.origin), *self.snaps.items()):
            found = self.mapper.open(name).read(sector, count)
            assert found == content[sector << 9 : sector + count << 9], name

    @rule(name=NAME)
    def flush_and_pause(self, name: str) -> None:
        if name in self.snaps:
            self.mapper.open(name).flush()
            self.mapper.suspend(name)
            self.mapper.resume(name)

    @precondition(lambda self: not self.merging)
    @rule(name=NAME)
    def hand_over(self, name: str) -> None:
        if name in self.snaps:
            self.mapper.swap(name, self._table(f"snapshot {self.words[name]}"))

    @precondition(lambda self: not self.merging)
    @rule(name=NAME)
    def merge(self, name: str) -> None:
        if name not in self.snaps or " N " in self.words[name]:
            return
        self.mapper.load("live", self._table(f"snapshot-merge {self.words[name]}"))
        self.mapper.suspend(name)
        self.mapper.suspend("live")
        self.mapper.resume("live")
        self.mapper.remove(name)
        self.origin = self.snaps.pop(name)
        self.merging = name

    @precondition(lambda self: self.merging)
    @rule(seconds=st.sampled_from((0.0005, 0.01, 100.0)))
    def let_it_merge(self, seconds: float) -> None:
        deadline = self.reactor.time() + seconds
        self.reactor.run_until(
            lambda: self._is_merged() or self.reactor.time() >= deadline, 1000, "the merge"
        )
        if self._is_merged():
            assert self.disks["origin"].content == self.origin
            self.mapper.swap("live", self._table("snapshot-origin origin"))
            del self.words[self.merging]
            self.merging = ""

    def _is_merged(self) -> bool:
        status = self.mapper.status("live")[0].status
        assert isinstance(status, SnapshotMergeStatus)
        return status.empty

    @rule()
    def reload(self) -> None:
        """Take everything down and build it again: only what is kept on disk comes back."""
        self.mapper.close()
        self.mapper = self._engine()
        for name in [name for name in self.snaps if " N " in self.words[name]]:
            del self.snaps[name], self.words[name]
        for name in self.snaps:
            self.mapper.create(name, self._table(f"snapshot {self.words[name]}"))
        words = f"snapshot-merge {self.words[self.merging]}" if self.merging else ""
        self.mapper.create("live", self._table(words or "snapshot-origin origin"))

    def teardown(self) -> None:
        if hasattr(self, "mapper"):
            self.read((0, SECTORS))
            for name in self.snaps:
                status = self.mapper.status(name)[0].status
                assert isinstance(status, SnapshotStatus)
                assert not status.trouble
            self.mapper.close()
            self.reactor.close()


TestSnapshots = Snapshots.TestCase
TestSnapshots.settings = settings(max_examples=60, stateful_step_count=40)
