"""Both engines, kept for all tests of a file."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.udevd import without_udevd

from .races import PROPERTY, Ledger
from .sides import KernelSide, UserSide

Pair = tuple[UserSide, KernelSide]
ledger = Ledger(Path(__file__).parents[3] / "build" / "mirror-workloads-again.jsonl")


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
    with without_udevd():
        yield from _sides(tmp_path_factory.mktemp("mirror") / "ledger.jsonl")


def _sides(ledger: Path) -> Iterator[Pair]:
    folder = Path("/dev/shm") / f"dmcopy-mirror-{os.getpid()}"
    for name in ("user", "kernel"):
        (folder / name).mkdir(parents=True)
    sides = UserSide(folder / "user"), KernelSide(folder / "kernel", ledger)
    yield sides
    for side in sides:
        side.close()
    for name in ("user", "kernel", "."):
        (folder / name).rmdir()
