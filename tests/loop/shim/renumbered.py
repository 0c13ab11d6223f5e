"""The devices of the device server by the numbers that a kernel gives them."""

from __future__ import annotations

import os

from dmcopy.shim.devices import Info
from dmcopy.shim.served import ServedDevices
from dmcopy.shim.tables import number_of
from tests.unit.shim.model import DISKS, MAJOR


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
