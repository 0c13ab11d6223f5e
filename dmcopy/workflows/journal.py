"""A record on disk of each workflow in progress, so that an interrupted one can be ended.

A workflow is a list of steps (`Step`), each a small change of one device that can be repeated and,
mostly, undone. Its record says which steps were begun. It is written whole and synced before each
step, under another name first, so that after a kill -9 or a power cut it is either the old one or
the new one. `steps.Runner` runs the steps and undoes them.

    record = Record("snapshot", "take", "snap", steps, devices=("data", "data-real", "snap"))
    journal.begin(record)              refused while another workflow has one of the devices
    Runner(mapper, journal).run(record)
    journal.end(record)

A record whose process has ended is an interrupted workflow: the next process adopts it and runs it
to its end, or undoes it.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dmcopy.errors import BusyError, DeviceError, DmcopyError, MetadataError
from dmcopy.ledger import lock
from dmcopy.mapper import ledger
from dmcopy.mapper.ledger import alive, boot_id, identity
from dmcopy.mapper.names import mangle


def default_folder() -> Path:
    """Return /var/lib/dmcopy/workflows for root, a folder beside the ledger for others.

    Not in /run, where root's ledger is: a workflow may have to go on after a reboot.
    """
    if os.geteuid() == 0:
        return Path("/var/lib/dmcopy/workflows")
    return ledger.default_path().parent / "workflows"


@dataclass(frozen=True, slots=True)
class Step:
    """One change of one device.

    Attributes:
        verb: create (without `table`, only the device), load, suspend, resume, remove; or a verb of
            the workflow's own.
        device: the name of a mapped device; for a verb of the workflow's own, what that needs.
        table: for create and load, the table as text. It names devices by paths that outlive a
            reboot; a mapped one by `Mapper.path`.
        before: for the resume of a device that had a table already, that table as the engine
            printed it: what tells whether the swap has happened, and what undo loads.
        health: for another table under a mirror, the letters of its legs when that was planned.
        joined: nothing is written to disk between the step before and this one: a file system may
            be frozen there, perhaps the one with the journal on it.
        final: once this is done, the workflow cannot be undone.
    """

    verb: str
    device: str
    table: str = ""
    before: str = ""
    health: str = ""
    joined: bool = False
    final: bool = False


@dataclass(slots=True)
class Record:
    """A workflow in progress: `dmcopy NOUN VERB NAME`.

    Attributes:
        steps: what is to be done, in order.
        devices: the names of all mapped devices that nobody else may change meanwhile.
        facts: what the workflow wants to find again; JSON values.
        settled: so many steps have surely ended.
        begun: so many were begun; those from `settled` on may have happened or not.
        committed: it cannot be undone any more: a final step has ended.
        undoing: the steps are being taken back, the last one first.
        owner: the process that runs it, as the ledger has it; `boot`: in which boot.
    """

    noun: str
    verb: str
    name: str
    steps: list[Step]
    devices: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    settled: int = 0
    begun: int = 0
    committed: bool = False
    undoing: bool = False
    owner: str = ""
    boot: str = ""
    made: float = 0.0

    @property
    def running(self) -> bool:
        """Whether the process that runs it is still there."""
        return not self.rebooted and alive(self.owner)

    @property
    def rebooted(self) -> bool:
        """Whether the machine was restarted since: mapped devices do not outlive that."""
        return self.boot not in ("", boot_id())

    def next(self, steps: Sequence[Step]) -> None:
        """Go on with other steps, none of them begun."""
        self.steps = list(steps)
        self.settled = self.begun = 0

    def __str__(self) -> str:
        return f"dmcopy {self.noun} {self.verb} {self.name}"

    @property
    def advice(self) -> str:
        """What a person can do about it once it is interrupted."""
        if self.undoing:
            return f"'dmcopy {self.noun} undo {self.name}' goes on with taking it back"
        ending = f"'dmcopy {self.noun} finish {self.name}' ends it"
        if self.committed:
            return ending
        return f"{ending}, 'dmcopy {self.noun} undo {self.name}' takes it back"


class Journal:
    """The records of one user, in the directory `folder`; several processes may use it at once.

    `owner` is how the process that begins or adopts a record is noted (see `ledger.identity`).
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, *, owner: str = "") -> None:
        self.folder = Path(folder) if folder is not None else default_folder()
        self.owner = owner or identity(os.getpid())

    def records(self, noun: str = "") -> list[Record]:
        """Return the records, of one noun or of all, the oldest first.

        Raises MetadataError for a file that is no record: those are written whole.
        """
        read = (_read(path) for path in sorted(self.folder.glob("*.json")))
        found = [record for record in read if record and noun in ("", record.noun)]
        return sorted(found, key=lambda record: record.made)

    def find(self, noun: str, name: str) -> Record | None:
        """Return the record of this name, None when there is none."""
        return _read(self._path(noun, name))

    def begin(self, record: Record) -> None:
        """Note that a workflow begins.

        Raises BusyError while another one works on one of its devices, and DmcopyError naming the
        remedy when such a one was interrupted.
        """
        with self._locked():
            self._refuse_overlap(record)
            record.made = round(time.time(), 3)
            self._own(record)

    def adopt(self, record: Record) -> None:
        """Note that this process goes on with an interrupted workflow. Raises BusyError."""
        with self._locked():
            now = self.find(record.noun, record.name)
            if now is not None and now.running and now.owner != self.owner:
                raise _busy(record.name, now)
            self._own(record)

    def save(self, record: Record) -> None:
        """Write the record, durably."""
        path = self._path(record.noun, record.name)
        temporary = path.with_suffix(".new")
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(json.dumps(asdict(record)))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            self._sync_folder()
        except OSError as error:
            raise self._failed(error) from error

    def end(self, record: Record) -> None:
        """Note that the workflow has ended, or that nothing is left of it."""
        try:
            self._path(record.noun, record.name).unlink(missing_ok=True)
            self._sync_folder()
        except OSError as error:
            raise self._failed(error) from error

    def _own(self, record: Record) -> None:
        record.owner = self.owner
        record.boot = boot_id()
        self.save(record)

    def _refuse_overlap(self, record: Record) -> None:
        mine = {record.name, *record.devices}
        for other in self.records():
            shared = sorted(mine & {other.name, *other.devices})
            if not shared:
                continue
            if other.running:
                raise _busy(shared[0], other)
            raise DmcopyError(f"{shared[0]}: '{other}' was interrupted: {other.advice}")

    def _path(self, noun: str, name: str) -> Path:
        return self.folder / f"{noun}-{mangle(name)}.json"

    def _sync_folder(self) -> None:
        if not self.folder.is_dir():  # nothing was ever noted
            return
        fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other processes out for a moment; a record itself keeps them out for longer."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            opened = (self.folder / "lock").open("a")
        except OSError as error:
            raise self._failed(error) from error
        with opened as file:
            lock(file, self.folder)
            yield

    def _failed(self, error: OSError) -> DeviceError:
        return DeviceError(str(self.folder), "keep the journal of workflows", error.errno or 0)


class NoJournal(Journal):
    """Notes nothing: for steps that are only printed. It still tells what is interrupted."""

    def save(self, record: Record) -> None:
        """Write nothing."""

    def end(self, record: Record) -> None:
        """Forget nothing."""

    def adopt(self, record: Record) -> None:
        """Take nothing over."""

    def begin(self, record: Record) -> None:
        """Refuse what `Journal.begin` would, and note nothing."""
        self._refuse_overlap(record)


def _busy(name: str, other: Record) -> BusyError:
    return BusyError(name, [f"process {other.owner.partition(' ')[0]} ({other})"])


def _read(path: Path) -> Record | None:
    """Return the record in a file, None when it is gone: the workflow may end at any moment."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        values["steps"] = [Step(**step) for step in values["steps"]]
        values["devices"] = tuple(values["devices"])
        return Record(**values)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MetadataError(f"{path} is not the record of a workflow: {error}") from error
