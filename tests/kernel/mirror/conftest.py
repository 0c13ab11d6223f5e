"""Both engines, kept for all tests of a file."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmcopy.mapper.userspace import UserMapper
from dmcopy.testing.disks import Disks
from dmcopy.testing.mirrors import DISKS
from tests.kernel.udevd import without_udevd

from .races import PROPERTY, Ledger
from .sides import KernelSide, UserSide

Pair = tuple[UserSide, KernelSide]
ledger = Ledger(Path(__file__).parents[3] / "build" / "mirror-workloads-again.jsonl")


def pytest_collection_finish(session: pytest.Session) -> None:
    """On the host of guests: play our half of the workloads, which takes a guest half its time."""
    if "DMCOPY_SEED" in os.environ or session.config.getoption("collectonly"):
        return
    originals = (getattr(item, "original", None) for item in session.items)
    name = "test_both_engines_do_the_same"
    if mine := [one for one in originals if one is not None and one.originalname == name]:
        mine[0].module.note_ours(mine)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note which workloads were run again, on the host: it is what the guests report."""
    for name, values in report.user_properties if report.when == "call" else ():
        if name == PROPERTY and "--vm-report" not in sys.argv:
            ledger.add(values)  # type: ignore[arg-type]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell how many that were."""
    if lines := ledger.lines():
        terminalreporter.section("mirror workloads")
        for line in lines:
            terminalreporter.line(line)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Our engine and the kernel."""
    folder = Path("/dev/shm") / f"dmcopy-mirror-{os.getpid()}"
    notes = tmp_path_factory.mktemp("mirror") / "ledger.jsonl"
    with without_udevd():
        disks = [Disks(folder / name, DISKS, loops=True) for name in ("user", "kernel")]
        sides = UserSide(disks[0], UserMapper()), KernelSide(disks[1], notes)
        yield sides
        for side in sides:
            side.close()
    folder.rmdir()
