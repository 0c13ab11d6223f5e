"""What `dmcopy snapshot` prints: states, and the progress of a merge."""

from __future__ import annotations

from typing import Final

from dmcopy.cli.output import emit_table, printable, say
from dmcopy.cli.progress import WorkflowProgress, pace
from dmcopy.units import SECTOR_SHIFT, format_bytes
from dmcopy.workflows.snapshot_merging import MergeProgress
from dmcopy.workflows.snapshot_status import SnapshotState

_HEADERS: Final = ("Name", "Origin", "State", "Full", "Used", "COW", "Store", "Chunk")


def emit_states(states: list[SnapshotState]) -> None:
    """Print snapshots as a table, and their troubles with a way out below it."""
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


def _row(state: SnapshotState) -> list[str]:
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


def report(one: MergeProgress) -> WorkflowProgress:
    """Return how far a merge is, for `following`."""
    line = printable(f"merge {one.name}: {one.percent:.1f}%{pace(one.rate, one.seconds_left)}")
    done, left = one.total - one.left, one.seconds_left
    return WorkflowProgress("merge", one.name, done, one.total, one.seconds, one.rate, left, line)
