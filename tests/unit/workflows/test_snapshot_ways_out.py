"""No dead ends: whatever was interrupted and is found changed, a verb leads out, and is named."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dmcopy.table import Linear, Table
from dmcopy.workflows import record as records
from dmcopy.workflows.snapshot_status import states

from .fake_snapshots import SECTORS, FakeSnapshots, Process
from .test_snapshot_crashes import Play, crashes, plays, request  # noqa: F401 - a fixture
from .ways import gone, leave, other, there, without

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


def anew(fake: FakeSnapshots) -> list[str]:
    """Another program removes all devices, and makes the origin again."""
    gone(fake)
    fake.create("data", Table.of(SECTORS, Linear("/dev/a", 0)))
    return []


def overwritten(fake: FakeSnapshots) -> list[str]:
    """All devices are removed, and the COW is used for something else."""
    gone(fake)
    fake.stores.clear()
    fake.content |= {"/dev/cow": "ext4", "/x/cow.img": "ext4"}
    return ["/dev/cow", "/x/cow.img"]


def cut_short(fake: FakeSnapshots) -> list[str]:
    """The COW is shorter than it was, so that the kernel refuses its table."""
    gone(fake)
    for disk in ("/dev/cow", "/x/cow.img"):
        fake.disks.pop(disk, None)
    return []


HAPPENINGS = [
    *(there, gone, anew, overwritten, cut_short),
    *(without(name) for name in ("data", "snap", "b-origin", "snap-cow")),
    *(other(name, THEIRS) for name in ("data", "snap", "snap-cow", "data-real")),
]


class Copy:
    """What a kill has left, once more: a fake mapper and a journal to be changed."""

    def __init__(self, play: Play, folder: Path) -> None:
        shutil.copytree(play.stage.folder / "workflows", folder / "workflows")
        self.stage = copy.deepcopy(play.stage)
        self.stage.folder = folder
        self.stage.machine.ledger.path = folder / "ledger.jsonl"
        self.fake = self.stage.fake
        self.fake.revive()
        self.fake.user, self.fake.strict = "", False

    def process(self) -> Process:
        return self.stage.process()


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
                theirs = happens(copied.fake)
                states(copied.fake, copied.process().journal)
                check(copied, theirs, leave(copied.process, verb))


def check(found: Copy, theirs: list[str], tried: list[str]) -> None:
    """What is another program's is as it was; without forget, no device is left suspended."""
    fake = found.fake
    for name in theirs:
        if name.startswith("/"):
            assert name not in fake.stores, "a file system was overwritten"
        else:
            assert fake.devices[name].live == THEIRS
    if "forget" not in tried:
        assert not any(mapped.suspended for mapped in fake.devices.values())
        assert not any(mapped.inactive for mapped in fake.devices.values())


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
    happenings = [anew if origin_is_back else gone, overwritten, cut_short, other("data", THEIRS)]
    for number, play in enumerate(crashes(plays, name)):
        boot = 2
        for place, happens in enumerate(happenings if play.stage.records() else []):
            for copied, verb in copies(play, number, place):
                copied.fake.restart()
                theirs = happens(copied.fake)
                check(copied, theirs, leave(copied.process, verb))
        boot = 1
