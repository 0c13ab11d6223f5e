"""On the host: tests for guests become one item for each kernel, and a guest supplies the results.

Those marked `kernel(either=True)` become one item in all. In the order in which they were collected
each goes to the kernel that has least to do so far: so the same selection is always dealt in the
same way. A test costs 1, or what its mark says, as in `kernel(cost=20)`, which is about the seconds
that it takes in a guest; `kernel(cost={"6.12": 20})` is one that the other kernels skip. With one
kernel, and with $DMCOPY_TEST=long, all of them run on every one.

The guests boot when the first of these tests is due, as many side by side as there are processors:
an emulated one keeps one busy. Their reports are replayed here as though the tests had run here:
-x, -k, --lf, --junitxml and the closing line see nothing else.
"""

from __future__ import annotations

import base64
import functools
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from dmcopy.errors import DmcopyError
from dmcopy.testing import guest_settings, options
from dmcopy.testing.guest_run import GuestRun, GuestSettings, Lost, Report, Test

_NO_LIMIT: Final = 0.0


class GuestItem(pytest.Item):
    """A test as it is run by one kernel."""

    def __init__(self, *, original: pytest.Item, kernel: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.original = original
        self.kernel = kernel
        self.own_markers = list(original.own_markers)
        for marker in self.own_markers:
            self.keywords[marker.name] = marker
        self.limit = _NO_LIMIT
        if self.config.pluginmanager.hasplugin("timeout"):
            self.limit = options.time_limit(original)
            # The test's own limit holds in the guest; here it would count the boot as well.
            self.add_marker(pytest.mark.timeout(0), append=False)  # before the test's own

    def runtest(self) -> None:
        raise AssertionError("a guest runs this")  # pragma: no cover

    def reportinfo(self) -> tuple[os.PathLike[str] | str, int | None, str]:
        path, line, name = self.original.reportinfo()
        return path, line, name.removesuffix(self.original.name) + self.name


class Guests:
    """The plugin behind `--vm`: multiplies the tests, boots the guests, replays the reports."""

    def __init__(self, config: pytest.Config, kernels: str) -> None:
        self._config = config
        self._kernels = [word.strip() for word in kernels.split(",")]
        if not all(self._kernels):
            raise pytest.UsageError("--vm: give one or more kernels, as in --vm 6.1,6.12")
        self._worker = hasattr(config, "workerinput")
        self._alone = self._worker or options.provider(config) == "vagrant"
        self._runs: dict[str, GuestRun] = {}
        self._folder: guest_settings.DiskFolder | None = None

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
        load = dict.fromkeys(self._kernels, 0.0)
        for item in marked:
            kernels = [min(load, key=load.__getitem__)] if _either(item) else self._kernels
            for kernel in kernels:
                load[kernel] += _cost(item, kernel)
            yield kernels

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

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Say what lacks for the guests before anything runs."""
        kernels = dict.fromkeys(item.kernel for item in _guest_items(session))
        if not kernels or self._config.getoption("collectonly"):
            return
        try:
            guest_settings.check(session, kernels)
        except DmcopyError as error:
            raise pytest.UsageError(f"--vm: {error}") from None

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> bool | None:
        if not isinstance(item, GuestItem):
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self._reports(item, nextitem):
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        if not (isinstance(nextitem, GuestItem) and nextitem.kernel == item.kernel):
            self._runs[item.kernel].finish()
            if not self._worker:
                self._runs[item.kernel].close()
        return True

    def _reports(self, item: GuestItem, nextitem: pytest.Item | None) -> list[pytest.TestReport]:
        run = self._run_of(item)
        if self._worker:  # what comes after that is not known
            following = nextitem if isinstance(nextitem, GuestItem) else None
            same = following is not None and following.kernel == item.kernel
            next_id = following.original.nodeid if following is not None and same else ""
            run.ask([(item.original.nodeid, next_id)])
        result = run.result(item.original.nodeid)
        if isinstance(result, Lost):
            return [self._told(_lost(item, result), item)]
        return [self._told(self._replayed(data, item), item) for data in result]

    def _told(self, report: pytest.TestReport, item: GuestItem) -> pytest.TestReport:
        """Add to the report of a failure its files and how to run it alone."""
        if not report.failed or report.when == "teardown":
            return report
        from dmcopy.testing import facts

        nodeid = item.original.nodeid
        files = self._runs[item.kernel].files.pop(nodeid, None)
        if files:
            folder = self._keep_files(item, files)
            report.sections.append(("files of the test", f"{folder}: {', '.join(sorted(files))}"))
        words = [f"--vm={item.kernel}"]
        if options.provider(self._config) != options.PROVIDERS[0]:
            words.append(f"--vm-provider={options.provider(self._config)}")
        command = facts.alone(nodeid, *words)
        report.sections.append(("run it alone", command))
        return report

    def _keep_files(self, item: GuestItem, files: Mapping[str, str]) -> Path:
        """Write what a guest sent of a test's folder; return in which folder it is."""
        factory = self._config._tmp_path_factory  # type: ignore[attr-defined]
        folder: Path = factory.mktemp(re.sub(r"\W", "_", item.name)[:40])
        for name, data in files.items():
            path = folder / name
            if path.resolve().is_relative_to(folder.resolve()):  # a guest can send any name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(base64.b64decode(data))
        return folder

    def _run_of(self, item: GuestItem) -> GuestRun:
        """Return the run of a test's kernel, and start as many of the following as can run."""
        kernels = self._kernels[self._kernels.index(item.kernel) :]
        for kernel in kernels[: 1 if self._alone else os.cpu_count()]:
            if kernel not in self._runs:
                mine = [one for one in _guest_items(item.session) if one.kernel == kernel]
                tests = [Test(one.original.nodeid, one.limit) for one in mine]
                warned = functools.partial(self._warned, kernel)
                run = GuestRun(self._settings(kernel, mine), tests, warned)
                self._runs[kernel] = run
                if not self._worker and tests:
                    ids = [test.nodeid for test in tests]
                    run.ask(list(zip(ids, [*ids[1:], ""], strict=True)))
        mine_now = self._runs[item.kernel]
        mine_now.others = [run for run in self._runs.values() if run is not mine_now]
        return mine_now

    def _settings(self, kernel: str, items: Sequence[GuestItem]) -> GuestSettings:
        if self._folder is None:
            self._folder = guest_settings.DiskFolder()
        originals = [item.original for item in items]
        return guest_settings.settings(self._config, kernel, originals, self._folder.path)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        for kernel, run in self._runs.items():
            run.finish()
            run.close()
            if run.machine:
                self._config.stash[options.MACHINES][f"vm {kernel}"] = run.machine
        if self._folder is not None:
            self._folder.close()

    def _warned(self, kernel: str, data: Report) -> None:
        """Have a warning of the guest's pytest among those of this one."""
        warning = warnings.WarningMessage(
            UserWarning(data["text"]), UserWarning, data["filename"], data["lineno"]
        )
        self._config.hook.pytest_warning_recorded.call_historic(
            kwargs={
                "warning_message": warning,
                "when": "runtest",
                "nodeid": f"{data['nodeid']} in {kernel}",
                "location": None,
            }
        )

    def _replayed(self, data: Report, item: GuestItem) -> pytest.TestReport:
        if isinstance(data["longrepr"], list):  # a skip's place and reason, which JSON made a list
            data["longrepr"] = tuple(data["longrepr"])
        report: pytest.TestReport = self._config.hook.pytest_report_from_serializable(
            config=self._config, data=data
        )
        report.nodeid = item.nodeid
        report.location = item.location
        report.sections = [(str(title), str(text)) for title, text in report.sections]
        return report


def _lost(item: GuestItem, lost: Lost) -> pytest.TestReport:
    return pytest.TestReport(
        nodeid=item.nodeid,
        location=item.location,
        keywords=dict.fromkeys(item.keywords, 1),
        outcome="failed",
        longrepr=f"not run to its end: {lost.why}",
        when="call",
        sections=[("the guest's console during the test", lost.console)] if lost.console else [],
    )


def _guest_items(session: pytest.Session) -> list[GuestItem]:
    return [item for item in session.items if isinstance(item, GuestItem)]


def _in_guests(item: pytest.Item) -> bool:
    if item.get_closest_marker("kernel") is not None:
        return True
    callspec = getattr(item, "callspec", None)
    return callspec is not None and callspec.params.get("dm_place") == "vm"


def _either(item: pytest.Item) -> bool:
    """Whether a test runs on one of the kernels only: as the innermost mark says that says it."""
    if os.environ.get("DMCOPY_TEST") == "long":
        return False
    return bool(_said(item, "either", False))


def _cost(item: pytest.Item, kernel: str) -> float:
    """Return what a test costs a kernel, as the innermost mark says that says it."""
    cost = _said(item, "cost", 1)
    return float(cost.get(Path(kernel).name, 0) if isinstance(cost, Mapping) else cost)


def _said(item: pytest.Item, word: str, default: object) -> Any:
    said = (mark.kwargs.get(word) for mark in item.iter_markers("kernel"))
    return next((value for value in said if value is not None), default)
