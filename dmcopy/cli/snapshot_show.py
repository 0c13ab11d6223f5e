"""What `dmcopy snapshot` prints: states, and the progress of a merge."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final

from dmcopy.cli.output import emit_table, printable, say
from dmcopy.cli.progress import LINE_EVERY_SECONDS, make_renderer, pace
from dmcopy.cli.signals import is_asked
from dmcopy.transfer import events
from dmcopy.units import SECTOR_SHIFT, format_bytes
from dmcopy.workflows.snapshot_merging import Progress
from dmcopy.workflows.snapshot_status import State

_HEADERS: Final = ("Name", "Origin", "State", "Full", "Used", "COW", "Store", "Chunk")


def emit_states(states: list[State]) -> None:
    """Print snapshots as a table, and below it what is wrong and what can be done."""
    if not states:
        print("no snapshots")
        return
    emit_table(_HEADERS, [_row(state) for state in states], right=("Full", "Used"))
    for state in states:
        if state.trouble:
            say(printable(f"dmcopy: {state.name}: {state.trouble}"))
        if state.interrupted:
            text = f"'{state.interrupted}' was interrupted: {state.advice}"
            say(printable(f"dmcopy: {state.name}: {text}"))
        elif state.working:
            say(printable(f"dmcopy: {state.name}: '{state.working}' is at work"))


def _row(state: State) -> list[str]:
    used = "" if state.used is None else format_bytes(state.used << SECTOR_SHIFT)
    return [
        state.name,
        state.origin,
        state.state,
        "" if state.percent is None else f"{state.percent:.1f}%",
        used,
        state.cow,
        state.store,
        format_bytes(state.chunk_size << SECTOR_SHIFT),
    ]


@contextlib.contextmanager
def progress(how: str) -> Iterator[Callable[[Progress], None]]:
    """Show the progress of a merge on stderr for the length of a `with` block."""
    if how == "auto":
        how = "bar" if sys.stderr.isatty() else "plain"
    if how == "json":
        yield _json_line
        return
    if how in ("plain", "none"):
        yield _Lines(quiet=how == "none").show
        return
    renderer = make_renderer(how)
    try:
        yield lambda one: renderer.show(_event(one))
    finally:
        renderer.close()


class _Lines:
    """Says how far a merge is, every five seconds, or only when asked."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._next = time.monotonic() + LINE_EVERY_SECONDS

    def show(self, one: Progress) -> None:
        """Print a line if it is time."""
        if not is_asked() and (self._quiet or time.monotonic() < self._next):
            return
        self._next = time.monotonic() + LINE_EVERY_SECONDS
        say(printable(f"merge {one.name}: {one.percent:.1f}%{pace(one.rate, one.remaining)}"))


def _json_line(one: Progress) -> None:
    remaining = None if one.remaining is None else round(one.remaining, 1)
    line = {
        "event": "progress",
        "phase": "merge",
        "name": one.name,
        "left": one.left,
        "total": one.total,
        "percent": round(one.percent, 2),
        "sectors_per_second": round(one.rate, 1),
        "seconds": round(one.seconds, 3),
        "seconds_left": remaining,
    }
    print(json.dumps(line), file=sys.stderr, flush=True)


def _event(one: Progress) -> events.Progress:
    return events.Progress("merge", one.total - one.left, one.total, (), one.seconds)
