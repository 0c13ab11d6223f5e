"""Every state that a power cut could have left of some disks, checked: a crash explorer.

    def run(storage):
        storage.disk.write(8, data)
        storage.disk.flush()
        storage.disk.write(0, header)
        storage.disk.flush()
        storage.mark("committed")

    def check(storage):
        header = storage.disk.read(0, 1)
        ...                                   # raises where what is there must not be

    explore(run, check)

`run` runs once, and what it writes and flushes is recorded. Then `check` is called with disks as
they would be after a power cut at every moment: with all that had been sent by then, with only what
was durable, and with writes lost or torn by sector, singly and as seeds say. What fails is made
smaller, as long as it fails, and raised as a `CrashError`, with a text that names the power cut.

`run` and `check` get a `dmcopy.testing.storage.Storage`. A `check` that is text is a command, as
`fsck.ext4 -fy {}`: `{}` is the first disk, as a file, and `{name}` the one of that name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from dmcopy.errors import DmcopyError, UsageError
from dmcopy.testing.fsck import Fsck
from dmcopy.testing.recording import Cut, Moment, Recording, fates, moments
from dmcopy.testing.storage import MODEL, Judge, Storage, recorded_files, recorded_in_memory
from dmcopy.units import SECTOR_SHIFT

Run = Callable[[Storage], object]
Check = Callable[[Storage], object] | str

SEEDS: Final = 6
_SHOWN: Final = 12


class CrashError(AssertionError):
    """A check failed after a power cut, `cut` of `recording`; its cause is what it raised."""

    def __init__(self, cut: Cut, recording: Recording, cause: BaseException, again: str) -> None:
        self.cut = cut
        self.recording = recording
        text = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        lines = [f"after a power cut at {_place(recording, cut.at)}: {text}"]
        for number, bits in list(cut.kept.items())[:_SHOWN]:
            write: Any = recording.events[number]
            count = len(write.data) >> SECTOR_SHIFT
            kept = [sector for sector in range(count) if bits >> sector & 1]
            what = "lost" if not kept else f"torn, of its sectors these stayed: {kept}"
            place = f"{count} sectors at {write.sector} of {recording.names[write.disk]}"
            lines.append(f"  write {number}, {place}: {what}")
        if not cut.kept:
            lines.append("  nothing was lost: all that had been sent was there")
        lines.append(f"this power cut alone: {again.format(cut=cut)}")
        super().__init__("\n".join(lines))


def _place(recording: Recording, at: int) -> str:
    marks = recording.marks(at)
    behind = f", behind mark {marks[-1]!r}" if marks else ""
    return f"event {at} of {len(recording.events)}{behind}"


@dataclass(frozen=True)
class Explored:
    """How much there was: events of the run, and different states that were checked."""

    events: int
    states: int


def record(
    run: Run,
    disks: Mapping[str, int],
    *,
    via: str = MODEL,
    seed: int = 0,
    first: Mapping[str, bytes] | None = None,
    block_size: int = 512,
) -> Recording:
    """Run once, and return what was recorded. The parameters are those of `explore`."""
    contents = [
        (first or {}).get(name, b"").ljust(count << SECTOR_SHIFT, b"\0")
        for name, count in disks.items()
    ]
    recording = Recording(list(disks), contents)
    storing: contextlib.AbstractContextManager[Storage] = (
        recorded_in_memory(recording, seed, block_size)
        if via == MODEL
        else recorded_files(recording, via)
    )
    with storing as storage:
        run(storage)
    return recording


def explore(
    run: Run,
    check: Check,
    disks: Mapping[str, int] | None = None,
    *,
    via: str = MODEL,
    seed: int = 0,
    seeds: int = SEEDS,
    first: Mapping[str, bytes] | None = None,
    block_size: int = 512,
    cut: str | None = None,
    again: str = "explore(..., cut={cut!s})",
) -> Explored:
    """Run once, and check everything that a power cut could have left. Raises CrashError.

    `disks`: their sizes in sectors by their names, by default one of 2048; `first`: what they hold
    before, by default zeroes. `via`: 'model', disks in memory, whose requests complete in an order
    that `seed` says; 'fuse' or 'loop', disks that `run` finds at a `path`, for any program.
    `seeds`: how many outcomes by chance are tried at each moment. `cut`: only this one, as a
    failure names it. `again`: how a user tries one, with `{cut}` in it.
    """
    recording = record(
        run, disks or {"disk": 2048}, via=via, seed=seed, first=first, block_size=block_size
    )
    files = via != MODEL or isinstance(check, str)
    return explore_recording(
        recording, check, files=files, seeds=seeds, block_size=block_size, cut=cut, again=again
    )


def explore_recording(
    recording: Recording,
    check: Check,
    *,
    files: bool = False,
    seeds: int = SEEDS,
    block_size: int = 512,
    cut: str | None = None,
    again: str = "explore_recording(..., cut={cut!s})",
) -> Explored:
    """Check everything that a power cut could have left of a recording. See `explore`.

    `files`: the check gets disks that are files.
    """
    call = _command(check) if isinstance(check, str) else check
    with contextlib.closing(Judge(recording.names, files=files, block_size=block_size)) as judge:
        explorer = _Explorer(recording, call, judge)
        found = explorer.only(Cut.parse(cut)) if cut else explorer.find(seeds)
        if found is not None:
            least, cause = explorer.shrunk(*found)
            raise CrashError(least, recording, cause, again) from cause
        return Explored(len(recording.events), explorer.states)


class _Explorer:
    def __init__(self, recording: Recording, check: Run, judge: Judge) -> None:
        self.states = 0
        self._recording = recording
        self._check = check
        self._judge = judge

    def find(self, seeds: int) -> tuple[Cut, BaseException] | None:
        """Return the first power cut that the check fails after, and what it raised."""
        seen: set[object] = set()
        for moment in moments(self._recording):
            pending = moment.pending()
            sectors = {number: len(one.data) >> SECTOR_SHIFT for number, one in pending.items()}
            for _, kept in fates(moment.at, sectors, range(seeds)):
                cut = Cut(moment.at, kept)
                left = frozenset((number, cut.kept.get(number)) for number in pending)
                marks = len(moment.marks)
                state = moment.version, marks, frozenset(one for one in left if one[1] != 0)
                if state not in seen:
                    seen.add(state)
                    if cause := self._fails(moment, cut):
                        return cut, cause
        return None

    def only(self, cut: Cut) -> tuple[Cut, BaseException] | None:
        cause = self._fails(self._moment(cut.at), cut)
        return (cut, cause) if cause else None

    def shrunk(self, cut: Cut, cause: BaseException) -> tuple[Cut, BaseException]:
        """Return a cut that loses less and still fails: one write after the other is given back."""
        moment = self._moment(cut.at)
        for number in list(cut.kept):
            kept = dict(cut.kept)
            del kept[number]
            for less in (kept, {**cut.kept, number: 0} if cut.kept[number] else kept):
                smaller = replace(cut, kept=less)
                if other := self._fails(moment, smaller):
                    cut, cause = smaller, other
                    break
        return cut, cause

    def _moment(self, at: int) -> Moment:
        moment = Moment(self._recording)
        if at > len(self._recording.events):
            raise UsageError(f"the run has {len(self._recording.events)} events: none is {at}")
        while moment.at < at:
            moment.next()
        return moment

    def _fails(self, moment: Moment, cut: Cut) -> BaseException | None:
        self.states += 1
        try:
            with self._judge.storage(moment, cut) as storage:
                self._check(storage)
        except (Exception, AssertionError) as error:
            return error
        return None


def _command(command: str) -> Run:
    """Return a check that runs a command on the disks' files."""
    words = Fsck(command)

    def check(storage: Storage) -> None:
        names = {f"{{{name}}}": disk for name, disk in storage.disks.items()}
        names["{}"] = storage.disk
        verdict = words.run({hole: disk.path for hole, disk in names.items() if words.has(hole)})
        if verdict.code:
            raise DmcopyError(f"{command} ended with {verdict.code}\n{verdict.output}")

    return check
