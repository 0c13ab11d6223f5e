"""Showing a transfer's events on stderr: a bar, plain lines, JSON lines, or nothing.

rich is imported only when a bar is drawn, which is when a copy has lasted a moment: most of the
time a small copy would take goes into imports otherwise.
"""

from __future__ import annotations

import sys
import time
from typing import Any, Final, Protocol

from dmcopy.cli.output import printable, say
from dmcopy.transfer import events
from dmcopy.transfer.destination import errno_name
from dmcopy.units import SECTOR_SHIFT, format_bytes

BAR_AFTER_SECONDS: Final = 0.3
LINE_EVERY_SECONDS: Final = 5.0
ERRORS_SAID: Final = 5
"""So many failed ranges of one device are said at once; all of them are in the summary."""


class Renderer(Protocol):
    """Shows events until `close`."""

    def show(self, event: events.Event) -> None:
        """Show one."""

    def close(self) -> None:
        """Leave the terminal as it was."""


def make_renderer(how: str, *, at_once: bool = False) -> Renderer:
    """Return the renderer called `how`; auto: a bar on a terminal, lines elsewhere.

    `at_once`: draw the bar of even the shortest copy.
    """
    if how == "auto":
        how = "bar" if sys.stderr.isatty() else "plain"
    if how == "bar":
        return Bar(0.0 if at_once else BAR_AFTER_SECONDS)
    kinds: dict[str, type[Renderer]] = {"plain": Plain, "json": JsonLines, "none": Silent}
    return kinds[how]()


class Silent:
    """Shows nothing: the summary says it all."""

    def show(self, event: events.Event) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class _Words:
    """Says events in words, and keeps still when a disk fails block after block."""

    def __init__(self) -> None:
        self._said: dict[str, int] = {}

    def of(self, event: events.Event) -> str:
        """Return what to print for an event; "" for nothing."""
        if isinstance(event, events.ReadFailed | events.WriteFailed | events.Mismatch):
            said = self._said[event.path] = self._said.get(event.path, 0) + 1
            if said == ERRORS_SAID + 1:
                return f"{printable(event.path)}: there are more, see the summary"
            if said > ERRORS_SAID:
                return ""
        return sentence(event)


class Plain:
    """Errors at once, and a line of progress every five seconds."""

    def __init__(self) -> None:
        self._words = _Words()
        self._next = time.monotonic() + LINE_EVERY_SECONDS

    def show(self, event: events.Event) -> None:
        """Print the event, if it is one to be printed."""
        if not isinstance(event, events.Progress):
            text = self._words.of(event)
            if text:
                say(text)
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + LINE_EVERY_SECONDS
            say(progress_line(event))

    def close(self) -> None:
        """Nothing to restore."""


class JsonLines:
    """One JSON object per line and event."""

    def show(self, event: events.Event) -> None:
        """Print the event."""
        import json

        line = {"event": _snake(type(event).__name__), **event._asdict()}
        if "errno" in line:
            line["errno"] = errno_name(line["errno"])
        print(json.dumps(line), file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing to restore."""


class Bar:
    """A progress bar for each phase, errors above it."""

    def __init__(self, after: float = BAR_AFTER_SECONDS) -> None:
        self._words = _Words()
        self._after = after
        self._progress: Any = None
        self._tasks: dict[str, Any] = {}

    def show(self, event: events.Event) -> None:
        """Move the bar, or print the event above it."""
        if isinstance(event, events.Progress):
            self._move(event)
            return
        text = self._words.of(event)
        if text and self._progress is not None:
            self._progress.console.print(text, markup=False, highlight=False)
        elif text:
            say(text)

    def close(self) -> None:
        """End the bar."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _move(self, event: events.Progress) -> None:
        if self._progress is None:
            if event.seconds < self._after:
                return
            self._progress = rich_progress()
            self._progress.start()
        if event.phase not in self._tasks:
            total = event.total << SECTOR_SHIFT
            self._tasks[event.phase] = self._progress.add_task(event.phase, total=total)
        task = self._tasks[event.phase]
        self._progress.update(task, completed=event.sectors << SECTOR_SHIFT)


def rich_progress() -> Any:
    """Return a bar with all that a transfer can tell, on stderr; not started yet."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    return Progress(
        TextColumn("{task.description:>6}"),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        refresh_per_second=8,
    )


def sentence(event: events.Event) -> str:
    """Return an event for people; "" for those that need no words."""
    match event:
        case events.ReadFailed(path, sector, count, errno):
            return f"{_at(path, sector, count)} cannot be read: {errno_name(errno)}"
        case events.WriteFailed(path, sector, count, errno):
            return f"{_at(path, sector, count)} cannot be written: {errno_name(errno)}"
        case events.Dropped(path, cause, errno):
            return f"{printable(path)} is given up: {cause} failed with {errno_name(errno)}"
        case events.MapFailed(path, message):
            return f"{printable(path)}: the map could not be saved: {message}"
        case events.Mismatch(path, sector, count):
            return f"{_at(path, sector, count)} differ from the source"
    return ""


def progress_line(event: events.Progress) -> str:
    """Return how far a transfer is, in one line."""
    done, total = event.sectors << SECTOR_SHIFT, event.total << SECTOR_SHIFT
    percent = 100 * done // total if total else 100
    rate = format_bytes(int(done / event.seconds)) if event.seconds else "0 B"
    return f"{event.phase}: {percent}%, {format_bytes(done)} of {format_bytes(total)}, {rate}/s"


def _at(path: str, sector: int, count: int) -> str:
    return f"{printable(path)}: {count} sectors from {sector}"


def _snake(name: str) -> str:
    return "".join(f"_{char.lower()}" if char.isupper() else char for char in name).lstrip("_")
