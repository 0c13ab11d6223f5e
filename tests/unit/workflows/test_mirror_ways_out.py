"""No dead ends: whatever was interrupted and is found changed, a verb leads out, and is named."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmcopy.errors import DmcopyError
from dmcopy.table import Linear, Table
from dmcopy.workflows import record as records
from dmcopy.workflows.journal import Journal
from dmcopy.workflows.session import Session

from .fake_mirrors import SECTORS, FakeMirrors
from .test_mirror import CASES, broken_off, session
from .ways import Happening, gone, leave, other, there, without

LENGTH = os.environ.get("DMCOPY_TEST", "")
STRIDE = 4 if LENGTH == "quick" else 2
VERBS = ("finish", "undo", "forget")
HIDDEN = "home_mimage_0"


THEIRS = Table.of(SECTORS, Linear("/theirs", 0))

HAPPENINGS = [
    *(there, gone),
    *(without(name) for name in ("home", HIDDEN, "copy")),
    *(other(name, THEIRS) for name in ("home", HIDDEN, "copy")),
]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr("dmcopy.block.holders.who", lambda _: [])


class Copy:
    """What a kill has left, once more: a fake mapper and a journal to be changed."""

    def __init__(self, fake: FakeMirrors, folder: Path) -> None:
        shutil.copytree(fake.folder / "journal", folder)
        self.folder = folder
        self.fake = copy.deepcopy(fake)
        self.fake.user, self.fake.strict = "", False

    def session(self) -> Session:
        return session(self.fake, Journal(self.folder))


def kills(name: str, folder: Path) -> Iterator[tuple[int, FakeMirrors]]:
    """Yield the mapper after a kill at each call."""
    for at in range(100):
        fake = FakeMirrors(folder / str(at))
        fake.folder.mkdir()
        if not broken_off(fake, CASES[name], at, after=at % 2 == 0):
            assert at > 2
            return
        if session(fake).journal.records():
            yield at, fake
        shutil.rmtree(fake.folder)
    raise AssertionError("it has no end")


def walk(name: str, folder: Path, happenings: list[Happening]) -> None:
    for at, fake in kills(name, folder):
        for place, happens in enumerate(happenings):
            long = LENGTH == "long"
            chosen = VERBS if long else (VERBS[(at // STRIDE + place) % 3],)
            for verb in chosen if long or (at + place) % STRIDE == 0 else ():
                found = Copy(fake, fake.folder / "copy")
                changed = happens(found.fake)
                found.session().advice(found.session().journal.records()[0])
                tried = leave(found.session, verb)
                assert all(found.fake.devices[one].live == THEIRS for one in changed)
                if "forget" not in tried:
                    devices = found.fake.devices.values()
                    assert not [one for one in devices if one.suspended or one.inactive]
                shutil.rmtree(found.folder)


@pytest.fixture
def folder() -> Iterator[Path]:
    memory = Path("/dev/shm" if os.access("/dev/shm", os.W_OK) else "/tmp")
    path = memory / f"dmcopy-ways-{os.getpid()}"
    path.mkdir()
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize("name", CASES)
def test_every_state_has_a_verb_that_leads_out_of_it(name: str, folder: Path) -> None:
    walk(name, folder, HAPPENINGS)


@pytest.mark.parametrize("name", ["make from a device", "replace, with a log", "split", "end it"])
def test_so_it_has_after_a_restart(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boot = iter(range(1000))
    monkeypatch.setattr(records, "boot_id", lambda: f"boot {next(boot)}")
    walk(name, folder, [gone, lambda fake: gone(fake) or other("home", THEIRS)(fake)])


@pytest.mark.parametrize("name", CASES)
def test_a_stranger_is_seen_before_the_first_step_too(name: str, folder: Path) -> None:
    """A kill between the noting of a workflow and its first step leaves nothing that is begun."""
    at, fake = next(kills(name, folder))
    assert at == 0
    found = Copy(fake, fake.folder / "copy")
    changed = other("home", THEIRS)(found.fake)
    if changed:
        with pytest.raises(DmcopyError, match="home has another table than"):
            found.session().finish("mirror", "home")
        assert found.fake.devices["home"].live == THEIRS


@pytest.mark.parametrize("verb", ["finish", "undo"])
def test_a_restart_leaves_nothing_to_be_ended(
    verb: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process of the new boot ends it: that is looked at before the record is its."""
    boot = "one"
    monkeypatch.setattr(records, "boot_id", lambda: boot)
    for _, fake in kills("make from a device", folder):
        boot = "two"
        gone(fake)
        (record,) = session(fake).journal.records()
        assert "the machine was restarted since; 'dmcopy mirror undo home'" in record.advice
        assert getattr(session(fake), verb)("mirror", "home").how == "by a restart"
        assert session(fake).journal.records() == []
        boot = "one"
