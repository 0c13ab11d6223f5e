"""A ledger on disk of everything that was made, so that it can be removed after a crash.

One JSON object a line, appended and synced before the thing is made (`add`) and after it is gone
(`drop`). What a line says is never trusted alone: a device must still carry the UUID, a loop device
the file, a process the start time that were noted, or it is somebody else's by now. It lies below
everything that makes things: loop devices, mapped devices, mounts and servers alike.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
import uuid as uuids
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal

from dmcopy.errors import DeadlineError, DeviceError

Kind = Literal["dm", "loop", "mount", "server", "cookie"]
_LOCK_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Entry:
    """A thing that was made.

    `name`: a device's name, a loop device's node, a mount point, a server's command, the key of a
    cookie of udev's. `uuid`: what else identifies it: the device's UUID, the loop device's file,
    what is mounted, the server's "pid start-time". `owner` is the process that made it, in the same
    form, `boot` the boot that it was made in. `keep`: it is meant to outlive its owner.
    """

    id: str
    kind: Kind
    name: str
    uuid: str
    owner: str
    boot: str
    keep: bool = False
    made: float = 0.0

    @property
    def abandoned(self) -> bool:
        """Whether it should have gone with its owner, which has ended."""
        return not self.keep and not alive(self.owner)


class Ledger:
    """The ledger of one user. Several processes may write to it at once."""

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = Path(path) if path is not None else default_path()

    def add(self, kind: Kind, name: str, *, uuid: str = "", keep: bool = False) -> str:
        """Note that a thing is about to be made; return the id of the entry."""
        entry = Entry(
            id=uuids.uuid4().hex,
            kind=kind,
            name=name,
            uuid=uuid,
            owner=identity(os.getpid()),
            boot=boot_id(),
            keep=keep,
            made=round(time.time(), 3),
        )
        self._append({"op": "made", **asdict(entry)})
        return entry.id

    def drop(self, kind: Kind, name: str) -> None:
        """Note that the things of this kind and name are gone."""
        for entry in self.entries():
            if (entry.kind, entry.name) == (kind, name):
                self.cancel(entry.id)

    def cancel(self, entry_id: str) -> None:
        """Note that the thing of this entry is gone, or was never made."""
        self._append({"op": "gone", "id": entry_id})

    def rename(self, kind: Kind, name: str, new_name: str) -> None:
        """Note that a thing has another name now."""
        for entry in self.entries():
            if (entry.kind, entry.name) == (kind, name):
                self._append({"op": "made", **asdict(replace(entry, name=new_name))})

    def entries(self) -> list[Entry]:
        """Return what was made in this boot and not noted as gone, in the order of making."""
        with self._locked() as file:
            return _read(file)

    def compact(self) -> None:
        """Rewrite the file with what is still there."""
        with self._locked() as file:
            lines = [{"op": "made", **asdict(entry)} for entry in _read(file)]
            file.seek(0)
            file.truncate()
            file.writelines(json.dumps(line) + "\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())

    def _append(self, line: dict[str, Any]) -> None:
        with self._locked() as file:
            torn = file.seek(0, os.SEEK_END) and not _whole(self.path)
            file.write(("\n" if torn else "") + json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    @contextlib.contextmanager
    def _locked(self) -> Iterator[IO[str]]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            opened = self.path.open("a+", encoding="utf-8")
        except OSError as error:
            raise DeviceError(
                str(self.path), "keep the ledger of what is made", error.errno or 0
            ) from error
        with opened as file:
            lock(file, self.path)
            yield file


class NoLedger(Ledger):
    """Notes nothing: for commands that are only printed."""

    def entries(self) -> list[Entry]:
        """Return nothing."""
        return []

    def _append(self, line: dict[str, Any]) -> None:
        pass


def default_path() -> Path:
    """Return /run/dmcopy/ledger.jsonl for root, a file under $XDG_STATE_HOME for others."""
    if os.geteuid() == 0:
        return Path("/run/dmcopy/ledger.jsonl")
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local/state")
    return Path(state) / "dmcopy" / "ledger.jsonl"


def identity(pid: int) -> str:
    """Return "pid start-time": a process, not the next one that has its number. "" if it ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return ""
    # The second field, the command, may have spaces and parentheses in it; state is the third.
    fields = text.rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else f"{pid} {fields[19]}"


def alive(process: str) -> bool:
    """Return whether the process that `identity` named still runs."""
    pid = process.partition(" ")[0]
    return pid.isdecimal() and identity(int(pid)) == process


def boot_id() -> str:
    """Return what tells this boot from others: devices do not outlive it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _read(file: IO[str]) -> list[Entry]:
    found: dict[str, Entry] = {}
    boot = boot_id()
    file.seek(0)
    for line in file:
        try:
            values = json.loads(line)
            if values.pop("op") == "made":
                found[values["id"]] = Entry(**values)
            else:
                found.pop(values["id"], None)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # a line that a crash cut short: what it was about was not made yet
    return [entry for entry in found.values() if entry.boot == boot]


def _whole(path: Path) -> bool:
    """Return whether the last line is complete: a crash may have cut one short."""
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def lock(file: IO[str], path: Path) -> None:
    """Lock an open file that stands for `path`; DeadlineError when another process keeps it."""
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise DeadlineError(
                    f"{path}: another process has kept it locked for {_LOCK_SECONDS:g} s"
                ) from None
            time.sleep(0.01)
