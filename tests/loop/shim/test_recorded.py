"""What dmsetup printed on a kernel, byte for byte, of the same commands on the userspace engine.

The session is of dmsetup 1.02.185 on 6.12: one script, two runs, of which one is recorded. Numbers
and names of disks are mapped to those that they had on the kernel, and nothing else.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmcopy.shim import main
from dmcopy.shim.devices import Info
from dmcopy.shim.served import ServedDevices
from dmcopy.shim.tables import number_of
from tests.loop.conftest import LoopFactory
from tests.loop.export.here import Here, of_its_own
from tests.unit.shim.model import DISKS, MAJOR
from tests.unit.shim.test_session import FILES, recorded

pytestmark = pytest.mark.loop


class Renumbered(ServedDevices):
    """Devices by the numbers that a kernel gives them: 253 and the first minor that is free."""

    def __init__(self, disks: dict[str, str]) -> None:
        self._minors: dict[str, int] = {}
        self._disks = {
            (os.major(number), os.minor(number)): DISKS[name]
            for name, path in disks.items()
            for number in [os.stat(path).st_rdev]
        }
        self._numbers: dict[tuple[int, int], tuple[int, int]] = {}

    def infos(self) -> list[Info]:
        found = super().infos()
        names = {info.name for info in found}
        self._minors = {name: minor for name, minor in self._minors.items() if name in names}
        for info in found:
            free = set(range(99)) - set(self._minors.values())
            self._minors.setdefault(info.name, min(free))
        self._numbers = {info.number: (MAJOR, self._minors[info.name]) for info in found}
        self._numbers |= self._disks
        for info in found:
            info.number = info.major, info.minor = MAJOR, self._minors[info.name]
            info.deps = [self._numbers[number] for number in info.deps]
        return found

    def create(self, name: str, table: str | None, *, uuid: str, readonly: bool) -> None:
        super().create(name, table, uuid=uuid, readonly=readonly)
        self.infos()

    def rename(self, name: str, new: str) -> None:
        super().rename(name, new)
        self._minors[new] = self._minors.pop(name)

    def table(self, name: str, *, inactive: bool) -> list[str]:
        return [self._line(line) for line in super().table(name, inactive=inactive)]

    def _line(self, line: str) -> str:
        words = []
        for word in line.split(" "):
            number = self._numbers.get(number_of(word) or (0, 0))
            words.append(word if number is None else f"{number[0]}:{number[1]}")
        return " ".join(words)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Here]:
    monkeypatch.setenv("DMCOPY_RUNTIME_DIR", "")  # it is set again, and put back at the end
    with of_its_own() as found:
        yield found


def test_what_dmsetup_printed_on_a_kernel(
    here: Here,
    loops: LoopFactory,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    disks = dict(zip(DISKS, (loop.path for loop in loops(1 << 15, n=2)), strict=True))
    monkeypatch.chdir(here.folder)
    names = {number: path.removeprefix("/dev/") for path, number in DISKS.items()}
    names.update({(MAJOR, minor): f"dm-{minor}" for minor in range(99)})
    for module in ("show", "report", "tree"):
        monkeypatch.setattr(f"dmcopy.shim.{module}.block_name", lambda one: names.get(one, ""))
    monkeypatch.setattr(Info, "read_ahead", 256)

    def here_named(text: str) -> str:
        for name, path in disks.items():
            text = text.replace(name, path)
        return text

    for name, text in FILES.items():
        Path(name).write_text(here_named(text), encoding="utf-8")
    devices = Renumbered(disks)
    wrong = []
    for command, code, out, err in recorded():
        with open("FILE", encoding="utf-8") as stdin:
            monkeypatch.setattr("sys.stdin", stdin)
            got = main.run(shlex.split(here_named(command)), devices)
        printed = capfd.readouterr()
        said = "".join(
            line + "\n" for line in printed.err.splitlines() if not line.startswith("dmcopy: ")
        )
        for name, path in disks.items():
            said = said.replace(os.path.basename(path), os.path.basename(name))
        if (got, printed.out, said) != (code, out, err):
            wrong.append(f"$ dmsetup {command}\nwanted {(code, out, err)}")
            wrong.append(f"got    {(got, printed.out, said)}")
    main.run(["remove_all"], devices)
    main.run(["remove_all"], devices)
    assert not wrong, "\n".join(wrong)
