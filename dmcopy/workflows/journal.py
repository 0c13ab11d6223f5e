"""A record on disk of each workflow in progress, so that an interrupted one can be ended.

A workflow is a list of steps, each a small change of one device that can be repeated and, mostly,
undone. Its record says which steps were begun. It is written whole and synced before each
step, under another name first, so that after a kill -9 or a power cut it is either the old one or
the new one. `steps.Runner` runs the steps and undoes them.

    record = PlanRecord.of(plan)
    journal.begin(record)              refused while another workflow has one of the devices
    ...                                each step is noted before it is begun
    journal.end(record)

A record whose process has ended is an interrupted workflow: the next process adopts it and runs it
to its end, or undoes it. `session.Session` does both.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dmcopy import ledger
from dmcopy.atomic import replace_file, sync_folder
from dmcopy.errors import BusyError, DeviceError, DmcopyError, MetadataError
from dmcopy.ledger import identity, lock
from dmcopy.mapper.names import mangle, unmangle
from dmcopy.runtime import RUNTIME_DIR, folder_path
from dmcopy.workflows.record import VERBS, PlanRecord, parse

_SUFFIX: Final = ".json"
_MOST_BYTES: Final = 16 << 20
_LONGEST: Final = 200  # characters of what is quoted of a damaged record


def default_folder() -> Path:
    """Return /var/lib/dmcopy/workflows for root, a folder beside the ledger for others.

    Not in /run, where root's ledger is: a workflow may have to continue after a reboot.
    """
    if os.geteuid() == 0:
        return Path("/var/lib/dmcopy/workflows")
    return ledger.default_path().parent / "workflows"


def user_folder() -> Path:
    """Return the folder for workflows on the device server, whose devices are others than dm's."""
    if os.environ.get(RUNTIME_DIR):
        return folder_path() / "workflows"
    return default_folder().with_name("user-workflows")


@dataclass(frozen=True, slots=True)
class Damaged:
    """A file in the journal that is no record, and why. Its name says what it was a record of.

    Which devices that workflow had is not known. It is in the way of those of its own name only:
    whatever else is begun looks at the devices themselves before it changes any.
    """

    path: Path
    reason: str

    @property
    def place(self) -> tuple[str, str]:
        """The noun and the name that it was a record of, "" twice for a stranger's file."""
        noun, _, name = self.path.name.removesuffix(_SUFFIX).partition("-")
        ours = noun in VERBS and name.isascii() and mangle(unmangle(name)) == name
        return (noun, unmangle(name)) if ours else ("", "")

    def __str__(self) -> str:
        noun, name = self.place
        reason = self.reason if len(self.reason) < _LONGEST else f"{self.reason[:_LONGEST]} ..."
        text = f"{self.path} is not the record of a workflow: {reason}"
        if not name:
            return f"{text}; it is left alone"
        return f"{text}; 'dmcopy {noun} forget {name}' puts it aside"


