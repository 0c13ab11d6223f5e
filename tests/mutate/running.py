"""Which tests run which lines: plugins of pytest that record it and that make use of it."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import pytest

Lines = dict[str, list[int]]


class Record(NamedTuple):
    """What one test did: how long it took, and the lines that it ran of each file looked at."""

    test: str
    seconds: float
    lines: Lines


class Recorder:
    """Writes a `Record` of each test to `output`, about the lines of `files`.

    What other processes run is not seen, nor what runs when a module is imported.
    """

    def __init__(self, files: Iterable[Path], output: Path) -> None:
        self._lines: dict[str, set[int]] = {str(path): set() for path in files}
        self._tracers = {name: _tracer(lines) for name, lines in self._lines.items()}
        self._records: list[Record] = []
        self._output = output

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Trace one test, with its fixtures and the threads that it starts."""
        for lines in self._lines.values():
            lines.clear()
        began = time.monotonic()
        threading.settrace(self._call)
        sys.settrace(self._call)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            threading.settrace(None)
            seen = {name: sorted(lines) for name, lines in self._lines.items() if lines}
            self._records.append(Record(item.nodeid, time.monotonic() - began, seen))

    def pytest_sessionfinish(self) -> None:
        """Write the records, and the modules that were imported."""
        self._output.write_text(json.dumps([self._records, list(sys.modules)]))

    def _call(self, frame: FrameType, _event: str, _arg: object) -> Callable[..., Any] | None:
        return self._tracers.get(frame.f_code.co_filename)


def _tracer(lines: set[int]) -> Callable[..., Any]:
    def trace(frame: FrameType, _event: str, _arg: object) -> Callable[..., Any]:
        lines.add(frame.f_lineno)
        return trace

    return trace


class Chosen:
    """Runs these tests only, in this order."""

    def __init__(self, tests: Sequence[str]) -> None:
        self._places = {test: place for place, test in enumerate(tests)}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leave the others out."""
        items[:] = sorted(
            (item for item in items if item.nodeid in self._places),
            key=lambda item: self._places[item.nodeid],
        )


def load(path: Path) -> tuple[list[Record], list[str]]:
    """Return what a `Recorder` has written: of each test, the quickest first; modules."""
    records, modules = json.loads(path.read_text())
    return sorted((Record(*each) for each in records), key=lambda each: each.seconds), modules


def choose(records: Sequence[Record], file: Path, line: int) -> list[list[Record]]:
    """Return the tests that ran a line, or all when none did: another process may run it.

    Those of the file that has most of them come first: fewer files are sooner read.
    """
    name = str(file)
    chosen = [each for each in records if line in each.lines.get(name, ())] or list(records)
    files = Counter(each.test.partition("::")[0] for each in chosen)
    first = files.most_common(1)[0][0] + "::"
    groups = (
        [each for each in chosen if each.test.startswith(first)],
        [each for each in chosen if not each.test.startswith(first)],
    )
    return [group for group in groups if group]
