"""On the host: the guest of one kernel, pytest in it, and what becomes of each test.

One pytest process in the guest collects all tests of the kernel, and runs those that it is asked
for, in that order. When the guest dies or hangs, the test that it was running has failed, and the
next one that is asked for boots another guest: so a test can wreck the kernel, and no other fails.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from dmcopy.errors import DmcopyError, LostVMError
from dmcopy.testing.reporter import FILES, HEADER, POWER_CUT, START, UNKNOWN, WARNING, Lines

if TYPE_CHECKING:
    from dmcopy import vm

Report = dict[str, Any]
GRACE_SECONDS: Final = 60.0
"""How long a test may outlast its limit: what hangs in the guest is cut loose there before."""
_FINISH_SECONDS: Final = 10.0
_LAST_WORDS: Final = 4000
_CONSOLE_BYTES: Final = 16 << 10


@dataclass(frozen=True)
class Test:
    """A test as the guest's pytest calls it. `limit`: the seconds that it may take, 0: any."""

    nodeid: str
    limit: float = 0.0


@dataclass(frozen=True)
class Lost:
    """Why a test did not come to its end, and what the guest's console said meanwhile."""

    why: str
    console: str = ""


@dataclass(frozen=True)
class GuestSettings:
    """How guests are made and what runs in them; `argv` is pytest's, without the tests.

    `boot` boots a guest, each time with the same disks; `close` ends what is between its calls.
    """

    boot: Callable[[], vm.Guest]
    argv: Sequence[str]
    folder: Path
    environment: Mapping[str, str]
    silence: float
    close: Callable[[], None]


