"""What dmsetup printed on a kernel, byte for byte, of the same commands on the userspace engine.

The session is of dmsetup 1.02.185 on 6.12: one script, two runs, of which one is recorded. Numbers
and names of disks are mapped to those that they had on the kernel, and nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from dmcopy.shim import main
from tests.loop.conftest import LoopFactory
from tests.loop.export.here import Here, of_its_own
from tests.loop.shim.renumbered import Renumbered
from tests.unit.shim.model import DISKS
from tests.unit.shim.recorded import SESSIONS, Said, by_shim, unlike, write_files

pytestmark = pytest.mark.loop


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Here]:
    monkeypatch.setenv("DMCOPY_RUNTIME_DIR", "")  # it is set again, and put back at the end
    with of_its_own() as found:
        yield found


@pytest.mark.parametrize("session", SESSIONS)
def test_what_dmsetup_printed_on_a_kernel(
    session: str,
    here: Here,
    loops: LoopFactory,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    disks = dict(zip(DISKS, (loop.path for loop in loops(1 << 15, n=2)), strict=True))
    monkeypatch.chdir(here.folder)

    def here_named(text: str) -> str:
        for name, path in disks.items():
            text = text.replace(name, path)
        return text

    write_files(here_named)
    devices = Renumbered(disks)
    shim = by_shim(devices, monkeypatch, capfd)

    def play(command: str) -> Said:
        said = shim(here_named(command))
        for name, path in disks.items():
            said = said._replace(err=said.err.replace(os.path.basename(path), name[5:]))
        return said

    wrong = unlike(session, play)
    main.run(["remove_all"], devices)
    main.run(["remove_all"], devices)
    assert not wrong, wrong
