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
from dmcopy.workflows.snapshot_layout import SnapshotLayout
from dmcopy.workflows.step import Step

VERBS: Final = {
    "mirror": ("make", "fail", "replace", "split", "move", "drop"),
    "snapshot": ("take", "extend", "merge", "drop"),
}
WAITS: Final = {"mirror": ("", "resync"), "snapshot": ("",), "snapshot merge": ("", "merge")}
VERSION: Final = 2
_OWNER: Final = re.compile(r"([0-9]{1,10} [0-9]{1,20})?")


@dataclass(frozen=True, slots=True)
class Plan:
    """A workflow that has been checked, and has changed nothing yet: `dmcopy NOUN VERB NAME`.

    Attributes:
        steps: what is done first, in order.
        wait: what is waited for then: resync, merge, or "" for nothing.
        after: what is done when that is over; a merge plans it then.
        devices: the names of all mapped devices that no other workflow may change meanwhile.
        undo_failed: take everything back when a leg fails before the device is in sync.
        layout: of a snapshot.
        total: sectors: those that a merge copies back, those of a COW that is made longer.
        committed: it cannot be undone: another workflow, or another program, has begun it.
    """

    noun: str
    verb: str
    name: str
    steps: Sequence[Step]
    after: Sequence[Step] = ()
    devices: tuple[str, ...] = ()
    wait: str = ""
    undo_failed: bool = False
    layout: SnapshotLayout | None = None
    total: int = 0
    committed: bool = False


@dataclass(slots=True)
class PlanRecord:
    """A plan that is carried out. The attributes are the plan's, and besides:

    Attributes:
        settled: how many steps have surely ended.
        begun: how many were begun; those from `settled` on may have happened or not.
        committed: it cannot be undone any more: a final step has ended.
        undoing: the steps are being taken back, the last one first.
        owner: the process that runs it, as the ledger has it; `boot`: in which boot.
        version: of this format.
    """

    noun: str
    verb: str
    name: str
    steps: list[Step]
    after: list[Step] = field(default_factory=list)
    devices: tuple[str, ...] = ()
    wait: str = ""
    undo_failed: bool = False
    layout: SnapshotLayout | None = None
    total: int = 0
    committed: bool = False
    settled: int = 0
    begun: int = 0
    undoing: bool = False
    owner: str = ""
    boot: str = ""
    made: float = 0.0
    version: int = VERSION

    @classmethod
    def of(cls, plan: Plan) -> PlanRecord:
        """Return the record of a plan of which nothing is done."""
        values = {one.name: getattr(plan, one.name) for one in dataclasses.fields(plan)}
        return cls(**{**values, "steps": list(plan.steps), "after": list(plan.after)})

    @property
    def running(self) -> bool:
        """Whether the process that runs it is still there."""
        return not self.rebooted and alive(self.owner)

    @property
    def rebooted(self) -> bool:
        """Whether the machine was restarted since: mapped devices do not outlive that."""
        return self.boot not in ("", boot_id())

    @property
    def ended_by_restart(self) -> bool:
        """Whether a restart of the machine has left nothing of it: only a merge outlives that."""
        return self.rebooted and (self.verb != "merge" or self.undoing)

    def own(self, owner: str) -> None:
        """Note that the process `owner` runs it from now on."""
        self.owner, self.boot = owner, boot_id()

    def next(self, steps: Sequence[Step]) -> None:
        """Continue with other steps, none of them begun."""
        self.steps = list(steps)
        self.settled = self.begun = 0

    def __str__(self) -> str:
        return f"dmcopy {self.noun} {self.verb} {self.name}"

    @property
    def advice(self) -> str:
        """What a person can do about it once it is interrupted."""
        if self.ended_by_restart:
            return (
                f"the machine was restarted since; 'dmcopy {self.noun} undo {self.name}' forgets it"
            )
        if self.undoing:
            return f"'dmcopy {self.noun} undo {self.name}' continues to take it back"
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


def parse(data: bytes) -> PlanRecord:
    """Return the record in a file. Raises ValueError saying why it is none."""
    try:
        values = json.loads(data)
        if isinstance(values, dict) and values.get("version") != VERSION:
            raise ValueError("another version of dmcopy has written it")
        record = typed(PlanRecord, values)
        assert isinstance(record, PlanRecord)
        _check(record)
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


def _check(record: PlanRecord) -> None:
    """Raise ValueError or UsageError for what no workflow is."""
    if record.verb not in VERBS.get(record.noun, ()):
        raise ValueError(f"there is no {_short(record.noun)} {_short(record.verb)}")
    if not 0 <= record.settled <= record.begun <= len(record.steps):
        raise ValueError(f"{record.settled} and {record.begun} of {len(record.steps)} steps")
    if not _OWNER.fullmatch(record.owner) or not math.isfinite(record.made):
        raise ValueError("it says not who made it, or when")
    for name in (record.name, *record.devices):
        check_name(name)
    if record.wait not in WAITS.get(f"{record.noun} {record.verb}", WAITS[record.noun]):
        raise ValueError(f"{record.noun} {record.verb} waits for no {_short(record.wait)}")
    layout = record.layout
    if (layout is None) != (record.noun == "mirror"):
        raise ValueError(f"the layout of a {record.noun} is {_short(layout)}")
    for text in () if layout is None else (layout.plain, layout.parts):
        Table.read(text)
    for step in (*record.steps, *record.after):
        step.check()


def _short(value: object) -> str:
    text = ascii(value)
    return text if len(text) < 40 else f"{text[:36]} ..."
