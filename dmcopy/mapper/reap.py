"""Removing what a crash left behind: what the ledger names, top down, in rounds, nothing else."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from dmcopy.block import backing, file_mounts, holders, mounts, sysfs, tools
from dmcopy.block.loop import LoopDevice, detach
from dmcopy.block.sysfs import DISK_MARK, disk_mark
from dmcopy.errors import BusyError, DeviceError, DmcopyError
from dmcopy.io import nbd, ublk
from dmcopy.ledger import Ledger, LedgerEntry, alive
from dmcopy.mapper.base import DmInfo, Mapper
from dmcopy.mapper.cookies import left_behind
from dmcopy.mapper.tree import top_down, with_deps
from dmcopy.runtime import SERVER_NAME, control_path, kept_path

_log = logging.getLogger(__name__)

# For each device in the first round: a program that only looks is done by then.
REMOVE_SECONDS = 3.0
LATER_SECONDS = 0.5
_END_SECONDS = 5.0
_UMOUNT_SECONDS = 60.0
_ORDER = ("server", "mount", "dm", "loop ublk nbd", "cookie", "link")


@dataclass(slots=True)
class Reaped:
    """What `reap` did: `removed` and `vanished` (gone already) by kind and name, `left` and why."""

    removed: list[LedgerEntry] = field(default_factory=list)
    vanished: list[LedgerEntry] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)


class Reaper:
    """Removes what `ledger` names and `wanted` selects; by default what has lost its owner."""

    def __init__(
        self,
        mapper: Mapper,
        ledger: Ledger,
        wanted: Callable[[LedgerEntry], bool] = lambda entry: entry.abandoned,
    ) -> None:
        self.mapper = mapper
        self.ledger = ledger
        self.wanted = wanted
        self.result = Reaped()
        self._patience = REMOVE_SECONDS

    def run(self) -> Reaped:
        """Remove in rounds until a round changes nothing; say what is left and who holds it."""
        todo = [entry for entry in self.ledger.entries() if self.wanted(entry)]
        changed = True
        self._patience = REMOVE_SECONDS
        self._thaw(todo)
        while todo and changed:
            self.result.left.clear()
            before = len(todo)
            for entry in self._order(todo):
                if self._try(entry):
                    todo.remove(entry)
            changed = len(todo) < before
            self._patience = LATER_SECONDS
        self.ledger.compact()
        return self.result

    def plan(self) -> list[LedgerEntry]:
        """Return what `run` would try to remove, in order."""
        return self._order([entry for entry in self.ledger.entries() if self.wanted(entry)])

    def script(self) -> Iterator[str]:
        """Yield the shell commands that do what `run` would, as far as all goes well."""
        for entry in self.plan():
            match entry.kind:
                case "dm":
                    words = ["dmsetup", "remove", "--", entry.name]
                case "loop":
                    words = ["losetup", "--detach", entry.name]
                case "ublk":
                    words = ["rublk", "del", "-n", entry.name.removeprefix("/dev/ublkb")]
                case "nbd":
                    words = ["nbd-client", "-d", entry.name]
                case "mount":
                    words = ["umount", "--", entry.name]
                case "server":
                    words = ["kill", entry.uuid.partition(" ")[0]]
                case "cookie":
                    words = ["ipcrm", "--semaphore-key", entry.name]
                case "link":
                    words = ["rm", "--", entry.name]
            yield shlex.join(words)

    def _thaw(self, entries: list[LedgerEntry]) -> None:
        """Resume what was left suspended: what waits for its I/O keeps the devices over it open."""
        ours = {entry.uuid for entry in entries if entry.kind == "dm"}
        for info in self.mapper.ls() if ours else []:
            if ours & _marks(info):
                with contextlib.suppress(DmcopyError):  # if it matters, its removal will say so
                    self.mapper.thaw(info.name)

    def _order(self, entries: list[LedgerEntry]) -> list[LedgerEntry]:
        """Servers and mounts first, devices from the top down, those below, then cookies."""
        devices = enumerate(self._devices(entries))
        height = {mark: place for place, info in devices for mark in _marks(info)}
        rank = {kind: place for place, kinds in enumerate(_ORDER) for kind in kinds.split()}
        newest = {entry.id: -place for place, entry in enumerate(entries)}
        return sorted(
            entries,
            key=lambda entry: (rank[entry.kind], height.get(entry.uuid, 0), newest[entry.id]),
        )

    def _devices(self, entries: list[LedgerEntry]) -> list[DmInfo]:
        if not any(entry.kind == "dm" for entry in entries):
            return []
        return top_down(with_deps(self.mapper))

    def _try(self, entry: LedgerEntry) -> bool:
        """Remove one thing; return whether it is gone."""
        try:
            there = _STEPS[entry.kind](self, entry)
        except DmcopyError as error:
            self.result.left[entry.name or entry.uuid] = str(error)
            return False
        (self.result.removed if there else self.result.vanished).append(entry)
        self.ledger.cancel(entry.id)
        _log.info("%s %s: %s", entry.kind, entry.name, "removed" if there else "gone already")
        return True

    def _device(self, entry: LedgerEntry) -> bool:
        # The UUID says which device it is: the name may be another's by now, or have been changed.
        devices = self.mapper.ls()
        if not entry.uuid and any(info.name == entry.name for info in devices):
            raise DmcopyError(
                f"{entry.name}: there is a mapped device of this name, and nothing tells whether "
                "it is the one that was made; if so: dmsetup remove"
            )
        found = [info for info in devices if entry.uuid and _carries(info, entry.uuid)]
        for info in found:
            self.mapper.remove(info.name, timeout=self._patience)
        return bool(found)

    def _loop(self, entry: LedgerEntry) -> bool:
        if not entry.name:
            return self._unnamed_loop(entry)
        name = os.path.basename(entry.name)
        mark = backing.mark(name)
        # One that is to stay is noted with the path of its file.
        if not mark or (mark != entry.uuid and not backing.is_made_of(name, entry.uuid)):
            return False
        mounted = [str(one) for one in holders.device_users(name) if one.kind == "mount"]
        if mounted:  # which no waiting ends
            raise BusyError(entry.name, mounted)
        detach(LoopDevice(entry.name, entry.uuid, mark))
        return True

    def _unnamed_loop(self, entry: LedgerEntry) -> bool:
        # The crash came before the kernel's answer was noted: a loop device over this file may be
        # that one, or not ours.
        found = [one.loop for one in backing.of_all() if backing.is_made_of(one.loop, entry.uuid)]
        nodes = list(map(sysfs.node, found))
        if nodes:
            raise DmcopyError(
                f"{entry.uuid} is attached to {', '.join(nodes)}, perhaps by a process that was "
                "killed; if so: losetup --detach"
            )
        return False

    def _ublk(self, entry: LedgerEntry) -> bool:
        """Remove what a killed server had, though it is mounted: who waits for it gets an error.

        Nothing that they were told to be there is lost by it, and to wait is all that they can do.
        """
        control = ublk.UblkControl()
        found = control.find(entry.uuid)
        pid = entry.owner.partition(" ")[0]
        if found is None or (found.state == ublk.LIVE and str(found.pid) != pid):
            return False  # or another server has taken it over
        try:
            control.stop(found.number)
            control.delete(found.number, wait=False)
        except OSError as error:
            raise DeviceError(found.path, "remove it", error.errno or 0) from error
        return True

    def _nbd(self, entry: LedgerEntry) -> bool:
        """Disconnect what a killed server had, though it is mounted; see `_ublk`."""
        control = nbd.NbdControl()
        number = control.find(entry.uuid)
        others = [one for one in self.ledger.entries() if one.uuid == entry.uuid]
        if number is None or any(one.owner != entry.owner and alive(one.owner) for one in others):
            return False  # or another server has taken it over
        try:
            control.disconnect(number)
        except OSError as error:
            raise DeviceError(nbd.node(number), "disconnect it", error.errno or 0) from error
        return True

    def _mount(self, entry: LedgerEntry) -> bool:
        table = mounts.parse_mountinfo(sysfs.read(f"{sysfs.LIVE.proc}/self/mountinfo"))
        if entry.uuid.startswith(file_mounts.SOURCE_PREFIX):
            return self._file_mount(entry)
        if not any(m.point == entry.name and same_source(m.source, entry.uuid) for m in table):
            return False
        done = tools.run(("umount", "--", entry.name), timeout=_UMOUNT_SECONDS)
        if done.returncode:
            raise DeviceError(entry.name, "umount", errno.EIO, done.stderr.strip())
        return True

    def _file_mount(self, entry: LedgerEntry) -> bool:
        try:
            there = file_mounts.unmount(entry.name, entry.uuid)
        except OSError as error:
            raise DeviceError(entry.name, "unmount it", error.errno or 0) from error
        file_mounts.remove_point(entry.name, entry.uuid)
        return there

    def _server(self, entry: LedgerEntry) -> bool:
        if not alive(entry.uuid):
            if entry.name == SERVER_NAME:  # its devices are given up
                for path in (kept_path(), control_path()):
                    with contextlib.suppress(OSError):
                        os.unlink(path)
            return False
        pid = int(entry.uuid.partition(" ")[0])
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            deadline = time.monotonic() + _END_SECONDS
            while alive(entry.uuid) and time.monotonic() < deadline:
                time.sleep(0.02)
        if alive(entry.uuid):
            raise DmcopyError(f"process {pid} ({entry.name}) does not end")
        return True

    def _cookie(self, entry: LedgerEntry) -> bool:
        found = left_behind(entry)
        if found is None:
            return False
        found.remove()
        return True

    def _link(self, entry: LedgerEntry) -> bool:
        with contextlib.suppress(OSError):
            if os.readlink(entry.name) == entry.uuid:
                os.unlink(entry.name)
                return True
        return False


def _marks(info: DmInfo) -> set[str]:
    """Return what the ledger may have noted of a device: its UUID, or what marks its disk."""
    return {info.uuid, disk_mark(info.number)} - {""}


def _carries(info: DmInfo, mark: str) -> bool:
    return info.uuid == mark or (mark.startswith(DISK_MARK) and disk_mark(info.number) == mark)


def same_source(shown: str, noted: str) -> bool:
    """Return whether two paths of a mount's device are the same: /dev/mapper/x is /dev/dm-0."""
    return shown == noted or os.path.realpath(shown) == os.path.realpath(noted)


_STEPS: dict[str, Callable[[Reaper, LedgerEntry], bool]] = {
    "dm": Reaper._device,
    "loop": Reaper._loop,
    "ublk": Reaper._ublk,
    "nbd": Reaper._nbd,
    "mount": Reaper._mount,
    "server": Reaper._server,
    "cookie": Reaper._cookie,
    "link": Reaper._link,
}