class GuestRun:
    """The tests of one kernel. `warned` is told of warnings of the guest's pytest.

    `machine`: what pytest there has said of itself; `files`: what failed tests had in their
    folders, by their ids: paths, and contents in base 64.
    `others`: runs whose reports must be taken meanwhile, too.
    """

    others: Sequence[GuestRun] = ()

    def __init__(
        self, settings: GuestSettings, tests: Sequence[Test], warned: Callable[[Report], object]
    ) -> None:
        self.settings = settings
        self.machine = ""
        self.files: dict[str, dict[str, str]] = {}
        self._warned = warned
        self._left = {test.nodeid: test for test in tests}
        self._asked: list[tuple[str, str]] = []
        self._done: dict[str, list[Report] | Lost] = {}
        self._guest: vm.Guest | None = None
        self._hopeless = ""
        self._requests = -1
        self._stdin: BinaryIO | None = None

    def ask(self, tests: Sequence[tuple[str, str]]) -> None:
        """Have tests run, each with the one after it ("" for none); boot the guest for it."""
        self._asked += tests
        if self._guest is None:
            self._launch()
        else:
            self._pass_on(tests)

    def result(self, nodeid: str) -> list[Report] | Lost:
        """Wait for a test that was asked for; return its reports, or why there are not all."""
        while nodeid not in self._done:
            if self._hopeless:
                self._done[nodeid] = Lost(self._hopeless)
            elif self._guest is None:
                self._launch()
            else:
                self.move(1.0)
                for other in self.others:
                    other.move(0.0)
        return self._done.pop(nodeid)

    def finish(self) -> None:
        """Let pytest in the guest end: the warnings of a test come after its last report."""
        deadline = time.monotonic() + _FINISH_SECONDS
        self._close_requests()
        while self._guest is not None and not self._asked and time.monotonic() < deadline:
            self.move(1.0)

    def close(self) -> None:
        """End the guest. Nothing in it is worth a shutdown: its disks go with it."""
        self._hopeless = self._hopeless or "the guest was closed"
        self._end()
        self.settings.close()

    def move(self, timeout: float) -> None:
        """Take what the guest has sent; wait at most `timeout` seconds for anything."""
        if self._guest is None:
            return
        self._send()
        try:
            status = self._guest.poll(self._command, timeout)
        except LostVMError as error:
            self._lost(str(error), error.log)
            return
        except DmcopyError as error:
            self._lost(str(error))
            return
        if status is not None:
            said = bytes(self._lines.other[-_LAST_WORDS:]).decode(errors="replace")
            said = "\n".join([*self._complaints, said]).strip()
            self._lost(f"pytest ended with {status} in the guest; it said:\n{said or 'nothing'}")
        elif self._cut is not None:
            self._cut_power(*self._cut)
        elif why := self._overdue():
            self._lost(why)

    def _launch(self, phase: int = 0) -> None:
        """Boot a guest for the tests that are left, and hand them to it."""
        self._lines = Lines()
        self._reports: dict[str, list[Report]] = {}
        self._complaints: list[str] = []
        self._cut: tuple[str, int | None] | None = None
        self._current, self._started, self._console_from = "", False, 0
        self._phase, self._first = phase, next(iter(self._left), "")
        self._heard = time.monotonic()
        settings = self.settings
        self._unsent = bytearray()
        reading, self._requests = os.pipe()
        os.set_blocking(self._requests, False)
        self._stdin = os.fdopen(reading, "rb")
        # Whole files: to find each of many tests by its id pytest takes much longer.
        files = dict.fromkeys(nodeid.partition("::")[0] for nodeid in self._left)
        words = [*settings.argv, *([f"--vm-phase={phase}"] if phase else []), *files]
        try:
            self._guest = settings.boot()
            self._command = self._guest.start(
                [self._guest.python, "-m", "pytest", *words],
                cwd=settings.folder,
                env=settings.environment,
                stdin=self._stdin,
                stdout=self._take,
                stderr=self._lines.other.extend,
            )
        except DmcopyError as error:
            self._hopeless = str(error)
            self._end()
            return
        self._pass_on(self._asked)

    def _pass_on(self, tests: Sequence[tuple[str, str]]) -> None:
        for nodeid, following in tests:
            self._unsent += json.dumps({"run": nodeid, "next": following}).encode() + b"\n"
        self._send()

    def _send(self) -> None:
        """Write to the pipe what it has room for: it is read only while the guest is heard."""
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            while self._unsent:
                del self._unsent[: os.write(self._requests, self._unsent)]

    def _close_requests(self) -> None:
        if self._requests >= 0:
            os.close(self._requests)
            self._requests = -1

    def _end(self) -> None:
        self._close_requests()
        if self._stdin is not None:
            self._stdin.close()
        if self._guest is not None:
            self._guest.kill()
            self._guest = None

    def _lost(self, why: str, log: str = "") -> None:
        """Note what became of the test that was running; the next that is due boots anew."""
        console = _tail(Path(log), self._console_from) if log else ""
        culprit = self._current
        self._end()
        if culprit:
            self._settle(culprit, Lost(why, console))
        elif not self._started:
            self._hopeless = why  # it would be no better the next time

    def _settle(self, nodeid: str, result: list[Report] | Lost) -> None:
        self._done[nodeid] = result
        self._left.pop(nodeid, None)
        self._asked = [pair for pair in self._asked if pair[0] != nodeid]
        self._current = ""
        self._heard = time.monotonic()

    def _overdue(self) -> str:
        """Return for how long there has been nothing of a test that should be there by now."""
        waited = time.monotonic() - self._heard
        limit = self._left[self._current].limit if self._current in self._left else 0.0
        if limit and waited > limit + GRACE_SECONDS:
            return f"not done within its limit of {limit:g} s, nor {GRACE_SECONDS:.0f} s later"
        if self._asked and waited > self.settings.silence:
            return f"no result from the guest for {self.settings.silence:.0f} s"
        return ""

    def _cut_power(self, nodeid: str, seed: int | None) -> None:
        """Cut the guest's power in the middle of a test, and boot it again on the same disks."""
        assert self._guest is not None
        self._guest.kill(None if seed is None else random.Random(seed))
        self._guest = None
        self._end()
        phase = self._phase + 1 if nodeid == self._first else 1
        # The test that is asked for first is the one that continues.
        self._left = {nodeid: self._left.pop(nodeid), **self._left}
        self._launch(phase)

    def _take(self, data: bytes) -> None:
        for report in self._lines.feed(data):
            self._heard_of(report)

    def _heard_of(self, report: Report) -> None:
        self._heard = time.monotonic()
        match report["$report_type"]:
            case "TestReport":
                nodeid = report["nodeid"]
                self._reports.setdefault(nodeid, []).append(report)
                if report["when"] == "teardown":
                    self._settle(nodeid, self._reports.pop(nodeid))
            case kind if kind == START:
                self._current, self._started = report["nodeid"], True
                if self._guest is not None:
                    self._console_from = self._guest.console_bytes
            case kind if kind == UNKNOWN:
                self._started = True
                said = "\n".join(self._complaints)
                self._settle(report["nodeid"], Lost(f"the guest found no such test\n{said}"))
            case kind if kind == POWER_CUT:
                self._cut = report["nodeid"], report["seed"]
            case kind if kind == WARNING:
                self._warned(report)
            case kind if kind == HEADER:
                self.machine = str(report["text"])
            case kind if kind == FILES:
                self.files[report["nodeid"]] = report["files"]
            case _:
                self._complaints.append(longrepr_text(report["longrepr"]))


def longrepr_text(longrepr: object) -> str:
    """Return a report's text as the guest sent it."""
    return str(longrepr.get("longrepr", longrepr)) if isinstance(longrepr, dict) else str(longrepr)


def _tail(log: Path, start: int) -> str:
    """Return the end of what a console said from byte `start` on."""
    try:
        with log.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(start, end - _CONSOLE_BYTES))
            return file.read(_CONSOLE_BYTES).decode(errors="replace").replace("\r\n", "\n")
    except OSError:
        return ""
