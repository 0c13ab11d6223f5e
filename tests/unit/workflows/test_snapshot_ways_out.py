"""No dead ends: whatever was interrupted and is found changed, a verb leads out, and is named."""

from __future__ import annotations

import copy
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dmcopy.errors import DmcopyError
from dmcopy.table import Linear, Table
from dmcopy.workflows import record as records
from dmcopy.workflows.snapshot_status import states

from .snapshot_world import SECTORS, Process, Stage
from .test_snapshot_crashes import Play, crashes, plays, request  # noqa: F401 - a fixture

CASES = [
    "take",
    "take on a file",
    "take another",
    "take of an unmapped one",
    "drop the last",
    "drop one on a file",
    "drop of an unmapped one",
    "extend on another device",
    "extend a file",
    "merge",
    "merge with another",
    "merge of an unmapped one",
]
LENGTH = os.environ.get("DMCOPY_TEST", "")
STRIDE = 5 if LENGTH == "quick" else 2
VERBS = ("finish", "undo", "forget")
THEIRS = Table.of(SECTORS, Linear("/dev/theirs", 0))


def there(stage: Stage) -> list[str]:
    """Nothing happens to the devices."""
    del stage
    return []


def gone(stage: Stage) -> list[str]:
    """Somebody removes all devices by hand."""
    stage.world.devices.clear()
    return []


def anew(stage: Stage) -> list[str]:
    """Somebody removes all devices, and makes the origin again."""
    stage.world.devices.clear()
    stage.origin_again()
    return []


def without(name: str) -> Callable[[Stage], list[str]]:
    """Somebody removes one device."""

    def remove(stage: Stage) -> list[str]:
        if not stage.world.users(name):
            stage.world.devices.pop(name, None)
        return []

    remove.__name__ = f"without {name}"
    return remove


def other(name: str) -> Callable[[Stage], list[str]]:
    """Somebody removes a device, and makes one of that name."""

    def change(stage: Stage) -> list[str]:
        if stage.world.users(name):
            return []
        stage.world.replace(name, THEIRS)
        return [name]

    change.__name__ = f"another {name}"
    return change


def overwritten(stage: Stage) -> list[str]:
    """All devices are removed, and the COW is used for something else."""
    gone(stage)
    stage.world.stores.clear()
    stage.world.content |= {"/dev/cow": "ext4", "/x/cow.img": "ext4"}
    return ["/dev/cow", "/x/cow.img"]


def cut_short(stage: Stage) -> list[str]:
    """The COW is shorter than it was, so that the kernel refuses its table."""
    gone(stage)
    for disk in ("/dev/cow", "/x/cow.img"):
        stage.world.disks.pop(disk, None)
    return []


HAPPENINGS = [
    *(there, gone, anew, overwritten, cut_short),
    *(without(name) for name in ("data", "snap", "b-origin", "snap-cow")),
    *(other(name) for name in ("data", "snap", "snap-cow", "data-real")),
]


class Copy:
    """What a kill has left, once more: a world and a journal to be changed."""

    def __init__(self, play: Play, folder: Path) -> None:
        shutil.copytree(play.stage.folder / "workflows", folder / "workflows")
        self.stage = copy.deepcopy(play.stage)
        self.stage.folder = folder
        self.stage.machine.ledger.path = folder / "ledger.jsonl"
        self.world = self.stage.world
        self.world.revive()
        self.world.user, self.world.strict = "", False

    def process(self) -> Process:
        return self.stage.process()


def named(text: str) -> list[str]:
    """Return the verbs that a sentence names as ways out."""
    return re.findall(r"'dmcopy snapshot (finish|undo|forget|merge) (?:snap|other)'", text)


ORDER = ("merge", "finish", "undo", "forget")


def leave(found: Copy, verb: str) -> list[str]:
    """Do what the sentences say, a verb once and forget last, until there is no record."""
    tried: list[str] = []
    while found.stage.records():
        tried.append(verb)
        snapshots = found.process()
        (record,) = snapshots.journal.records()
        said = ""
        try:
            if verb == "merge":
                snapshots.merge(record.name)
            else:
                getattr(snapshots, verb)("snapshot", record.name)
        except DmcopyError as error:
            said = "\n".join([str(error), *getattr(error, "__notes__", ())])
        if not found.stage.records():
            assert not said or "was taken back" in said
            break
        ways = sorted({*named(said)} - {*tried}, key=ORDER.index)
        assert ways, f"no way out is named after {tried}: {said}"
        verb = ways[0]
    return tried


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


def copies(play: Play, at: int, place: int) -> Iterator[tuple[Copy, str]]:
    """Yield copies of what kill `at` has left, with the verb that is tried first.

    That is one for each happening `place`, another one at the next kill; all in a long run.
    """
    long, folder = LENGTH == "long", play.stage.folder / "copy"
    chosen = VERBS if long else (VERBS[(at // STRIDE + place) % 3],)
    for verb in chosen if long or (at + place) % STRIDE == 0 else ():
        yield Copy(play, folder), verb
        shutil.rmtree(folder)


@pytest.mark.parametrize("name", CASES)
def test_every_state_has_a_verb_that_leads_out_of_it(
    plays: Callable[[str], Play],  # noqa: F811
    name: str,
) -> None:
    for number, play in enumerate(crashes(plays, name)):
        for place, happens in enumerate(HAPPENINGS if play.stage.records() else []):
            for copied, verb in copies(play, number, place):
                theirs = happens(copied.stage)
                states(copied.world, copied.process().journal)
                check(copied, theirs, leave(copied, verb))


def check(found: Copy, theirs: list[str], tried: list[str]) -> None:
    """What is somebody else's is as it was; without forget, no device is left suspended."""
    world = found.world
    for name in theirs:
        if name.startswith("/"):
            assert name not in world.stores, "a file system was overwritten"
        else:
            assert world.devices[name].live == THEIRS
    if "forget" not in tried:
        assert not any(mapped.suspended for mapped in world.devices.values())
        assert not any(mapped.inactive for mapped in world.devices.values())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("origin_is_back", [False, True])
def test_so_it_has_after_a_restart(
    plays: Callable[[str], Play],  # noqa: F811
    name: str,
    origin_is_back: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    boot = 1
    monkeypatch.setattr(records, "boot_id", lambda: f"boot {boot}")
    happenings = [anew if origin_is_back else gone, overwritten, cut_short, other("data")]
    for number, play in enumerate(crashes(plays, name)):
        boot = 2
        for place, happens in enumerate(happenings if play.stage.records() else []):
            for copied, verb in copies(play, number, place):
                copied.world.restart()
                theirs = happens(copied.stage)
                check(copied, theirs, leave(copied, verb))
        boot = 1
