"""Would the tests notice if a flush were missing? Each is taken away, and the check asked again.

    for one in weaken(run, check):
        assert one.noticed, one

A record of what a run wrote (see `dmcopy.testing.explorer`) is weakened in one place at a time: a
flush is dropped, a FUA write is written without, or a flush does not cover the write just before
it, as if the two had changed places. For each the power cuts are explored. Where no check fails,
either the flush is of no use, or the check does not look for what it is for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dmcopy.testing.explorer import SEEDS, Check, CrashError, Run, explore_recording, record
from dmcopy.testing.recording import Cut, Done, Event, Flushed, Recording, Sent
from dmcopy.testing.storage import MODEL


@dataclass(frozen=True)
class Weakened:
    """What was taken away, from event number `event` of a run; `noticed`: the cut that failed.

    `kind`: 'flush', 'fua' or 'order'. `place`: the disk, and the mark before it.
    """

    kind: str
    event: int
    place: str
    noticed: Cut | None

    def __str__(self) -> str:
        how = {
            "flush": "without the flush",
            "fua": "without FUA for the write",
            "order": "with the last write before the flush behind it",
        }[self.kind]
        found = f"fails after a power cut at {self.noticed}" if self.noticed else "still passes"
        return f"{how} that is event {self.event}, {self.place}, the check {found}"


def weaken(
    run: Run,
    check: Check,
    disks: Mapping[str, int] | None = None,
    *,
    seeds: int = SEEDS,
    via: str = MODEL,
    **options: Any,
) -> list[Weakened]:
    """Run once; return of each weakening whether the check notices it.

    The parameters are those of `explore`. Raises CrashError where the check fails as it is.
    """
    recording = record(run, disks or {"disk": 2048}, via=via, **options)
    files = via != MODEL or isinstance(check, str)
    block_size = options.get("block_size", 512)
    explore_recording(recording, check, files=files, seeds=seeds, block_size=block_size)
    found = []
    for kind, event, weaker in weakened(recording):
        noticed = None
        try:
            explore_recording(weaker, check, files=files, seeds=seeds, block_size=block_size)
        except CrashError as error:
            noticed = error.cut
        found.append(Weakened(kind, event, _place(recording, event), noticed))
    return found


def weakened(recording: Recording) -> Iterator[tuple[str, int, Recording]]:
    """Yield a recording's weaker ones, with what was taken away and from which event."""
    for number, event in enumerate(recording.events):
        if isinstance(event, Sent) and event.fua:
            yield "fua", number, _with(recording, number, event._replace(fua=False))
        elif isinstance(event, Flushed):
            covered = _last_covered(recording, event)
            if covered is not None:
                yield "flush", number, _with(recording, number, event._replace(sent=0))
                if covered:
                    moved = event._replace(sent=covered)
                    yield "order", number, _with(recording, number, moved)


def _last_covered(recording: Recording, flush: Flushed) -> int | None:
    """Return the event with which the last write that a flush covers was done.

    None where it covers none that no flush covered before; 0 where it is the only one, so that to
    leave it out is to drop the flush.
    """
    before = 0
    for event in recording.events[: flush.sent]:
        if isinstance(event, Flushed) and event.disk == flush.disk:
            before = max(before, event.sent)
    done = [
        number
        for number, event in enumerate(recording.events[before : flush.sent], before)
        if isinstance(event, Done) and _write(recording, event).disk == flush.disk
        and not _write(recording, event).fua
    ]  # fmt: skip
    if not done:
        return None
    return done[-1] if len(done) > 1 else 0


def _write(recording: Recording, done: Done) -> Sent:
    write = recording.events[done.write]
    assert isinstance(write, Sent)
    return write


def _with(recording: Recording, number: int, event: Event) -> Recording:
    other = Recording(recording.names, recording.first)
    other.events = list(recording.events)
    other.events[number] = event
    return other


def _place(recording: Recording, number: int) -> str:
    event: Any = recording.events[number]
    marks = recording.marks(number)
    behind = f", behind mark {marks[-1]!r}" if marks else ""
    return f"on {recording.names[event.disk]}{behind}"
