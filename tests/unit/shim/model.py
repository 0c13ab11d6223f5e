"""The devices of a kernel that does no I/O: numbers, tables and states, for what is printed."""

# ruff: noqa: ARG002

from __future__ import annotations

import errno
from dataclasses import dataclass

from dmcopy.shim.devices import Info, Refused

MAJOR = 253
DISKS = {"/dev/vda": (254, 0), "/dev/vdb": (254, 16)}
TARGETS = {"zero": [1, 2, 0], "linear": [1, 4, 0], "error": [1, 7, 0]}

NO_STATS = (
    "n: cannot send it a message: Operation not supported; the userspace engine counts no I/O"
)


@dataclass
class _Device:
    minor: int
    uuid: str = ""
    readonly: bool = False
    live: list[str] | None = None
    loaded: list[str] | None = None
    suspended: bool = True
    deferred: bool = False
    events: int = 0


class Model:
    """See `dmcopy.shim.devices.Devices`."""

    def __init__(self) -> None:
        self.devices: dict[str, _Device] = {}

    def infos(self) -> list[Info]:
        return [
            Info(
                name,
                (MAJOR, one.minor),
                uuid=one.uuid,
                opened=sum(f"{MAJOR}:{one.minor}" in str(two.live) for two in self._all()),
                segments=len(one.live or []),
                events=one.events,
                suspended=one.suspended,
                readonly=one.readonly,
                live=one.live is not None,
                inactive=one.loaded is not None,
                deferred=one.deferred,
                deps=self._deps(one),
            )
            for name, one in sorted(self.devices.items())
        ]

    def table(self, name: str, *, inactive: bool) -> list[str]:
        one = self._get(name)
        return list((one.loaded if inactive else one.live) or [])

    def status(self, name: str, *, flush: bool) -> list[str]:
        return [" ".join(line.split()[:3]) for line in self._get(name).live or []]

    def targets(self) -> dict[str, list[int]]:
        return TARGETS

    def create(self, name: str, table: str | None, *, uuid: str, readonly: bool) -> None:
        taken = {one.minor for one in self._all()}
        made = _Device(min(set(range(99)) - taken), uuid)
        if table is not None:
            made.live, made.readonly, made.suspended = self._parsed(table), readonly, False
        self.devices[name] = made

    def load(self, name: str, table: str, *, readonly: bool) -> None:
        self._get(name).loaded = self._parsed(table)

    def clear(self, name: str) -> None:
        self._get(name).loaded = None

    def suspend(self, name: str, *, flush: bool, lockfs: bool) -> None:
        self._get(name).suspended = True

    def resume(self, name: str, *, flush: bool, lockfs: bool) -> None:
        one = self._get(name)
        one.live, one.loaded = one.loaded or one.live, None
        one.suspended = False

    def remove(self, name: str, *, deferred: bool) -> None:
        one = self._get(name)
        if any(info.name == name and info.opened for info in self.infos()):
            if not deferred:
                raise Refused(errno.EBUSY)
            one.deferred = True
            return
        del self.devices[name]
        for other, two in list(self.devices.items()):
            if two.deferred:
                self.remove(other, deferred=True)

    def rename(self, name: str, new: str) -> None:
        self._unique(new)
        self.devices[new] = self.devices.pop(name)
        self.devices[new].events += 1

    def set_uuid(self, name: str, uuid: str) -> None:
        self._unique(uuid)
        one = self._get(name)
        if one.uuid:
            raise Refused(errno.EINVAL)
        one.uuid = uuid
        one.events += 1

    def message(self, name: str, sector: int, text: str) -> str:
        self._get(name)
        if text.startswith("@stats_"):
            raise Refused(errno.EOPNOTSUPP, NO_STATS)
        raise Refused(errno.EINVAL)  # as of targets that take none

    def wait(self, name: str, event: int) -> None:
        self._get(name)

    def _all(self) -> list[_Device]:
        return list(self.devices.values())

    def _get(self, name: str) -> _Device:
        if name not in self.devices:
            raise Refused(errno.ENXIO)
        return self.devices[name]

    def _unique(self, word: str) -> None:
        if word in self.devices or any(word == one.uuid for one in self._all()):
            raise Refused(errno.EBUSY)

    def _deps(self, one: _Device) -> list[tuple[int, int]]:
        words = [word for line in one.live or [] for word in line.split() if ":" in word]
        pairs = [word.split(":") for word in words]
        return [(int(major), int(minor)) for major, minor in dict.fromkeys(map(tuple, pairs))]

    def _parsed(self, table: str) -> list[str]:
        lines, end = [], 0
        for line in table.splitlines():
            start, length, target, *words = line.split()
            if int(start) != end or length == "0" or target not in TARGETS:
                raise Refused(errno.EINVAL)
            if len(words) != 2 * (target == "linear") or int(length) > 1 << 20:
                raise Refused(errno.EINVAL)
            if words and not words[1].isdecimal():
                raise Refused(errno.EINVAL)
            end += int(length)
            lines.append(" ".join([start, length, target, *map(self._number, words)]))
        return lines

    def _number(self, word: str) -> str:
        one = self.devices.get(word.removeprefix("/dev/mapper/"))
        number = DISKS.get(word, (MAJOR, one.minor) if one else None)
        return word if number is None else f"{number[0]}:{number[1]}"