class Journal:
    """The records of one user, in the directory `folder`; several processes may use it together.

    `owner` is how the process that begins or adopts a record is noted (see `ledger.identity`).
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, *, owner: str = "") -> None:
        self.folder = Path(folder) if folder is not None else default_folder()
        self.owner = owner or identity(os.getpid())

    def records(self, noun: str = "") -> list[PlanRecord]:
        """Return the records, of one noun or of all, the oldest first; see `damaged` for others."""
        found = [
            one for one in self._all() if isinstance(one, PlanRecord) and noun in ("", one.noun)
        ]
        return sorted(found, key=lambda record: record.made)

    def damaged(self) -> list[Damaged]:
        """Return the files that should be records, and are none."""
        return [one for one in self._all() if isinstance(one, Damaged)]

    def find(self, noun: str, name: str) -> PlanRecord | None:
        """Return the record of this name, None when there is none. Raises MetadataError."""
        found = _read(self._path(noun, name))
        if isinstance(found, Damaged):
            raise MetadataError(str(found))
        return found

    def begin(self, record: PlanRecord) -> None:
        """Note that a workflow begins.

        Raises BusyError while another one works on one of its devices, and DmcopyError naming the
        remedy when such a one was interrupted.
        """
        with self._locked():
            self._refuse_overlap(record)
            record.made = round(time.time(), 3)
            self._own(record)

    def adopt(self, record: PlanRecord) -> None:
        """Note that this process continues an interrupted workflow. Raises BusyError."""
        with self._locked():
            now = self.find(record.noun, record.name)
            if now is not None and now.running and now.owner != self.owner:
                raise _busy(record.name, now)
            self._own(record)

    def save(self, record: PlanRecord) -> None:
        """Write the record, durably."""
        try:
            replace_file(self._path(record.noun, record.name), record.build())
        except OSError as error:
            raise self._failed(error) from error

    def end(self, record: PlanRecord) -> None:
        """Note that the workflow has ended, or that nothing is left of it."""
        try:
            self._path(record.noun, record.name).unlink(missing_ok=True)
            if self.folder.is_dir():  # or nothing was ever noted
                sync_folder(self.folder)
        except OSError as error:
            raise self._failed(error) from error

    def put_aside(self, noun: str, name: str) -> Path:
        """Rename the damaged record of this name, so that it is not read again; return its path."""
        path = self._path(noun, name)
        with self._locked():
            number = 1
            while os.path.lexists(aside := path.with_suffix(f".damaged-{number}")):
                number += 1
            try:
                path.rename(aside)
                sync_folder(self.folder)
            except OSError as error:
                raise self._failed(error) from error
        return aside

    def _own(self, record: PlanRecord) -> None:
        record.own(self.owner)
        self.save(record)

    def _refuse_overlap(self, record: PlanRecord) -> None:
        mine = {record.name, *record.devices}
        for damaged in self.damaged():
            if damaged.place[1] in mine:
                raise MetadataError(str(damaged))
        for other in self.records():
            shared = sorted(mine & {other.name, *other.devices})
            if not shared:
                continue
            if other.running:
                raise _busy(shared[0], other)
            raise DmcopyError(f"{shared[0]}: '{other}' was interrupted: {other.advice}")

    def _all(self) -> Iterator[PlanRecord | Damaged]:
        for path in sorted(self.folder.glob(f"*{_SUFFIX}")):
            found = _read(path)
            if found is not None:  # a workflow may end at any moment
                yield found

    def _path(self, noun: str, name: str) -> Path:
        return self.folder / f"{noun}-{mangle(name)}{_SUFFIX}"

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other processes out for a moment; a record itself keeps them out for longer."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Neither through a link nor, in vain, at a pipe of that name.
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            opened = os.fdopen(os.open(self.folder / "lock", flags, 0o600), "w")
        except OSError as error:
            raise self._failed(error) from error
        with opened as file:
            lock(file, self.folder)
            yield

    def _failed(self, error: OSError) -> DeviceError:
        return DeviceError(str(self.folder), "keep the journal of workflows", error.errno or 0)


class NoJournal(Journal):
    """Notes nothing: for steps that are only printed. It still tells what is interrupted."""

    def save(self, record: PlanRecord) -> None:
        """Write nothing."""

    def end(self, record: PlanRecord) -> None:
        """Forget nothing."""

    def adopt(self, record: PlanRecord) -> None:
        """Take nothing over."""

    def begin(self, record: PlanRecord) -> None:
        """Refuse what `Journal.begin` would, and note nothing."""
        self._refuse_overlap(record)


def _busy(name: str, other: PlanRecord) -> BusyError:
    return BusyError(name, [f"process {other.owner.partition(' ')[0]} ({other})"])


def _read(path: Path) -> PlanRecord | Damaged | None:
    """Return the record in a file, None when there is no such file."""
    try:
        record = parse(_content(path))
        if path.name != f"{record.noun}-{mangle(record.name)}{_SUFFIX}":
            return Damaged(path, f"it is that of {str(record)!a}")
        return record
    except FileNotFoundError:
        return None
    except OSError as error:
        return Damaged(path, os.strerror(error.errno or 0))
    except ValueError as error:
        return Damaged(path, str(error))


def _content(path: Path) -> bytes:
    """Return what is in a file; a pipe of that name is not waited for."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError("it is no regular file")
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise ValueError(f"it is longer than {_MOST_BYTES} bytes")
    return data
