"""One list of commands, twice: by dmsetup on the kernel, and by the shim on our engine.

`tests/unit/shim/seldom.txt` goes down dmsetup(8). What both print is there, and the places where
the shim declares to differ; it was recorded on 6.12, and is the same on 6.1. `tests/loop/shim` has
the shim's half, too, in each run of the tests.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmcopy.shim import main
from tests.kernel.programs import run
from tests.loop.export.here import Here, of_its_own
from tests.loop.shim.renumbered import Renumbered
from tests.unit.shim.model import DISKS
from tests.unit.shim.recorded import Said, by_shim, unlike, write_files

pytestmark = [
    pytest.mark.kernel(either=True),
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.environ.get("DMCOPY_TEST") != "long", reason="minutes: only with --long"),
]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Here]:
    run("modprobe", "--all", "fuse", "loop")
    monkeypatch.setenv("DMCOPY_RUNTIME_DIR", "")  # it is set again, and put back at the end
    with of_its_own() as found:
        yield found


def by_dmsetup(command: str) -> Said:
    with open("FILE", encoding="utf-8") as stdin:
        done = subprocess.run(
            ["dmsetup", *shlex.split(command)],
            stdin=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )
    return Said(done.returncode, done.stdout, done.stderr)


@pytest.mark.usefixtures("here")
def test_dmsetup_on_the_kernel_and_the_shim_on_our_engine(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_files()
    wrong = unlike("seldom", by_dmsetup, shim=False)
    assert not wrong, wrong
    devices = Renumbered({name: name for name in DISKS})
    wrong = unlike("seldom", by_shim(devices, monkeypatch, capfd))
    main.run(["remove_all"], devices)
    assert not wrong, wrong
