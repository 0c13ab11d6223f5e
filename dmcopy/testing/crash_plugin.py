"""Fixtures that look for the rare: `crash_explorer`, `weaken`, `workload`, `compare`.

    def test_a_commit_is_there_or_not(crash_explorer):
        crash_explorer(run, check)              # a power cut at every moment of run

    def test_my_snapshot_is_the_kernels(workload):
        workload(range(20), instead={"snapshot": "my-snapshot"})

Each failure has the line that repeats it alone: `DMCOPY_CRASH=17-12 pytest …`, `DMCOPY_SEED=7 …`.
A run ends with the states of `dmcopy.testing.sometimes` that it never reached.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from dmcopy.testing.explorer import Explored
    from dmcopy.testing.steps import Step
    from dmcopy.testing.weaken import Weakened

_SOMETIMES: Final = "dmcopy.testing.sometimes"


@pytest.fixture
def crash_explorer(request: pytest.FixtureRequest) -> Callable[..., Explored]:
    """`crash_explorer(run, check, disks, …)`: see `dmcopy.testing.explorer.explore`."""
    from dmcopy.testing.explorer import explore

    again = f"DMCOPY_CRASH={{cut}} {_this_test(request)}"
    return functools.partial(explore, cut=os.environ.get("DMCOPY_CRASH"), again=again)


@pytest.fixture
def weaken() -> Callable[..., list[Weakened]]:
    """`weaken(run, check, disks, …)`: see `dmcopy.testing.weaken.weaken`."""
    from dmcopy.testing.weaken import weaken

    return weaken


@pytest.fixture
def workload(request: pytest.FixtureRequest) -> Callable[..., int]:
    """`workload(seeds, depth=1, …)`: histories of snapshots on two engines.

    Other keywords are `patience`, the seconds that engines which differ have to become the same,
    and those of `dmcopy.testing.compare.pair`; by default both engines are in userspace.
    Returns how many histories were played. Raises DifferenceError.
    """
    from dmcopy.testing.compare import DifferenceError
    from dmcopy.testing.playing import play_workload

    def play(seeds: Iterable[int], *, depth: int = 1, length: int = 20, **options: Any) -> int:
        forced = os.environ.get("DMCOPY_SEED")
        chosen = [int(forced)] if forced else list(seeds)
        for seed in chosen:
            try:
                play_workload(seed, depth=depth, length=length, **options)
            except DifferenceError as error:
                error.add_note(f"this history alone: DMCOPY_SEED={seed} {_this_test(request)}")
                raise
        return len(chosen)

    return play


@pytest.fixture
def compare() -> Callable[..., None]:
    """`compare(steps, disks, …)`: see `dmcopy.testing.compare.pair`. Raises DifferenceError."""
    from dmcopy.testing.compare import Comparison, pair

    def play(steps: Iterable[Step], disks: dict[str, int], **options: Any) -> None:
        with pair(disks, **options) as (one, other):
            Comparison(one, other).play(steps)

    return play


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of pytest-xdist hands over what it reached."""
    module = sys.modules.get(_SOMETIMES)
    if module is not None and hasattr(session.config, "workeroutput"):
        states: dict[str, int] = dict.fromkeys(module.known(), 0) | module.reached()
        session.config.workeroutput[_SOMETIMES] = states


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take what a worker of pytest-xdist reached."""
    if states := getattr(node, "workeroutput", {}).get(_SOMETIMES):
        from dmcopy.testing import sometimes

        sometimes.add(states)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the states that were never reached."""
    if terminalreporter.config.option.collectonly:
        return
    module = sys.modules.get(_SOMETIMES)
    if module is not None and (missing := module.never_reached()):
        terminalreporter.section("states that were never reached")
        for text in missing:
            terminalreporter.line(f"never: {text}")


def _this_test(request: pytest.FixtureRequest) -> str:
    return f"pytest '{request.node.nodeid}'"
