"""Every snapshot workflow, killed at every call: it can be finished or undone; nothing leaks."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dmcopy.errors import DmcopyError, UsageError
from dmcopy.workflows import record as records

from .fake import Crash
from .fake_snapshots import CHUNK, COW_SECTORS, SECTORS, Process, Stage

Verb = Callable[[Process], object]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for this machine's disk."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def request(name: str, origin: str = "data", cow: str = "/dev/cow") -> dict[str, Any]:
    return {"name": name, "origin": origin, "cow": cow, "chunk_size": CHUNK}


def mapped(stage: Stage) -> None:
    stage.origin()
    stage.fake.disk("/dev/cow", COW_SECTORS)
    stage.fake.disk("/dev/more", COW_SECTORS)
    stage.fake.disk("/dev/cow2", COW_SECTORS)
    stage.fake.disk("/x/cow.img", COW_SECTORS)


def snapped(stage: Stage) -> None:
    mapped(stage)
    stage.process().take(**request("snap"))
    for _ in range(3):
        stage.fake.write()


def on_a_file(stage: Stage) -> None:
    mapped(stage)
    stage.process().take(**request("snap", cow="/x/cow.img"))


def snapped_twice(stage: Stage) -> None:
    snapped(stage)
    stage.process().take(**request("other", cow="/dev/cow2"))
    stage.fake.write()


def unmapped(stage: Stage) -> None:
    mapped(stage)
    stage.fake.disk("/dev/b")


def unmapped_snapped(stage: Stage) -> None:
    unmapped(stage)
    stage.process().take(**request("snap", "/dev/b"))
    stage.fake.use("b-origin")
    stage.fake.write()


def rest(before: Callable[[Stage], None]) -> Callable[[Stage], None]:
    """Nothing uses the origin: it is about to be rolled back."""

    def setup(stage: Stage) -> None:
        before(stage)
        stage.fake.user = ""

    return setup


def take(snapshots: Process) -> object:
    return snapshots.take(**request("snap"))


CASES: dict[str, tuple[Callable[[Stage], None], Verb]] = {
    "take": (mapped, take),
    "take on a file": (mapped, lambda s: s.take(**request("snap", cow="/x/cow.img"))),
    "take another": (snapped, lambda s: s.take(**request("other", cow="/dev/cow2"))),
    "take of an unmapped one": (unmapped, lambda s: s.take(**request("snap", "/dev/b"))),
    "drop the last": (snapped, lambda s: s.drop("snap")),
    "drop one on a file": (on_a_file, lambda s: s.drop("snap")),
    "drop one of two": (snapped_twice, lambda s: s.drop("snap")),
    "drop of an unmapped one": (rest(unmapped_snapped), lambda s: s.drop("snap")),
    "extend on another device": (
        snapped,
        lambda s: s.extend("snap", COW_SECTORS + 8, more="/dev/more"),
    ),
    "extend a file": (on_a_file, lambda s: s.extend("snap", 2 * COW_SECTORS)),
    "merge": (rest(snapped), lambda s: s.merge("snap")),
    "merge with another": (rest(snapped_twice), lambda s: s.merge("snap")),
    "merge of an unmapped one": (rest(unmapped_snapped), lambda s: s.merge("snap")),
}
MERGES = [name for name in CASES if name.startswith("merge")]


class Play:
    """One case on a fake of its own."""

    def __init__(self, folder: Path, name: str) -> None:
        setup, self.verb = CASES[name]
        self.stage = Stage(folder)
        setup(self.stage)
        self.fake = self.stage.fake
        self.before = self.state()
        self.stores = set(self.fake.stores)
        self.fake.calls = 0

    def state(self) -> tuple[dict[str, str], set[str]]:
        return self.fake.tables(), set(self.fake.loops)

    def crash(self, at: int, *, after: bool, action: Verb | None = None) -> bool:
        """Run until it is killed at call `at`; return whether it was."""
        snapshots = self.stage.process()
        self.fake.calls, self.fake.crash_at, self.fake.after = 0, at, after
        with contextlib.suppress(Crash):
            (action or self.verb)(snapshots)
        return self.fake.dead

    def undo(self, snap: str) -> str:
        """Undo what was interrupted; return why not, "" if it was done."""
        try:
            self.stage.process().undo("snapshot", snap)
        except DmcopyError as error:
            return str(error)
        return ""

    def check_data(self) -> None:
        """What the user of the origin wrote is there; a snapshot is the origin as it once was."""
        if self.fake.user:
            assert self.fake.read(self.fake.user) == self.fake.expected
        for name in ("snap", "other"):
            if name in self.fake.devices and "data" in self.fake.devices:
                origin = "b-origin" if "b-origin" in self.fake.devices else "data"
                moments = self.fake.devices[origin].moments
                assert not moments or self.fake.read(name) in moments

    def check_clean(self) -> None:
        self.state()  # asserts that nothing is suspended or only loaded
        assert self.stage.records() == []
        self.check_data()


@pytest.fixture
def plays() -> Iterator[Callable[[str], Play]]:
    """Make plays, with their journals in memory: a disk takes milliseconds for each rename."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as top:
        yield lambda name: Play(Path(tempfile.mkdtemp(dir=top)), name)


