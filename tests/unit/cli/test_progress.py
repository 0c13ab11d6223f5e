"""What progress says: one unit in a line, the time that is left, and nothing that is not so."""

from __future__ import annotations

import pytest

from dmcopy.cli.progress import duration, in_one_unit, progress_line, speed
from dmcopy.transfer.events import Progress

GIB = 1 << 21
"""In sectors."""


@pytest.mark.parametrize(
    ("event", "says"),
    [
        (
            Progress("copy", GIB, 4 * GIB, (), 10),
            "copy: 25%, 1024 of 4096 MiB, 102.4 MiB/s, 30 s left",
        ),
        (
            Progress("copy", 3 * GIB, 4 * GIB, (), 1, 2 * GIB),
            "copy: 75%, 3 of 4 GiB, 1 GiB/s, 1 s left",
        ),
        (Progress("verify", 2 * GIB, 2 * GIB, (), 1), "verify: 100%, 2 of 2 GiB, 2 GiB/s"),
        (Progress("copy", 0, 2 * GIB, (), 3), "copy: 0%, 0 of 2 GiB"),
        (Progress("copy", GIB, GIB, (), 0.1, GIB), "copy: nothing to do"),
        (Progress("merge", 0, 0, (), 0), "merge: nothing to do"),
    ],
)
def test_a_line(event: Progress, says: str) -> None:
    assert progress_line(event) == says


def test_one_unit() -> None:
    assert in_one_unit(0, 1536, 1 << 30) == (["0", "1.5", "1048576"], "KiB")
    assert in_one_unit(0) == (["0"], "B")
    assert in_one_unit(0.3, 1 << 70)[1] == "PiB"


@pytest.mark.parametrize(
    ("seconds", "says"), [(0.4, "0 s"), (99, "99 s"), (150, "2 min"), (7200, "2.0 h")]
)
def test_a_time(seconds: float, says: str) -> None:
    assert duration(seconds) == says


def test_a_speed() -> None:
    assert speed(3 << 20, 0.5) == "3 MiB in 0.5 s, 6 MiB/s"
    assert speed(0, 0.5) == "nothing to do"
