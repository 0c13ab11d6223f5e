"""What the journal keeps of a workflow: its steps, how far it is, and how both are read again.

A record is trusted to change devices, so whatever cannot have been written by `Journal.save` is
refused as a whole: a field of another type, a verb that there is not, a table that does not parse.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import re
import types
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Union, get_args, get_origin, get_type_hints

from dmcopy.errors import DmcopyError
from dmcopy.ledger import alive, boot_id
from dmcopy.mapper.base import check_name
from dmcopy.table import Table

VERBS: Final = {
    "mirror": ("make", "fail", "replace", "split", "move", "drop"),
    "snapshot": ("take", "extend", "merge", "drop"),
}
_ON_DEVICES: Final = ("create", "load", "suspend", "resume", "remove", "retire")
_SWAPS: Final = ("swap", "settle", "detach", "replace")
_ON_PATHS: Final = ("attach", "detach", "grow", "wipe", "clean")
_OWNER: Final = re.compile(r"([0-9]{1,10} [0-9]{1,20})?")


@dataclass(frozen=True, slots=True)
class Step:
    """One change of one device.

    Attributes:
        verb: create (without `table`, only the device), load, suspend, resume, remove; or a verb of
            the workflow's own.
        device: the name of a mapped device; for a verb of the workflow's own, what that needs.
        table: for create and load, the table as text. It names devices by paths that outlive a
            reboot; a mapped one by `Mapper.path`.
        before: the table that the device has before the step, as the engine printed it. For the
            resume of a device that had one already, it tells whether the swap has happened, and
            undo loads it.
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
        facts: what the workflow wants to find again; JSON values. A snapshot's are its layout and,
            for a merge, phase and total; a mirror's the steps after the resync, and what of it.
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

    def own(self, owner: str) -> None:
        """Note that the process `owner` runs it from now on."""
        self.owner, self.boot = owner, boot_id()

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

    @property
    def last_resort(self) -> str:
        """What a person can do once that has failed, too."""
        return f"'dmcopy {self.noun} forget {self.name}' gives it up, and leaves things as they are"

    def build(self) -> bytes:
        """Return it as a file has it."""
        return json.dumps(asdict(self)).encode()


def parse(data: bytes, facts: dict[str, type]) -> Record:
    """Return the record in a file. Raises ValueError saying why it is none.

    `facts`: which type those of a noun have that are a dataclass of its own.
    """
    try:
        record: Record = typed(Record, json.loads(data))
        _check(record)
        for name, kind in facts.items():
            if name in record.facts:
                typed(kind, record.facts[name])
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except DmcopyError as error:
        raise ValueError(str(error)) from error
    return record


def typed(kind: Any, value: Any) -> Any:
    """Return the value of type `kind` that a JSON value stands for. Raises ValueError."""
    origin = get_origin(kind)
    if dataclasses.is_dataclass(kind):
        return _built(kind, value)
    if origin in (Union, types.UnionType):
        return None if value is None else typed(get_args(kind)[0], value)
    if origin in (list, tuple):
        if not isinstance(value, list):
            raise ValueError(f"{_short(value)} is no list")
        return origin(typed(get_args(kind)[0], one) for one in value)
    wanted = origin or kind
    if type(value) is not wanted and not (wanted is float and type(value) is int):
        raise ValueError(f"{_short(value)} is no {wanted.__name__}")
    if wanted is str and "\0" in value:
        raise ValueError("there is a zero byte in a name")
    if wanted is str:
        os.fsencode(value)  # half a surrogate pair is no text (UnicodeEncodeError)
    return value


def _built(kind: Any, values: Any) -> Any:
    if not isinstance(values, dict):
        raise ValueError(f"{_short(values)} is no object")
    hints = _hints(kind)
    odd = sorted(values.keys() - hints.keys())
    needed = [one.name for one in dataclasses.fields(kind) if _needed(one)]
    lacking = [name for name in needed if name not in values]
    if odd or lacking:
        raise ValueError(f"no field {_short(odd[0])}" if odd else f"{lacking[0]} is lacking")
    return kind(**{name: typed(hints[name], value) for name, value in values.items()})


_hints = functools.cache(get_type_hints)


def _needed(one: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return one.default is missing and one.default_factory is missing


def _check(record: Record) -> None:
    """Raise ValueError or UsageError for what no workflow is."""
    if record.verb not in VERBS.get(record.noun, ()):
        raise ValueError(f"there is no {_short(record.noun)} {_short(record.verb)}")
    if not 0 <= record.settled <= record.begun <= len(record.steps):
        raise ValueError(f"{record.settled} and {record.begun} of {len(record.steps)} steps")
    if not _OWNER.fullmatch(record.owner) or not math.isfinite(record.made):
        raise ValueError("it says not who made it, or when")
    for name in (record.name, *record.devices):
        check_name(name)
    for step in record.steps:
        _check_step(step)
    facts = record.facts
    if record.noun == "snapshot":
        wanted: dict[str, Any] = {"layout": dict[str, Any]}
        wanted |= {"phase": str, "total": int} if record.verb == "merge" else {}
    else:
        wanted = {"after": list[Step], "resync": bool, "undo_failed": bool}
    if facts.keys() != wanted.keys():
        raise ValueError(f"its facts are not {', '.join(wanted)}")
    found = {name: typed(kind, facts[name]) for name, kind in wanted.items()}
    if found.get("phase", "run") not in ("begin", "run", "end"):
        raise ValueError(f"no phase {_short(facts['phase'])}")
    for step in found.get("after", ()):
        _check_step(step)


def _check_step(step: Step) -> None:
    if step.verb not in (*_ON_DEVICES, *_SWAPS, *_ON_PATHS):
        raise ValueError(f"no step {_short(step.verb)}")
    if step.verb in ("grow", "wipe", "clean"):
        if not re.fullmatch("[0-9]{1,19}", step.table):
            raise ValueError(f"{_short(step.table)} is no number of sectors")
    else:
        Table.read(step.table)
    Table.read(step.before)
    if step.verb in _ON_DEVICES or (step.verb in _SWAPS and step.table):
        check_name(step.device)
    elif not step.device:
        raise ValueError("a step is about nothing")


def _short(value: object) -> str:
    text = ascii(value)
    return text if len(text) < 40 else f"{text[:36]} ..."