def crashes(plays: Callable[[str], Play], name: str) -> Iterator[Play]:
    """Yield a play of the case for each moment at which it can be killed, just after that."""
    for at in range(100):
        for after in (False, True):
            play = plays(name)
            if not play.crash(at, after=after):
                assert at > 2
                return
            yield play
    raise AssertionError("it has no end")


def uninterrupted(plays: Callable[[str], Play], name: str) -> tuple[dict[str, str], set[str]]:
    play = plays(name)
    play.verb(play.stage.process())
    play.check_clean()
    return play.state()


@pytest.mark.parametrize("name", CASES)
def test_killed_anywhere_it_can_be_finished(plays: Callable[[str], Play], name: str) -> None:
    wanted = uninterrupted(plays, name)
    assert wanted != plays(name).before
    for play in crashes(plays, name):
        if not play.stage.records():
            play.check_clean()  # before the first step, or after the last
            continue
        (snap,) = (record.name for record in play.stage.process().journal.records())
        play.stage.process().finish("snapshot", snap)
        play.check_clean()
        assert play.state() == wanted


@pytest.mark.parametrize("name", CASES)
def test_killed_anywhere_it_can_be_undone_or_says_why_not(
    plays: Callable[[str], Play], name: str
) -> None:
    wanted = uninterrupted(plays, name)
    undone = 0
    for play in crashes(plays, name):
        for record in play.stage.process().journal.records():
            said = play.undo(record.name)
            if said:
                assert "cannot be taken back" in said
                assert name.startswith(("drop", "merge"))
                play.stage.process().finish("snapshot", record.name)
                assert play.state() == wanted
            else:
                assert play.state() == play.before
                assert play.fake.stores.keys() == play.stores, "a begun store is in the way"
                undone += 1
        play.check_clean()
    assert undone


