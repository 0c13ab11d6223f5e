"""A history on one engine: what is seen of it, step by step; and where that of two differs.

Ours shows the same on any machine, so what it shows is noted on the host of a guest, as checksums:
an emulated guest plays the kernel's half alone, and ours beside it only where that differs.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from dmcopy.atomic import replace_file
from dmcopy.io.request import Op
from dmcopy.testing.compare import Comparison, RequestResult, View
from dmcopy.testing.steps import Access, AwaitMerge, Burst, Load, Resume, Step
from dmcopy.testing.workload import NOTHING, SNAPSHOTS, Workload

from .engines import Engine, pattern

DISKS = tuple(f"disk{number}" for number in (0, *SNAPSHOTS))
TOPS = ("origin", *(f"snap{number}" for number in SNAPSHOTS))
LOWS = tuple(f"low{number}" for number in (0, *SNAPSHOTS))
NOTES = Path(__file__).parents[3] / "build" / "snapshot-histories.json"


class Seen(NamedTuple):
    """Something of an engine that is to be the same on both, after a step.

    `accesses`: those that `value` has the results of, if any.
    """

    step: Step | None
    what: str
    value: object
    accesses: tuple[Access, ...] = ()


def start_up(engine: Engine) -> None:
    """Make the devices that are used for every history."""
    for name in (*LOWS, *TOPS):
        engine.create(name, NOTHING)


def shut_down(engine: Engine) -> None:
    """Remove the devices and the disks."""
    _empty(engine)
    for name in (*TOPS, *LOWS):
        engine.mapper.thaw(name)
        engine.remove(name)
    engine.close()


def _empty(engine: Engine) -> None:
    for name in TOPS:
        engine.mapper.thaw(name)
        engine.swap(name, NOTHING)


class History:
    """A workload on an engine, whose disks have the same content at the beginning each time."""

    def __init__(self, workload: Workload, engine: Engine) -> None:
        self.engine = engine
        self.workload = workload
        self.merging = False
        self.bursts = 0
        _empty(engine)
        engine.disks.wipe()
        engine.poke("disk0", 0, pattern(workload.seed, workload.sectors))
        self.born = {name: engine.events(name) for name in TOPS}

    def play(self) -> Iterator[Seen]:
        """Play it, and yield what an observer sees after each step, and now and then everything."""
        step: Step | None = None
        for step in self.workload.steps():
            accesses = step.accesses if isinstance(step, Burst) else ()
            yield Seen(step, "the step's result", self.engine.do(step), accesses)
            yield from self._after(step)
        yield from self._everything(step)

    def _after(self, step: Step) -> Iterator[Seen]:
        match step:
            case Burst():
                self.bursts += 1
            case Load("origin", table) if " snapshot-merge " in table:
                self.merging = True
            case AwaitMerge():
                self.merging = False
        if not self.merging and isinstance(step, Burst | Resume | AwaitMerge):
            yield Seen(step, "status, table or events", self._views())
        if self.bursts > 3 or isinstance(step, AwaitMerge):
            self.bursts = 0
            yield from self._everything(step)

    def _everything(self, step: Step | None) -> Iterator[Seen]:
        """Yield what all devices hold, and the exception stores."""
        for name, results in self._contents().items():
            yield Seen(step, f"content of {name}", results, (Access(Op.READ, name),))
        if not self.merging:
            for what, value in self._stores():
                yield Seen(step, what, value)

    def _views(self) -> dict[str, View]:
        """Return what is seen of every device at the top: its events from the beginning on."""
        views = {name: self.engine.look(name) for name in TOPS}
        born = self.born
        return {name: one._replace(events=one.events - born[name]) for name, one in views.items()}

    def _contents(self) -> dict[str, list[RequestResult]]:
        """Read every device that is not suspended."""
        engine = self.engine
        if any(engine.mapper.info(name).suspended for name in LOWS):
            return {}
        return engine.contents([name for name in TOPS if engine.table(name) != NOTHING])

    def _stores(self) -> Iterator[tuple[str, object]]:
        """Yield the COWs of all snapshots that are not lost."""
        views = self._views()
        for number in SNAPSHOTS:
            view = views[f"snap{number}"]
            if " snapshot @" not in view.table or view.status == "Invalid":
                continue
            one = self.workload.snapshots.get(number)
            if one is None:
                continue
            disk = f"disk{number}"
            if self.workload.depth == 1:  # from the header to the last chunk that is allocated
                used = view.status.split("/")[0]
                sectors = int(used) if used.isdecimal() else one.sectors
                yield f"the COW of snap{number}", self.engine.peek(disk, 0, sectors)
            elif one.store != "N":
                olds = sorted(old for old, _ in self.engine.exceptions(disk))
                yield f"the exceptions of snap{number}", olds


def compare(engines: tuple[Engine, Engine], kernel: Iterable[Seen], user: Iterable[Seen]) -> None:
    """Play two histories beside each other. Raises DifferenceError at the first difference."""
    comparison = Comparison(*engines, patience=0)
    for one, other in zip(kernel, user, strict=True):
        if one.step is not None and (not comparison.steps or comparison.steps[-1] is not one.step):
            comparison.steps.append(one.step)
        comparison.same("what is looked at", one[:2], other[:2])
        if isinstance(one.value, bytes) and isinstance(other.value, bytes):
            comparison.same_bytes(one.what, one.value, other.value)
        elif one.accesses:
            comparison.same_results(one.what, one.accesses, one.value, other.value)
        comparison.same(one.what, one.value, other.value)


# What ours shows, noted on the host.


def key(seed: int, depth: int, discards_beside_errors: bool) -> str:
    """Return by what the notes of a workload are found."""
    return f"{seed} {depth} {discards_beside_errors}"


def checksum(seen: Seen) -> int:
    """Return a number that differs where what is seen does, but once in four thousand million."""
    return _checksum(seen.value, zlib.crc32(seen.what.encode()))


def _checksum(value: object, start: int) -> int:
    """Return that of a value. Not a digest: a guest would take longer for it than for the rest."""
    if isinstance(value, bytes):
        return zlib.crc32(value, start)
    if isinstance(value, RequestResult):
        head = f"{value.op} {value.error} {len(value.data)} "
        return zlib.crc32(value.data, zlib.crc32(head.encode(), start))
    if isinstance(value, list):
        for one in value:
            start = _checksum(one, start)
        return zlib.crc32(b"%d" % len(value), start)
    return zlib.crc32(f"{value!r} ".encode(), start)


def note(engine: Engine, wanted: Iterable[tuple[int, int, bool]]) -> None:
    """Note what an engine shows of workloads: their seeds, depths, `discards_beside_errors`."""
    notes: dict[str, list[int]] = {}
    for seed, depth, beside in wanted:
        workload = Workload(seed, depth=depth, discards_beside_errors=beside)
        found = [checksum(seen) for seen in History(workload, engine).play()]
        notes[key(seed, depth, beside)] = found
    NOTES.parent.mkdir(exist_ok=True)
    replace_file(NOTES, json.dumps(notes).encode())


def noted() -> dict[str, list[int]]:
    """Return what has been noted, nothing where nothing was."""
    try:
        found: dict[str, list[int]] = json.loads(NOTES.read_bytes())
    except FileNotFoundError:
        return {}
    return found


def first_unlike(history: Iterable[Seen], notes: Sequence[int]) -> str:
    """Return what is the first to be unlike what is noted, and after which step; "" for nothing."""
    count = 0
    for count, seen in enumerate(history, 1):
        if count > len(notes) or checksum(seen) != notes[count - 1]:
            return f"{seen.what} after {seen.step}"
    return "" if count == len(notes) else f"the end: {count} looks, not {len(notes)}"
