"""Other programs."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator

import pytest

from dmcopy.block import tools
from dmcopy.errors import UsageError
from dmcopy.mapper.dmsetup import Dmsetup


@pytest.fixture
def _children_are_ignored() -> Iterator[None]:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGCHLD, before)


@pytest.mark.usefixtures("_children_are_ignored")
@pytest.mark.parametrize(
    "call",
    [lambda: tools.run(["false"], timeout=60), lambda: Dmsetup().run("remove", "gone")],
    ids=["tools", "dmsetup"],
)
def test_no_failure_is_taken_for_success_where_nobody_is_told_of_it(
    call: Callable[[], object],
) -> None:
    """subprocess has 0 for each program then."""
    with pytest.raises(UsageError, match="ignores SIGCHLD"):
        call()