@pytest.mark.parametrize("name", ["take", "take another", "merge", "drop the last"])
@pytest.mark.parametrize("how", ["finish", "undo"])
def test_killed_a_second_time_while_it_is_ended(
    plays: Callable[[str], Play], name: str, how: str
) -> None:
    wanted = uninterrupted(plays, name)
    snap = "other" if "another" in name else "snap"

    def end(snapshots: Process) -> None:
        if how == "undo":
            with contextlib.suppress(DmcopyError):
                snapshots.undo("snapshot", snap)
        elif snapshots.journal.records():
            snapshots.finish("snapshot", snap)

    for at in range(0, 60, 3):
        for second in range(60):
            play = plays(name)
            if not play.crash(at, after=bool(at % 2)):
                return
            killed = play.crash(second, after=bool(second % 2), action=end)
            for record in play.stage.process().journal.records():
                play.stage.process().finish("snapshot", record.name)
            play.check_clean()
            assert play.state() in (wanted, play.before)
            if not killed:
                break


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("origin_is_back", [False, True])
def test_killed_by_a_restart_of_the_machine(
    plays: Callable[[str], Play],
    name: str,
    origin_is_back: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    boot = 1
    monkeypatch.setattr(records, "boot_id", lambda: f"boot {boot}")
    for play in crashes(plays, name):
        boot += 1
        merged = name in MERGES and play.stage.records()
        play.fake.restart()
        play.fake.user = ""
        if origin_is_back:
            play.fake.revive()
            play.stage.origin_again()
        before = play.fake.tables()
        for record in play.stage.process().journal.records():
            if name in MERGES:
                with pytest.raises(DmcopyError, match="continues it"):
                    play.stage.process().undo("snapshot", record.name)
                play.stage.process().merge(record.name)
            else:
                ended = play.stage.process().undo("snapshot", record.name)
                assert ended.how == "by a restart"
        play.fake.user = ""
        play.check_clean()
        left = {key: table for key, table in play.fake.tables().items() if key != "data"}
        assert left == {} or left == {key: t for key, t in before.items() if key != "data"}
        if merged:
            assert play.fake.stores.get("/dev/cow", {}) == {}


@pytest.mark.parametrize("failing", [False, True])
def test_a_merge_that_is_interrupted_again_after_a_restart(
    plays: Callable[[str], Play], failing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    boot = 1
    monkeypatch.setattr(records, "boot_id", lambda: f"boot {boot}")
    wanted = plays("merge").fake.read("snap")
    for second in range(100):
        boot = 1
        play = plays("merge")
        assert play.crash(5, after=True)
        boot = 2
        play.fake.restart()
        play.stage.process()
        play.stage.origin_again()
        if failing:
            what = ("load data", "create snap-cow", "suspend data")[second % 3]
            with pytest.raises(DmcopyError):
                play.stage.process(what).merge("snap")
            assert play.stage.records()  # or nothing would tell that it has to continue
        elif not play.crash(second, after=bool(second % 2)):
            break
        if play.stage.records():
            assert "cannot be taken back" in play.undo("snap")
            play.stage.process().merge("snap")
        assert play.fake.disks["/dev/a"] == wanted
        play.check_clean()
        if failing and second == 2:
            break


@pytest.mark.parametrize("name", MERGES)
def test_a_merge_rolls_back_whenever_it_is_killed(plays: Callable[[str], Play], name: str) -> None:
    wanted = plays(name).fake.read("snap")
    for play in crashes(plays, name):
        for record in play.stage.process().journal.records():
            play.stage.process().finish("snapshot", record.name)
            origin = "/dev/b" if "unmapped" in name else "/dev/a"
            assert play.fake.disks[origin] == wanted


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("merge")])
def test_a_step_that_fails_is_taken_back_at_once(plays: Callable[[str], Play], name: str) -> None:
    play = plays(name)
    play.verb(play.stage.process())
    steps = [what for what in play.fake.log if what.split()[0] in ("load", "suspend", "resume")]
    for what in dict.fromkeys(steps):
        play = plays(name)
        snapshots = play.stage.process()
        play.fake.failing, play.fake.log = what, []
        with contextlib.suppress(DmcopyError):
            play.verb(snapshots)
        if play.stage.records():  # too late to go back
            assert name.startswith("drop")
            play.stage.process().finish("snapshot", "snap")
        else:
            assert play.state() == play.before or what not in play.fake.log
        play.check_clean()


def test_others_keep_off_what_is_interrupted(plays: Callable[[str], Play]) -> None:
    play = plays("take")
    assert play.crash(5, after=False)
    snapshots = play.stage.process()
    with pytest.raises(DmcopyError, match="'dmcopy snapshot take snap' was interrupted"):
        snapshots.take(**request("another", cow="/dev/cow2"))
    with pytest.raises(DmcopyError, match="dmcopy snapshot finish snap"):
        take(snapshots)
    with pytest.raises(UsageError, match="nothing was interrupted"):
        snapshots.finish("snapshot", "another")
    snapshots.finish("snapshot", "snap")
    snapshots.take(**request("another", cow="/dev/cow2"))
    assert sorted(play.fake.tables()) == [
        *("another", "another-cow", "data", "data-real", "snap", "snap-cow")
    ]
    assert play.fake.devices["data"].live is not None
    assert play.fake.devices["data"].live.length == SECTORS
