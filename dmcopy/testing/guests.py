"""On the host: `kernel` tests become one item for each kernel, and a guest supplies the results.

Those marked `kernel(either=True)` become one item in all: they are dealt to the kernels in turn, in
the order in which they were collected, so that the same selection is always dealt in the same way.
With one kernel, and with $DMCOPY_TEST=long, they run on every one.

The guests boot when the first of these tests is due, as many side by side as there are processors:
an emulated one keeps one busy. One pytest process in each runs all tests in order and sends
reports, which are replayed here as though the tests had run here: -x, -k, --lf, --junitxml and the
closing line see nothing else.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from dmcopy.errors import DmcopyError
from dmcopy.testing.reporter import WARNING, Lines

DISK_SIZE: Final = "256M"
DISK_SERIALS: Final = ("a", "b", "c", "d")
_FINISH_SECONDS: Final = 10.0
_LAST_WORDS: Final = 4000
_PASSED_ON: Final = ("DMCOPY_TEST", "DMCOPY_SEED", "PYTEST_ADDOPTS")


class GuestItem(pytest.Item):
    """A test as it is run by one kernel."""

    def __init__(self, *, original: pytest.Item, kernel: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.original = original
        self.kernel = kernel
        self.own_markers = list(original.own_markers)
        for marker in self.own_markers:
            self.keywords[marker.name] = marker
        if self.config.pluginmanager.hasplugin("timeout"):
            # The test's own limit holds in the guest; here it would count the boot as well.
            self.add_marker(pytest.mark.timeout(0))

    def runtest(self) -> None:
        raise AssertionError("a guest runs this")  # pragma: no cover

    def reportinfo(self) -> tuple[os.PathLike[str] | str, int | None, str]:
        path, line, name = self.original.reportinfo()
        return path, line, name.removesuffix(self.original.name) + self.name


class Guests:
    """The plugin behind `--vm`: multiplies the tests, boots the guests, replays the reports."""

    def __init__(self, config: pytest.Config, kernels: str) -> None:
        self._config = config
        self._disks = [(DISK_SIZE, serial) for serial in DISK_SERIALS]
        self._kernels = [word.strip() for word in kernels.split(",")]
        if not all(self._kernels):
            raise pytest.UsageError("--vm: give one or more kernels, as in --vm 6.1,6.12")
        self._runs: dict[str, GuestRun] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        marked = [item for item in items if _in_guests(item)]
        others = [item for item in items if not _in_guests(item)]
        # After the others, and kernel by kernel, so that the reports read well.
        dealt = list(zip(marked, self._deal(marked), strict=True))
        items[:] = others + [
            self._item(original, kernel)
            for kernel in self._kernels
            for original, kernels in dealt
            if kernel in kernels
        ]

    def _deal(self, marked: Sequence[pytest.Item]) -> Iterator[Sequence[str]]:
        """Yield the kernels of each test."""
        turns = itertools.cycle(self._kernels)
        for item in marked:
            yield [next(turns)] if _either(item) else self._kernels

    def _item(self, original: pytest.Item, kernel: str) -> GuestItem:
        label = Path(kernel).name
        name = original.name
        name = f"{name[:-1]}-{label}]" if name.endswith("]") else f"{name}[{label}]"
        assert original.parent is not None  # only the session has none
        nodeid = f"{original.parent.nodeid}::{name}"  # in full: --lf compares ids by their parts
        item: GuestItem = GuestItem.from_parent(
            original.parent, name=name, nodeid=nodeid, original=original, kernel=kernel
        )
        return item

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> bool | None:
        if not isinstance(item, GuestItem):
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self._run_of(item).reports(item):
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        if not (isinstance(nextitem, GuestItem) and nextitem.kernel == item.kernel):
            self._runs[item.kernel].finish()
            self._runs[item.kernel].close()
        return True

    def _run_of(self, item: GuestItem) -> GuestRun:
        """Return the run of a test's kernel, and start as many of the following as can run."""
        kernels = self._kernels[self._kernels.index(item.kernel) :]
        for kernel in kernels[: os.cpu_count()]:
            if kernel not in self._runs:
                mine = [
                    other
                    for other in item.session.items
                    if isinstance(other, GuestItem) and other.kernel == kernel
                ]
                self._runs[kernel] = GuestRun(self._config, kernel, mine, self._disks)
        mine_now = self._runs[item.kernel]
        mine_now.others = [run for run in self._runs.values() if run is not mine_now]
        return mine_now

    def pytest_sessionfinish(self) -> None:
        for run in self._runs.values():
            run.close()


