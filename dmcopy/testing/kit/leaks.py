"""What a test has left behind: found, removed, and told; nothing that is another's is touched.

Ours is what was made since the test began, and either is in the ledger by this process or one
that has ended, or lies on a disk of the test, or has its file or mount point in the test's folder.
In a guest there is only the test: all that is new is ours.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dmcopy.block import processes, sysfs, tools
from dmcopy.block.mounts import Mount, parse_mountinfo
from dmcopy.errors import DmcopyError
from dmcopy.ledger import Ledger, LedgerEntry, alive, identity
from dmcopy.mapper import cookies
from dmcopy.mapper.cookies import Cookie
from dmcopy.mapper.names import unmangle
from dmcopy.testing.kit.removal import PATIENCE_SECONDS, cut_loose, patiently

if TYPE_CHECKING:
    from dmcopy.mapper.kernel import KernelMapper

_BLOCK: Final = Path("/sys/block")
_SECONDS: Final = 120.0
# What programs and the kernel mount there at a first use stays, by their intent: `ip netns add`
# (a tmpfs for the names of all network namespaces), modprobe configfs, an automount of tracefs.
_MACHINES: Final = re.compile(r"/run/netns|/(?:proc|sys)/.*", re.DOTALL)


@dataclass(frozen=True)
class Present:
    """What there is on this machine: disks are names below /sys/block."""

    devices: dict[str, str]
    loops: frozenset[str]
    mounts: tuple[Mount, ...]
    cookies: tuple[Cookie, ...] = ()

    @classmethod
    def now(cls) -> Present:
        """Look, without a call of dmsetup; three times for each test, so without a Path, too."""
        devices: dict[str, str] = {}
        loops: set[str] = set()
        block = str(_BLOCK)
        for disk in sysfs.entries(block):
            if disk.startswith("dm-") and (name := sysfs.read(f"{block}/{disk}/dm/name")):
                devices[disk] = unmangle(name)
            elif disk.startswith("loop") and os.path.isdir(f"{block}/{disk}/loop"):
                loops.add(disk)
        mounts = _mounts(sysfs.read(f"{sysfs.LIVE.proc}/self/mountinfo"))
        return cls(devices, frozenset(loops), mounts, tuple(cookies.present()))


@dataclass
class Left:
    """What a test has left: each with the words that tell of it."""

    mounts: list[Mount] = field(default_factory=list)
    servers: list[LedgerEntry] = field(default_factory=list)
    cookies: list[LedgerEntry] = field(default_factory=list)
    semaphores: list[Cookie] = field(default_factory=list)
    devices: dict[str, str] = field(default_factory=dict)
    loops: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        words = [f"{mount.source} mounted on {mount.point}" for mount in self.mounts]
        words += [f"the server {one.name} (process {one.uuid.split()[0]})" for one in self.servers]
        words += [f"the mapped device {name}" for name in self.devices.values()]
        words += [f"/dev/{loop} of {_file_of(loop)}" for loop in self.loops]
        words += [f"the cookie of udev's {one.name}" for one in self.cookies]
        words += [f"the cookie of udev's {one.option}" for one in self.semaphores]
        return ", ".join(words)


class Leaks:
    """Looks for what a test leaves. `folders`: its own; `alone`: nothing else works here."""

    def __init__(self, ledger: Ledger, folders: Iterable[Path], *, alone: bool) -> None:
        self.folders = list(folders)
        self._ledger = ledger
        self._alone = alone
        self._before = Present.now()
        self._noted = _state(ledger)
        self.patience = PATIENCE_SECONDS
        self._began = round(time.time(), 3)  # as the ledger notes it

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """Count devices that are made in the block as there before."""
        begun = Present.now()
        yield
        now, before = Present.now(), self._before
        new = {disk: name for disk, name in now.devices.items() if disk not in begun.devices}
        self._before = Present(
            {**before.devices, **new},
            before.loops | (now.loops - begun.loops),
            (*before.mounts, *(one for one in now.mounts if one not in begun.mounts)),
            (*before.cookies, *(one for one in now.cookies if one not in begun.cookies)),
        )

    def find(self, kept: Iterable[str] = ()) -> Left:
        """Return what is left. `kept`: nodes of what is to be there still, and is ours."""
        before, now = self._before, Present.now()
        known = {os.path.basename(os.path.realpath(node)) for node in kept if node}
        entries = self._entries()
        noted = {entry.name for entry in entries}
        left = Left()
        loops = now.loops - before.loops - known
        left.loops = sorted(
            loop
            for loop in loops
            if (self._alone and not _clears_itself(loop))
            or f"/dev/{loop}" in noted
            or self._is_inside(_file_of(loop))
        )
        new = {disk: name for disk, name in now.devices.items() if disk not in before.devices}
        ours = known | set(left.loops)
        for disk in _bottom_up(new):
            if disk in known:
                continue
            if self._alone or new[disk] in noted or ours & _below(disk):
                left.devices[disk] = new[disk]
                ours.add(disk)
        numbers = {_number(disk) for disk in ours}
        for mount in () if now.mounts is before.mounts else now.mounts:
            number = f"{mount.devno[0]}:{mount.devno[1]}"
            if mount in before.mounts or mount.fstype.startswith("fuse.dmcopy"):
                continue
            if mount.devno[0] == 0 and _MACHINES.fullmatch(mount.point):
                continue
            if number in numbers or self._alone or self._is_inside(mount.point):
                left.mounts.insert(0, mount)
        left.servers = [one for one in entries if one.kind == "server" and alive(one.uuid)]
        left.cookies = [one for one in entries if one.kind == "cookie"]
        if self._alone:
            known = {one.name for one in left.cookies}
            new_ones = (one for one in now.cookies if one not in before.cookies)
            left.semaphores = [one for one in new_ones if one.option not in known]
        return left

    def remove(self, left: Left) -> list[str]:
        """Remove it; return what could not be, a phrase each. What hangs is cut loose first.

        `patience` is then for how many seconds what was below it may be in use without a user that
        can be named: none, where processes have files of what was mounted there.
        """
        from dmcopy.mapper.kernel import KernelMapper

        failed: list[str] = []
        users: set[int] = set()
        mapper = KernelMapper(ledger=self._ledger)
        for name in left.devices.values():
            _try(failed, functools.partial(cut_loose, mapper, name))
        for mount in left.mounts:
            users.update(processes.below(mount.point))  # which nothing tells of after that
            done = tools.run(["umount", "--lazy", "--", mount.point], timeout=_SECONDS)
            failed += [done.stderr.strip()] if done.returncode else []
        failed += [f"process {pid} ({processes.command(pid)}) has a file open" for pid in users]
        if users:
            self.patience = 0.0
        for name in reversed(left.devices.values()):
            remove = functools.partial(_remove, mapper, name)
            path = mapper.path(name)
            _try(failed, functools.partial(patiently, remove, path, self.patience))
        for loop in left.loops:
            done = tools.run(["losetup", "--detach", f"/dev/{loop}"], timeout=_SECONDS)
            failed += [done.stderr.strip()] if done.returncode else []
        for cookie in left.semaphores:
            cookie.remove()
        if left.servers or left.cookies:
            self._reap(mapper, {entry.id for entry in [*left.servers, *left.cookies]}, failed)
        return failed

    def _reap(self, mapper: KernelMapper, wanted: set[str], failed: list[str]) -> None:
        from dmcopy.mapper.reap import Reaper

        result = Reaper(mapper, self._ledger, lambda entry: entry.id in wanted).run()
        failed += result.left.values()

    def _entries(self) -> list[LedgerEntry]:
        """Return what the ledger has since the beginning, by this process or one that ended."""
        if _state(self._ledger) == self._noted:
            return []
        me = identity(os.getpid())
        return [
            entry
            for entry in self._ledger.entries()
            if entry.made >= self._began and (entry.owner == me or entry.abandoned or self._alone)
        ]

    def _is_inside(self, path: str) -> bool:
        return bool(path) and any(Path(path).is_relative_to(one) for one in self.folders)


def _remove(mapper: KernelMapper, name: str, seconds: float) -> None:
    mapper.remove(name, timeout=seconds)


def _try(failed: list[str], what: Callable[[], object]) -> None:
    try:
        what()
    except DmcopyError as error:
        failed.append(str(error))


@functools.lru_cache(maxsize=1)
def _mounts(text: str) -> tuple[Mount, ...]:
    """Return the mounts of a table: the same ones for the same table, as it mostly is."""
    return tuple(parse_mountinfo(text))


def _state(ledger: Ledger) -> tuple[int, int]:
    """Return what changes with every line of a ledger, which may be long: it is not read."""
    try:
        found = ledger.path.stat()
    except OSError:
        return 0, 0
    return found.st_ino, found.st_size


def _file_of(loop: str) -> str:
    return sysfs.backing_file(loop)


def _clears_itself(loop: str) -> bool:
    """Whether it goes with its last user, as that of a file system that was unmounted: soon."""
    return sysfs.read(f"{_BLOCK}/{loop}/loop/autoclear") != "0"


def _below(disk: str) -> set[str]:
    folder = _BLOCK / disk / "slaves"
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def _bottom_up(disks: Iterable[str]) -> list[str]:
    """Return disks so that each comes after those below it."""
    left, found = set(disks), []
    while left:
        free = sorted(disk for disk in left if not _below(disk) & left) or sorted(left)
        found += free
        left -= set(free)
    return found


def _number(disk: str) -> str:
    try:
        return (_BLOCK / disk / "dev").read_text().strip()
    except OSError:
        return ""
