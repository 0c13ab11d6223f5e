"""Around each test of block devices: a check that it leaves nothing, and facts for its report."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dmcopy.errors import DmcopyError
from dmcopy.ledger import Ledger
from dmcopy.mapper.kernel_log import KernelLog
from dmcopy.testing import facts
from dmcopy.testing.kit.leaks import Leaks

if TYPE_CHECKING:
    from dmcopy.testing.kit.kit import Kit
    from dmcopy.testing.kit.watchdog import Watchdog


class Keeper:
    """Is there from before the first device of a test until after the last."""

    watch: Watchdog | None = None

    def __init__(self, leaks: Leaks | None, log: KernelLog | None) -> None:
        self._leaks = leaks
        self._log = log
        self._said: list[str] = []
        self._left: list[str] = []
        self._kit: Kit | None = None

    def add(self, kit: Kit) -> None:
        """Have what a kit makes be no leak, and in the report."""
        self._kit = kit
        if self._leaks is not None:
            self._leaks.folders.append(kit.environment.folder)

    @contextlib.contextmanager
    def not_the_tests(self) -> Iterator[None]:
        """Have what is made in the block be no leak."""
        with self._leaks.apart() if self._leaks is not None else contextlib.nullcontext():
            yield

    def check(self) -> None:
        """Remove what the test has left, and note it for `tell`."""
        if self._leaks is None:
            return
        kit, self._kit = self._kit, None
        left = self._leaks.find(kit.words() if kit is not None else ())
        told = str(left)
        if told:
            failed = self._leaks.remove(left)
            if kit is not None:
                kit.patience = self._leaks.patience
            end = f"; not removed: {'; '.join(failed)}" if failed else "; it was removed"
            self._left.append(f"the test has left {told}{end}")

    def close(self, close: Callable[[], object]) -> None:
        """Remove the test's own devices by `close`, and note what cannot be, as in use by whom."""
        try:
            close()
        except DmcopyError as error:
            words = [str(error), *getattr(error, "__notes__", ())]
            self._left.append(f"a device of the test cannot be removed: {'; '.join(words)}")

    def tell(self) -> None:
        """Raise pytest's failure that tells what the test has left, if it has."""
        left, self._left = self._left, []
        if left:
            pytest.fail("\n".join(left), pytrace=False)

    def read_log(self) -> None:
        """Take what the kernel has logged: a report may be made after its log is closed."""
        if self._log is not None:
            self._said += [record.partition(";")[2] for record in self._log.records()]

    def describe(self, item: pytest.Item, report: pytest.TestReport) -> None:
        """Add to the report of a failure what happened below the test."""
        sections = report.sections
        if self.watch is not None and self.watch.said:
            sections.append(("a device hung", self.watch.said))
        self.read_log()
        if self._said:
            sections.append(("kernel log of the test", "\n".join(self._said)))
            self._said = []
        if self._kit is not None and self._kit.devices:
            sections.append(("devices of the test", facts.devices(self._kit)))
        machine = item.config.pluginmanager.getplugin("dmcopy-reporter")
        folder = getattr(item, "funcargs", {}).get("tmp_path")
        if machine is not None and folder is not None and report.when == "call":
            machine.send_files(item.nodeid, folder)
        if report.when != "teardown" and not item.config.getoption("--vm-report"):
            place = getattr(item, "callspec").params["dm_place"]  # noqa: B009
            sections.append(("run it alone", facts.alone(item.nodeid, f"--dm={place}")))


def in_guest() -> bool:
    """Whether this machine is a guest of dmcopy's, so that all that is new is the tests'."""
    return os.environ.get("DMCOPY_VM") == "1"


@contextlib.contextmanager
def nothing_left(request: pytest.FixtureRequest, place: str) -> Iterator[Keeper]:
    """Keep a test for the length of a `with` block, and check at its end that nothing is left."""
    folders = []
    if "tmp_path" in request.fixturenames:
        folders.append(Path(request.getfixturevalue("tmp_path")))
    leaks = None
    with contextlib.suppress(DmcopyError):  # where there is no place for a ledger, nothing is made
        leaks = Leaks(Ledger(), folders, alone=in_guest())
    log = None if place == "model" else KernelLog()
    keeper = Keeper(leaks, log)
    with log or contextlib.nullcontext():
        yield keeper
        try:
            keeper.check()
            keeper.tell()
        finally:
            keeper.read_log()
