"""What progress says: one unit in a line, the time that is left, and nothing that is not so."""

from __future__ import annotations

import json
import os
import signal

import pytest

from dmcopy.cli.progress import (
    WorkflowProgress,
    duration,
    following,
    in_one_unit,
    progress_line,
    speed,
)
from dmcopy.cli.signals import handled
from dmcopy.transfer.events import Progress
from tests.schemas import validator

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


def test_a_workflow_is_followed_as_a_copy_is(capsys: pytest.CaptureFixture[str]) -> None:
    def report(done: int) -> WorkflowProgress:
        line = f"home: {done} of 10"
        speed = (1.0, 2.04, (10 - done) / 2.04)
        return WorkflowProgress("resync", "home", done, 10, *speed, line, {"regions": 10})

    said = {}
    for how in ("none", "plain", "json", "bar"):
        with handled(), following(how, report) as observer:
            os.kill(os.getpid(), signal.SIGUSR1)
            observer(3)
            observer(4)
        said[how] = capsys.readouterr().err
    assert said["none"] == said["plain"] == "home: 3 of 10\n"
    shape = {"event": "progress", "phase": "resync", "name": "home", "total": 10, "regions": 10}
    assert [json.loads(line) for line in said["json"].splitlines()] == [
        shape | {"sectors": 3, "seconds": 1.0, "rate": 2.0, "seconds_left": 3.4},
        shape | {"sectors": 4, "seconds": 1.0, "rate": 2.0, "seconds_left": 2.9},
    ]
    for line in said["json"].splitlines():
        validator("progress").validate(json.loads(line))
    assert "home: 3 of 10" in said["bar"]
    assert "home: 4 of 10" not in said["bar"]