class GuestRun:
    """One guest, one pytest process in it, and the reports that have come so far.

    `others`: runs whose reports must be taken meanwhile, too.
    """

    others: Sequence[GuestRun] = ()

    def __init__(
        self,
        config: pytest.Config,
        kernel: str,
        items: Sequence[GuestItem],
        disks: Sequence[tuple[str, str]],
    ) -> None:
        from dmcopy import vm  # only a run with --vm pays for this import

        self._config = config
        self._kernel = kernel
        self._silence: float = config.getoption("--vm-silence")
        self._lines = Lines()
        self._reports: dict[str, list[dict[str, Any]]] = {}
        self._complaints: list[str] = []
        self._ended = ""
        self._guest: vm.Guest | None = None
        try:
            self._guest = vm.guest(
                kernel=kernel,
                disks=[vm.Disk(size, serial) for size, serial in disks],
                memory=config.getoption("--vm-memory"),
            )
            self._command = self._guest.start(
                self._argv(items),
                cwd=config.rootpath,
                env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
                stdout=self._take,
                stderr=self._lines.other.extend,
            )
        except DmcopyError as error:
            self._ended = str(error)

    def _argv(self, items: Sequence[GuestItem]) -> list[str]:
        option = self._config.getoption
        argv = [sys.executable, "-m", "pytest", "--vm-report", "-p", "no:cacheprovider", "-q"]
        argv += [
            f"--tb={option('tbstyle')}",
            f"--rootdir={self._config.rootpath}",
        ]
        if option("showlocals"):
            argv.append("--showlocals")
        if self._config.inipath is not None:
            argv += ["-c", str(self._config.inipath)]
        return [*argv, *(item.original.nodeid for item in items)]

    def reports(self, item: GuestItem) -> list[pytest.TestReport]:
        """Return the reports of one test once they are all there; a failure if they never come."""
        name = item.original.nodeid
        deadline = time.monotonic() + self._silence
        while not self._ended and not self._complete(name):
            before = len(self._reports)
            self.move(1.0)
            for other in self.others:
                other.move(0.0)
            if len(self._reports) > before:
                deadline = time.monotonic() + self._silence
            elif time.monotonic() > deadline:
                self._ended = f"no result from the guest for {self._silence:.0f} s"
        reports = [self._replayed(data, item) for data in self._reports.pop(name, [])]
        if not reports or reports[-1].when != "teardown":
            reports.append(self._lost(item))
        return reports

    def finish(self) -> None:
        """Let pytest in the guest end: the warnings of a test come after its last report."""
        deadline = time.monotonic() + _FINISH_SECONDS
        while not self._ended and time.monotonic() < deadline:
            self.move(1.0)

    def close(self) -> None:
        """End the guest. Nothing in it is worth a shutdown: its disks go with it."""
        if self._guest is not None:
            self._guest.kill()
            self._guest = None
        self._ended = self._ended or "the guest was closed"

    def _complete(self, name: str) -> bool:
        reports = self._reports.get(name, [])
        return bool(reports) and bool(reports[-1]["when"] == "teardown")

    def move(self, timeout: float) -> None:
        """Take what the guest has sent; wait at most `timeout` seconds for anything."""
        if self._ended or self._guest is None:
            return
        try:
            status = self._guest.poll(self._command, timeout)
        except DmcopyError as error:
            self._ended = str(error)
            return
        if status is not None:
            said = bytes(self._lines.other[-_LAST_WORDS:]).decode(errors="replace")
            said = "\n".join([*self._complaints, said]).strip()
            self._ended = f"pytest ended with {status} in the guest; it said:\n{said or 'nothing'}"

    def _take(self, data: bytes) -> None:
        for report in self._lines.feed(data):
            if report["$report_type"] == "TestReport":
                self._reports.setdefault(report["nodeid"], []).append(report)
            elif report["$report_type"] == WARNING:
                self._pass_on(report)
            else:
                self._complaints.append(_longrepr_text(report["longrepr"]))

    def _pass_on(self, data: dict[str, Any]) -> None:
        """Have a warning of the guest's pytest among those of this one."""
        warning = warnings.WarningMessage(
            UserWarning(data["text"]), UserWarning, data["filename"], data["lineno"]
        )
        self._config.hook.pytest_warning_recorded.call_historic(
            kwargs={
                "warning_message": warning,
                "when": "runtest",
                "nodeid": f"{data['nodeid']} in {self._kernel}",
                "location": None,
            }
        )

    def _replayed(self, data: dict[str, Any], item: GuestItem) -> pytest.TestReport:
        if isinstance(data["longrepr"], list):  # a skip's place and reason, which JSON made a list
            data["longrepr"] = tuple(data["longrepr"])
        report: pytest.TestReport = self._config.hook.pytest_report_from_serializable(
            config=self._config, data=data
        )
        report.nodeid = item.nodeid
        report.location = item.location
        report.sections = [(str(title), str(text)) for title, text in report.sections]
        return report

    def _lost(self, item: GuestItem) -> pytest.TestReport:
        return pytest.TestReport(
            nodeid=item.nodeid,
            location=item.location,
            keywords=dict.fromkeys(item.keywords, 1),
            outcome="failed",
            longrepr=f"not run to its end: {self._ended}",
            when="call",
        )


def _in_guests(item: pytest.Item) -> bool:
    if item.get_closest_marker("kernel") is not None:
        return True
    callspec = getattr(item, "callspec", None)
    return callspec is not None and callspec.params.get("dm_place") == "vm"


def _either(item: pytest.Item) -> bool:
    """Whether a test runs on one of the kernels only: as the innermost mark says that says it."""
    if os.environ.get("DMCOPY_TEST") == "long":
        return False
    said = (mark.kwargs.get("either") for mark in item.iter_markers("kernel"))
    return next((bool(word) for word in said if word is not None), False)


def _longrepr_text(longrepr: object) -> str:
    return str(longrepr.get("longrepr", longrepr)) if isinstance(longrepr, dict) else str(longrepr)
