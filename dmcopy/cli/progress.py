"""Showing a transfer's events on stderr: a bar, plain lines, JSON lines, or nothing.

rich is imported only when a bar is drawn, which is when a copy has lasted a moment: most of the
time a small copy would take goes into imports otherwise.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from dmcopy.cli.output import printable, say
from dmcopy.cli.shown import drawing
from dmcopy.cli.signals import is_asked
from dmcopy.transfer import events
from dmcopy.transfer.destination import errno_name
from dmcopy.units import SECTOR_SHIFT, format_bytes

BAR_AFTER_SECONDS: Final = 0.3
LINE_EVERY_SECONDS: Final = 5.0
ERRORS_SAID: Final = 5
"""How many failed ranges of one device are printed as they happen; the summary has all."""

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


_T = TypeVar("_T")


class WorkflowProgress(NamedTuple):
    """How far a workflow on the device `name` is: as `events.Progress`, and as a line for people.

    `rate` in sectors a second. `details`: what else is told to programs.
    """

    phase: str
    name: str
    sectors: int
    total: int
    seconds: float
    rate: float
    seconds_left: float | None
    line: str
    details: Mapping[str, int] = {}


_PROGRESS: Final = (events.Progress, WorkflowProgress)


class Renderer(Protocol):
    """Shows events until `close`."""

    def show(self, event: events.TransferEvent | WorkflowProgress) -> None:
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
    kinds: dict[str, type[Renderer]] = {"plain": Plain, "json": JsonLines, "none": NoProgress}
    return kinds[how]()


@contextlib.contextmanager
def following(how: str, report: Callable[[_T], WorkflowProgress]) -> Iterator[Callable[[_T], None]]:
    """Show what a workflow observes as `report` puts it, for the length of a `with` block."""
    with contextlib.closing(make_renderer(how)) as renderer:
        yield lambda one: renderer.show(report(one))


class NoProgress:
    """Shows nothing, unless it is asked: the summary says it all."""

    def show(self, event: events.TransferEvent | WorkflowProgress) -> None:
        """Print how far it is when the user has asked."""
        if isinstance(event, _PROGRESS) and is_asked():
            say(_line_of(event))

    def close(self) -> None:
        """Do nothing."""


class _Words:
    """Says events in words, and keeps still when a disk fails block after block."""

    def __init__(self) -> None:
        self._said: dict[str, int] = {}

    def of(self, event: events.TransferEvent) -> str:
        """Return what to print for an event; "" for nothing."""
        if isinstance(event, events.ReadFailed | events.WriteFailed | events.Mismatch):
            said = self._said[event.path] = self._said.get(event.path, 0) + 1
            if said == ERRORS_SAID + 1:
                return f"{printable(event.path)}: there are more, see the summary"
            if said > ERRORS_SAID:
                return ""
        return sentence(event)


class Plain:
    """Errors as they happen, and a line of progress every five seconds."""

    def __init__(self) -> None:
        self._words = _Words()
        self._next = time.monotonic() + LINE_EVERY_SECONDS

    def show(self, event: events.TransferEvent | WorkflowProgress) -> None:
        """Print the event, if it is one to be printed."""
        if not isinstance(event, _PROGRESS):
            text = self._words.of(event)
            if text:
                say(text)
        elif is_asked() or time.monotonic() >= self._next:
            self._next = time.monotonic() + LINE_EVERY_SECONDS
            say(_line_of(event))

    def close(self) -> None:
        """Nothing to restore."""


class JsonLines:
    """One JSON object per line and event."""

    def show(self, event: events.TransferEvent | WorkflowProgress) -> None:
        import json

        line: dict[str, Any] = {"event": _snake(type(event).__name__), **event._asdict()}
        if isinstance(event, _PROGRESS):
            left = event.seconds_left
            line["event"] = "progress"
            line["rate"] = round(event.rate, 1)
            line["seconds_left"] = None if left is None else round(left, 1)
        if isinstance(event, WorkflowProgress):
            del line["line"]
            line |= line.pop("details")
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

    def show(self, event: events.TransferEvent | WorkflowProgress) -> None:
        """Move the bar, or print the event above it."""
        if isinstance(event, _PROGRESS):
            self._move(event)
            return
        text = self._words.of(event)
        if text and self._progress is not None:
            self._progress.console.print(text, markup=False, highlight=False)
        elif text:
            say(text)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _move(self, event: events.Progress | WorkflowProgress) -> None:
        if self._progress is None:
            if event.seconds < self._after and not is_asked():
                return
            self._progress = rich_progress()
            self._progress.start()
        if event.phase not in self._tasks:
            total = event.total << SECTOR_SHIFT
            self._tasks[event.phase] = self._progress.add_task(event.phase, total=total)
        task = self._tasks[event.phase]
        self._progress.update(task, completed=event.sectors << SECTOR_SHIFT)
        if is_asked():
            self._progress.console.print(_line_of(event), markup=False, highlight=False)


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
        console=Console(file=drawing(sys.stderr)),
        refresh_per_second=8,
    )


def sentence(event: events.TransferEvent) -> str:
    """Return an event for people; "" for those that need no words."""
    match event:
        case events.Overwrites(path, what):
            return f"{printable(path)} is overwritten: {printable(what)}"
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


def _line_of(event: events.Progress | WorkflowProgress) -> str:
    return event.line if isinstance(event, WorkflowProgress) else progress_line(event)


def progress_line(event: events.Progress) -> str:
    """Return how far a transfer is, in one line."""
    if event.already >= event.total:
        return f"{event.phase}: nothing to do"
    sizes = (event.sectors << SECTOR_SHIFT, event.total << SECTOR_SHIFT)
    percent = 100 * event.sectors // event.total
    if not event.rate:
        (done, total), unit = in_one_unit(*sizes)
        return f"{event.phase}: {percent}%, {done} of {total} {unit}"
    (done, total, rate), unit = in_one_unit(*sizes, event.rate * (1 << SECTOR_SHIFT))
    left = event.seconds_left
    rest = f", {duration(left)} left" if left else ""
    return f"{event.phase}: {percent}%, {done} of {total} {unit}, {rate} {unit}/s{rest}"


def in_one_unit(*sizes: float) -> tuple[list[str], str]:
    """Return sizes in bytes as numbers of one unit: that of the smallest which is not 0."""
    smallest = min((size for size in sizes if size >= 1), default=0.0)
    shift = min((max(int(smallest), 1).bit_length() - 1) // 10, len(_UNITS) - 1)
    numbers = [size / (1 << 10 * shift) for size in sizes]
    return [f"{number:.4g}" if number < 1000 else f"{number:.0f}" for number in numbers], _UNITS[
        shift
    ]


def speed(size: float, seconds: float) -> str:
    """Return how fast `size` bytes were moved in `seconds`."""
    if not size:
        return "nothing to do"
    seconds = max(seconds, 1e-9)
    (amount, rate), unit = in_one_unit(size, size / seconds)
    return f"{amount} {unit} in {seconds:.3g} s, {rate} {unit}/s"


def pace(rate: float, left: float | None) -> str:
    """Return how a sentence ends that says how far it is: sectors a second, and the time left.

    Nothing of a rate that is not known yet.
    """
    speed = f", {format_bytes(int(rate) << SECTOR_SHIFT)}/s" if rate >= 1 else ""
    return f"{speed}, {duration(left)} left" if left is not None else speed


def duration(seconds: float) -> str:
    """Return a time for people, as exact as an estimate is."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _at(path: str, sector: int, count: int) -> str:
    return f"{printable(path)}: {count} sectors from {sector}"


def _snake(name: str) -> str:
    return "".join(f"_{char.lower()}" if char.isupper() else char for char in name).lstrip("_")
