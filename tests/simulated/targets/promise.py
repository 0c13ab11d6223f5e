"""What a device owes to those who wrote to it: the contents that a power cut may leave.

Every sector of these simulations holds one number, its version, 64 times over. A sector that was
flushed must hold what it held then, or anything that was written to it later.
"""

from __future__ import annotations

import itertools

from dmcopy.units import SECTOR_SIZE

_WORDS = SECTOR_SIZE // 8


class Promise:
    """The versions that each sector may have after a power cut, and `now`, those it has."""

    def __init__(self, versions: list[int]) -> None:
        self.now = versions[:]
        self._floor = versions[:]
        self._later: dict[int, list[int]] = {}
        self._flying: dict[int, int] = {}

    def copy(self) -> Promise:
        """Return one that continues by itself, for what is made of this device."""
        twin = Promise(self.now)
        twin._floor = self._floor[:]
        twin._later = {sector: versions[:] for sector, versions in self._later.items()}
        return twin

    def is_free(self, sector: int, count: int) -> bool:
        """Whether no write to these sectors is in flight: the order of two would be anyone's."""
        return not any(one in self._flying for one in range(sector, sector + count))

    def start(self, sector: int, versions: list[int]) -> None:
        """A write was submitted."""
        for offset, version in enumerate(versions):
            self._flying[sector + offset] = version

    def finish(self, sector: int, versions: list[int]) -> None:
        """A write completed."""
        for offset, version in enumerate(versions):
            del self._flying[sector + offset]
            self.now[sector + offset] = version
            self._later.setdefault(sector + offset, []).append(version)

    def mark(self) -> dict[int, int]:
        """Return what a flush that is submitted now makes durable."""
        return {sector: versions[-1] for sector, versions in self._later.items()}

    def flushed(self, mark: dict[int, int]) -> None:
        """A flush completed that was submitted at `mark`."""
        for sector, version in mark.items():
            later = self._later.get(sector, [])
            if version in later:
                self._floor[sector] = version
                del later[: later.index(version) + 1]
                if not later:
                    del self._later[sector]

    def broken_by(self, versions: list[int]) -> str:
        """Return how what was read after a power cut breaks the promise; '' if it does not."""
        if versions == self._floor:
            return ""
        for sector, (version, floor) in enumerate(zip(versions, self._floor, strict=True)):
            if version == floor:
                continue
            allowed = [floor, *self._later.get(sector, []), self._flying.get(sector, floor)]
            if version not in allowed:
                return f"sector {sector} holds {version}, and may hold {sorted(set(allowed))}"
        return ""


def numbers(content: bytes | bytearray) -> list[int]:
    """Return the version in each sector; a sector of mixed ones raises AssertionError."""
    found, last = ends(content)
    assert last == found, "a sector is torn"
    return found


def ends(content: bytes | bytearray) -> tuple[list[int], list[int]]:
    """Return the first and the last number of each sector: the same, where it is not torn."""
    words = memoryview(content).cast("Q")
    return words[::_WORDS].tolist(), words[_WORDS - 1 :: _WORDS].tolist()


def fill(versions: list[int]) -> bytes:
    """Return the content of sectors that hold these versions."""
    pieces = (version.to_bytes(8, "little") * _WORDS for version in versions)
    return b"".join(itertools.chain(pieces))
