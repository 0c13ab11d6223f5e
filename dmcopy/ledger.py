"""A ledger on disk of everything that was made, so that it can be removed after a crash.

One JSON object a line, appended and synced before the thing is made (`add`) and after it is gone
(`drop`). What a line says is never trusted alone: a device must still carry the UUID, a loop device
the file, a process the start time that were noted, or it is another's by now. It lies below
everything that makes things: loop devices, mapped devices, mounts and servers alike.

A process that makes or removes a thing only appends, however long the file is. When it is
twice as long as it was when last written anew, it is written anew with the things still there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, Final, Literal, get_args

from dmcopy.atomic import replace_file
from dmcopy.errors import DeadlineError, DeviceError, UsageError, raise_passing
from dmcopy.runtime import RUNTIME_DIR, folder_path

_log = logging.getLogger(__name__)

Kind = Literal["dm", "loop", "mount", "server", "cookie", "link", "ublk", "nbd"]
_LOCK_SECONDS = 10.0
_SMALL_BYTES: Final = 1 << 16  # it is not worth while to write a shorter file anew
_BROKEN: Final = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """A thing that was made.

    `name`: a device's name, a loop device's node, a mount point, a server's command, the key of a
    cookie of udev's, a symbolic link. `uuid`: what else identifies it: the UUID of a mapped
    device, the mark of a loop, ublk or nbd device (the file of a loop device that is to be made or
    to stay), the source of a mount, the "pid start-time" of a server, the target of a symbolic
    link. `owner` is the process that made it, in the same form as a server, `boot` the boot
    that it was made in. `keep`: it is meant to outlive its owner.
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
    """The ledger of one user. Several processes may write to it at the same time."""

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = Path(path) if path is not None else default_path()

    def add(self, kind: Kind, name: str, *, uuid: str = "", keep: bool = False) -> str:
        """Note that a thing is about to be made; return the id of the entry."""
        entry = LedgerEntry(
            id=os.urandom(16).hex(),
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
        self._append({"op": "gone", "kind": kind, "name": name})

    def cancel(self, entry_id: str) -> None:
        """Note that the thing of this entry is gone, or was never made."""
        self._append({"op": "gone", "id": entry_id})

    def rename(self, kind: Kind, name: str, new_name: str) -> None:
        """Note that a thing has another name now."""
        self._append({"op": "renamed", "kind": kind, "name": name, "to": new_name})

    def identify(self, entry_id: str, uuid: str) -> None:
        """Note what tells the thing of an entry from others, where that is known only later."""
        self._append({"op": "identified", "id": entry_id, "uuid": uuid})

    def entries(self) -> list[LedgerEntry]:
        """Return what was made in this boot and not noted as gone, in the order of making."""
        with self._locked() as file:
            content = _Content(_all(file))
            if content.odd:
                self._rewrite(content)
            return content.entries

    def compact(self) -> None:
        """Rewrite the file with what is still there."""
        with self._locked() as file:
            self._rewrite(_Content(_all(file)))

    def _append(self, line: dict[str, Any]) -> None:
        with self._locked() as file:
            size = file.seek(0, os.SEEK_END)
            # A crash may have cut the last line short.
            torn = size and os.pread(file.fileno(), 1, size - 1) != b"\n"
            left = memoryview(b"\n" + _line(line) if torn else _line(line))
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
            if size > _SMALL_BYTES and size > 2 * _size_when_new(file):
                self._rewrite(_Content(_all(file)))

    def _rewrite(self, content: _Content) -> None:
        """Write the file anew. The caller's work is done by then: no reason to fail."""
        aside = self.path.with_name(self.path.name + ".odd")
        lines = b"".join(_line({"op": "made", **asdict(entry)}) for entry in content.entries)
        try:
            if content.odd:
                _keep(aside, content.odd)
                _log.warning(
                    "%s: passed over what is none of the ledger's (lines: %d); it is kept in %s",
                    self.path,
                    len(content.odd),
                    aside,
                )
            replace_file(self.path, _line({"op": "new", "size": len(lines)}) + lines)
        except (OSError, UsageError) as error:
            _log.warning("%s: cannot write the ledger anew: %s", self.path, error)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[IO[bytes]]:
        """Give the file, open and locked; it is made if it is not there."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            while True:
                with _open(self.path) as file:
                    lock(file, self.path)
                    if not _replaced(file, self.path):
                        yield file
                        return
        except OSError as error:
            raise DeviceError(
                str(self.path), "keep the ledger of what is made", error.errno or 0
            ) from error


class NoLedger(Ledger):
    """Notes nothing: for commands that are only printed."""

    def entries(self) -> list[LedgerEntry]:
        return []

    def _append(self, line: dict[str, Any]) -> None:
        pass


def default_path() -> Path:
    """Return /run/dmcopy/ledger.jsonl for root, a file under $XDG_STATE_HOME for others.

    With $DMCOPY_RUNTIME_DIR, see `runtime`, it is there.
    """
    if os.geteuid() == 0 or os.environ.get(RUNTIME_DIR):
        return folder_path() / "ledger.jsonl"
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    if state.startswith("~"):
        raise UsageError(
            "there is no home folder to keep the ledger in: set HOME or XDG_STATE_HOME"
        )
    return Path(state) / "dmcopy" / "ledger.jsonl"


def identity(pid: int) -> str:
    """Return "pid start-time": a process, not the next one that has its number. "" if it ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError as error:
        raise_passing(error)  # or what a process that lives has made would be removed
        return ""
    # The second field, the command, may have spaces and parentheses in it; state is the third.
    fields = text.rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else f"{pid} {fields[19]}"


def alive(process: str) -> bool:
    """Return whether the process that `identity` named still runs."""
    pid = process.partition(" ")[0]
    return pid.isdecimal() and len(pid) < 20 and identity(int(pid)) == process


def boot_id() -> str:
    """Return what tells this boot from others: devices do not outlive it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError as error:
        raise_passing(error)
        return ""


class _Content:
    """What the lines of a ledger come to: `entries`, and the lines that are `odd`.

    A line is odd that a crash cut short, that a damaged disk changed, or that is another's:
    what it was about was not made yet, or is not ours to remove.
    """

    def __init__(self, raw: bytes) -> None:
        self.odd: list[bytes] = []
        self._boot = boot_id()
        self._found: dict[str, LedgerEntry] = {}
        self._named: dict[tuple[str, str], set[str]] = {}
        for line in raw.split(b"\n"):
            try:
                if line.strip():
                    self._take(json.loads(line))
            except _BROKEN:
                self.odd.append(line)

    @property
    def entries(self) -> list[LedgerEntry]:
        return list(self._found.values())

    def _take(self, values: dict[str, Any]) -> None:
        match values.pop("op"):
            case "made":
                entry = _checked(LedgerEntry(**values))
                self._forget(entry.id)
                if entry.boot == self._boot:
                    self._note(entry)
            case "gone" if "id" in values:
                self._forget(values["id"])
            case "gone":
                for one in self._named.pop((values["kind"], values["name"]), ()):
                    del self._found[one]
            case "renamed":
                for one in self._named.pop((values["kind"], values["name"]), ()):
                    self._note(_checked(replace(self._found[one], name=values["to"])))
            case "identified":
                if values["id"] in self._found:
                    entry = replace(self._found[values["id"]], uuid=values["uuid"])
                    self._note(_checked(entry))
            case "new":
                pass
            case other:
                raise ValueError(other)

    def _note(self, entry: LedgerEntry) -> None:
        self._found[entry.id] = entry
        self._named.setdefault((entry.kind, entry.name), set()).add(entry.id)

    def _forget(self, entry_id: str) -> None:
        entry = self._found.pop(entry_id, None)
        if entry is not None:
            self._named[entry.kind, entry.name].discard(entry_id)


def _checked(entry: LedgerEntry) -> LedgerEntry:
    """Return `entry`, or raise ValueError or TypeError when a value is none of its kind."""
    for text in (entry.id, entry.name, entry.uuid, entry.owner, entry.boot):
        # That takes text only, and no half characters; the locale's encoding may lack some.
        if b"\0" in text.encode(errors="surrogateescape"):
            raise ValueError(text)
    if entry.kind not in get_args(Kind) or not isinstance(entry.keep, bool):
        raise ValueError(entry.kind)
    if isinstance(entry.made, bool) or not 0 <= entry.made < 1 << 53:
        raise ValueError(entry.made)
    return entry


def _line(values: dict[str, Any]) -> bytes:
    return json.dumps(values).encode() + b"\n"


def _all(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


def _size_when_new(file: IO[bytes]) -> int:
    """Return how long the file was when it was written anew: its first line says it."""
    try:
        return int(json.loads(os.pread(file.fileno(), 100, 0).partition(b"\n")[0])["size"])
    except _BROKEN:
        return 0


def _keep(path: Path, lines: list[bytes]) -> None:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with open(os.open(path, flags, 0o600), "ab") as file:
        file.writelines(line + b"\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())


def _open(path: Path) -> IO[bytes]:
    """Open the file to read it and append to it. Raises OSError, also for what is no file."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
    file = open(os.open(path, flags, 0o600), "r+b", buffering=0)  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is no regular file")
    return file


def _replaced(file: IO[bytes], path: Path) -> bool:
    """Return whether another process has written the file anew while we waited for its lock."""
    try:
        return not os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return True


def lock(file: IO[Any], path: Path) -> None:
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
