"""What can be asked of a snapshot, what is refused and why, and what its state is called."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dmcopy.errors import BusyError, DeadlineError, DmcopyError, UsageError
from dmcopy.status import SnapshotStatus
from dmcopy.table import Linear, Ratio, Raw, Table
from dmcopy.workflows import snapshot_watch
from dmcopy.workflows.snapshot import Growth, merge
from dmcopy.workflows.snapshot_merging import MergeProgress
from dmcopy.workflows.snapshot_status import SnapshotState, states
from dmcopy.workflows.snapshot_watch import SOONEST_SECONDS, Level, Threshold, watch

from .fake import Crash
from .fake_snapshots import CHUNK, COW_SECTORS, SECTORS, Stage

REQUEST: dict[str, Any] = {
    "name": "snap",
    "origin": "data",
    "cow": "/dev/cow",
    "chunk_size": CHUNK,
}


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    stage = Stage(tmp_path)
    stage.origin()
    stage.fake.disk("/dev/cow", COW_SECTORS)
    stage.fake.disk("/dev/b")
    return stage


def refusal(stage: Stage, **changes: Any) -> str:
    """Return why a request is refused; nothing is changed by that."""
    before = stage.fake.tables()
    with pytest.raises(UsageError) as caught:
        stage.process().take(**dict(REQUEST, **changes))
    assert stage.fake.tables() == before
    assert stage.records() == []
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"origin": "dta"}, "no mapped device 'dta'"),
        ({"origin": "/dev/nope"}, "/dev/nope: there is no such device"),
        ({"cow": "/dev/nope"}, "'truncate -s 1G /dev/nope' makes a file"),
        ({"name": "data"}, "a mapped device 'data' already"),
        ({"name": "a/b"}, "slash"),
        ({"cow": "data"}, "/dev/mapper/data is the origin itself"),
        ({"origin": "/dev/b", "cow": "/dev/b"}, "/dev/b is the origin itself"),
        ({"chunk_size": 3}, "power of two"),
        ({"chunk_size": 32}, "at least 3 chunks, 96s"),
        ({"store": "X"}, "must be P, PO or N"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_changed(
    stage: Stage, changes: dict[str, Any], says: str
) -> None:
    assert says in refusal(stage, **changes)


def test_what_is_on_the_devices_is_in_the_way(stage: Stage) -> None:
    stage.fake.content["/dev/cow"] = "ext4 'photos'"
    assert "/dev/cow has ext4 'photos' on it: --force overwrites it" in refusal(stage)
    stage.machine.blocks["/dev/cow"] = 8192
    assert "no multiple of the blocks of /dev/cow, 8192 bytes" in refusal(stage)
    del stage.machine.blocks["/dev/cow"]
    stage.machine.tops["/dev/cow"] = {"7:0", stage.machine.key("/dev/mapper/data")}
    assert "/dev/cow is on /dev/mapper/data itself" in refusal(stage)
    del stage.machine.tops["/dev/cow"]
    stage.machine.mounts["/dev/b"] = ["/home"]
    with pytest.raises(BusyError, match=r"mounted on /home.*mount /dev/mapper/b-origin in its"):
        stage.process().take(**dict(REQUEST, origin="/dev/b"))
    stage.machine.mounts["/dev/cow"] = ["/srv"]
    with pytest.raises(BusyError, match="/dev/cow is in use by"):
        stage.process().take(**REQUEST)
    assert sorted(stage.fake.tables()) == ["data"]
    del stage.machine.mounts["/dev/cow"]
    stage.process().take(**dict(REQUEST, force=True))


def test_tables_that_cannot_be_in_two_devices(stage: Stage) -> None:
    fake = stage.fake
    for target in (Raw("crypt", ("x",)), Raw("cache", ("y",))):
        fake.devices["data"].live = Table.of(SECTORS, target)
        fake.user = ""
        assert f"data has a line of {target.target}: dmcopy takes" in refusal(stage)
    fake.devices["data"].live = None
    assert "data has no table" in refusal(stage)


def test_the_second_snapshot_joins_whichever_way_the_origin_is_named(stage: Stage) -> None:
    stage.fake.disk("/dev/cow2", COW_SECTORS)
    stage.process().take(**dict(REQUEST, origin="/dev/b"))
    again = dict(REQUEST, name="two", origin="/dev/b", cow="/dev/cow2")
    stage.process().take(**again)
    tables = stage.fake.tables()
    assert tables["b-origin"] == "0 32 snapshot-origin /dev/b"
    assert tables["two"] == "0 32 snapshot /dev/b two-cow P 8"
    stage.process().drop("two")
    stage.process().drop("snap")
    assert sorted(stage.fake.tables()) == ["data"]


def test_what_is_in_use_is_neither_merged_nor_dropped(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dmcopy.workflows.site.GRACE_SECONDS", 0.0)
    stage.process().take(**REQUEST)
    stage.fake.devices["snap"].opened = 1
    with pytest.raises(BusyError, match=r"snap is in use by .*unmount it first"):
        stage.process().drop("snap")
    stage.fake.devices["snap"].opened = 0
    stage.fake.devices["data"].opened = 1
    with pytest.raises(BusyError, match=r"data is in use .*as soon as the merge runs"):
        stage.process().merge("snap")
    assert stage.records() == []


def test_what_cannot_be_merged(stage: Stage) -> None:
    with pytest.raises(UsageError, match="there is no snapshot 'snap'"):
        stage.process().merge("snap")
    with pytest.raises(UsageError, match="data is a mapped device, but not a snapshot"):
        stage.process().merge("data")
    stage.process().take(**dict(REQUEST, store="N"))
    with pytest.raises(UsageError, match="in memory"):
        stage.process().merge("snap")
    stage.process().drop("snap")
    stage.process().take(**REQUEST)
    stage.fake.lost.add("/dev/cow")
    with pytest.raises(UsageError, match="cannot be merged: the snapshot is lost"):
        stage.process().merge("snap")
    stage.process().drop("snap")


def test_where_a_cow_can_grow_and_where_not(stage: Stage) -> None:
    stage.process().take(**REQUEST)
    with pytest.raises(UsageError, match="its COW uses all of /dev/cow"):
        stage.process().extend("snap", COW_SECTORS + 1)
    with pytest.raises(UsageError, match=r"has 64s .* already"):
        stage.process().extend("snap", COW_SECTORS)
    with pytest.raises(UsageError, match=r"/dev/b has 32s .*, but 33s are to be added"):
        stage.process().extend("snap", COW_SECTORS + 33, more="/dev/b")
    stage.fake.content["/dev/b"] = "ext4 'b'"
    with pytest.raises(UsageError, match="/dev/b has ext4 'b' on it: --force overwrites it"):
        stage.process().extend("snap", COW_SECTORS + 16, more="/dev/b")
    stage.fake.sizes["/dev/cow"] += 8  # as after an lvextend
    stage.process().extend("snap", COW_SECTORS + 8)
    stage.process().extend("snap", COW_SECTORS + 16, more="/dev/b", force=True)
    assert stage.fake.tables()["snap-cow"].splitlines() == [
        "0 72 linear /dev/cow 0",
        "72 8 linear /dev/b 0",
    ]
    stage.process().extend("snap", COW_SECTORS + 32, more="/dev/b")  # behind what it gave before
    assert stage.fake.tables()["snap-cow"].splitlines()[1:] == ["72 24 linear /dev/b 0"]
    with pytest.raises(UsageError, match="its COW uses all of /dev/b, 32s"):
        stage.process().extend("snap", COW_SECTORS + 41, more="/dev/b")


def test_a_merge_that_outlasts_its_deadline_goes_on(stage: Stage) -> None:
    stage.process().take(**REQUEST)
    for _ in range(3):
        stage.fake.write()
    stage.fake.user = ""
    with pytest.raises(
        DeadlineError, match=r"still to be merged after 0 s; it continues"
    ) as caught:
        merge(stage.process(), "snap", timeout=0)
    assert "'dmcopy snapshot finish snap' ends it" in caught.value.__notes__[0]
    assert state_of(stage).interrupted == "dmcopy snapshot merge snap"
    with pytest.raises(DeadlineError):
        stage.process().finish("snapshot", "snap", timeout=0)
    merge(stage.process(), "snap", timeout=60)
    assert (sorted(stage.fake.tables()), stage.records()) == (["data"], [])


def half_merged(stage: Stage) -> None:
    """A merge that was killed, and whose record is forgotten."""
    stage.process().take(**REQUEST)
    for _ in range(3):
        stage.fake.write()
    stage.fake.user = ""
    stage.crash_in_next = 6
    with pytest.raises(Crash):
        stage.process().merge("snap")
    said = stage.process().forget("snapshot", "snap")
    assert "data is rolled back in part, and what was not merged yet is in the store" in said
    assert "'dmcopy snapshot merge snap' takes it up again" in said
    with pytest.raises(UsageError, match="as 'dmcopy snapshot merge data' does"):
        stage.process().take(**dict(REQUEST, name="next", cow="/dev/b"))
    with pytest.raises(UsageError, match="as 'dmcopy snapshot merge data' does"):
        stage.process().drop("snap")


@pytest.mark.parametrize("name", ["snap", "data"])
def test_a_merge_without_a_record_is_taken_up(stage: Stage, name: str) -> None:
    plain = stage.fake.tables()
    half_merged(stage)
    layout = stage.process().merge(name)
    assert (layout.name, layout.origin) == ("snap", "data")
    assert (stage.fake.tables(), stage.records()) == (plain, [])
    assert stage.fake.stores == {}


def test_a_merge_without_a_record_that_has_failed_is_dropped(stage: Stage) -> None:
    plain = stage.fake.tables()
    half_merged(stage)
    stage.fake.unreadable.add("/dev/cow")
    left = dict(stage.fake.stores["/dev/cow"])
    with pytest.raises(DmcopyError, match="the merge into data stopped"):
        stage.process().merge("snap")
    with pytest.raises(DmcopyError, match="'dmcopy snapshot finish snap' ends it"):
        stage.process().drop("snap")
    stage.process().forget("snapshot", "snap")
    stage.process().drop("snap")
    assert (stage.fake.tables(), stage.records()) == (plain, [])
    assert stage.fake.stores["/dev/cow"] == left


def test_one_that_is_lost_is_not_extended(stage: Stage) -> None:
    """And nothing is used up for it: neither room on a device nor a longer file."""
    stage.fake.disk("/x/cow.img", COW_SECTORS)
    stage.process().take(**dict(REQUEST, cow="/x/cow.img"))
    stage.fake.lost.add("/x/cow.img")
    before = stage.fake.tables()
    for more in ("", "/dev/b"):
        with pytest.raises(UsageError, match="snap cannot be extended: the snapshot is lost"):
            stage.process().extend("snap", 2 * COW_SECTORS, more=more)
    assert stage.fake.sizes["/x/cow.img"] == COW_SECTORS
    assert (stage.fake.tables(), stage.records()) == (before, [])


def state_of(stage: Stage, name: str = "snap") -> SnapshotState:
    (state,) = states(stage.fake, stage.process().journal, name)
    return state


def test_states_in_words(stage: Stage) -> None:
    stage.process().take(**REQUEST)
    state = state_of(stage)
    assert (state.state, state.origin, state.cow) == ("active", "data", "/dev/cow")
    assert (state.percent, state.total, state.chunk_size) == (25.0, COW_SECTORS, CHUNK)
    assert state.interrupted == state.working == state.trouble == ""
    stage.fake.lost.add("/dev/cow")
    state = state_of(stage)
    assert (state.state, state.percent) == ("invalid", None)
    assert "lost" in state.trouble
    stage.process().drop("snap")
    assert states(stage.fake, stage.process().journal) == []


def test_states_of_what_was_interrupted(stage: Stage) -> None:
    def crash(at: int) -> SnapshotState:
        snapshots = stage.process()
        stage.fake.calls, stage.fake.crash_at = 0, at
        with pytest.raises(Crash):
            snapshots.take(**REQUEST)
        stage.fake.revive()
        return state_of(stage)

    state = crash(4)
    assert (state.state, state.interrupted) == ("interrupted", "dmcopy snapshot take snap")
    assert state.advice == (
        "'dmcopy snapshot finish snap' ends it, 'dmcopy snapshot undo snap' takes it back"
    )
    stage.process().undo("snapshot", "snap")
    for at in (11, 12):  # the snapshot is there, or not
        state = crash(at)
        assert (state.state, state.origin) == ("suspended", "data")
        assert state.trouble == "data: suspended, so its users wait"
        stage.process().undo("snapshot", "snap")
    stage.process().take(**REQUEST)
    assert state_of(stage).state == "active"


def levels(stage: Stage, **options: Any) -> list[Level]:
    """Watch for ten looks under a load of writes."""
    found: list[Level] = []
    for level in watch(stage.process(), "snap", interval=0.0, **options):
        found.append(level)
        if len(found) > 10:
            break
        stage.fake.write()
    return found


def test_watch_acts_once_at_the_threshold(stage: Stage) -> None:
    stage.process().take(**REQUEST)
    ran = []

    def run(words: list[str], *, env: dict[str, str], stdin: int) -> Any:
        assert stdin == subprocess.DEVNULL
        ran.append((words, env["DMCOPY_SNAPSHOT"], float(env["DMCOPY_PERCENT"]) >= 50))
        return subprocess.CompletedProcess(words, 3)

    seen = levels(stage, threshold=Threshold(50, ("notify", "a b")), run=run)
    assert ran == [(["notify", "a b"], "snap", True)]
    said = [(one.event, one.message) for one in seen if one.event != "level"]
    assert said == [("threshold", ""), ("command", "notify: exit 3")]


def test_watch_extends_and_can_act_again(stage: Stage) -> None:
    stage.fake.disk("/x/cow.img", COW_SECTORS)
    stage.process().take(**dict(REQUEST, cow="/x/cow.img"))
    seen = levels(stage, threshold=Threshold(40, extend=Growth(32, more=True)))
    assert [one.total for one in seen if one.event == "extended"] == [96, 128]
    assert (seen[-1].percent or 100) < 40
    assert stage.fake.sizes["/x/cow.img"] == 128


def test_watch_extends_to_a_size_in_all_and_not_beyond(stage: Stage) -> None:
    stage.fake.disk("/x/cow.img", COW_SECTORS)
    stage.process().take(**dict(REQUEST, cow="/x/cow.img"))
    seen = levels(stage, threshold=Threshold(40, extend=Growth(72)))
    assert [one.total for one in seen if one.event == "extended"] == [72]
    failed = [one.message for one in seen if one.event == "failed"]
    assert failed == ["snap: its COW has 72s (36 KiB) already"]


def test_watch_goes_on_when_nothing_can_be_done(stage: Stage) -> None:
    stage.process().take(**REQUEST)
    seen = levels(
        stage, threshold=Threshold(40, ("/nonexistent/command",), extend=Growth(32, more=True))
    )
    failed = [one.message for one in seen if one.event == "failed"]
    assert "its COW uses all of /dev/cow" in failed[0]
    assert failed[1] == "/nonexistent/command: cannot run it: No such file or directory"
    assert len(failed) == 2
    assert seen[-1].event == "level"


class Filling:
    """A snapshot that fills up at a steady rate, in percent per second, from a moment on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rate: float, start: float = 0.0) -> None:
        self.now, self.rate, self.start = 0.0, rate, start
        self.waits: list[float] = []
        monkeypatch.setattr(snapshot_watch, "read", self._read)
        monkeypatch.setattr(snapshot_watch, "pause", self._pause)
        clock = SimpleNamespace(monotonic=lambda: self.now, time=lambda: self.now)
        monkeypatch.setattr(snapshot_watch, "time", clock)

    def _read(self, *_: object) -> SnapshotStatus:
        used = int(10000 * self.rate / 100 * max(0.0, self.now - self.start))
        return SnapshotStatus("Invalid") if used > 10000 else SnapshotStatus("", Ratio(used, 10000))

    def _pause(self, _mapper: object, _name: str, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


@pytest.mark.parametrize("rate", [0.5, 8, 60, 150])
def test_watch_is_there_in_time_at_a_steady_rate(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, rate: float
) -> None:
    stage.process().take(**REQUEST)
    filling = Filling(monkeypatch, rate)
    for level in watch(stage.process(), "snap", interval=30.0, threshold=Threshold(80)):
        if level.event == "threshold":
            break
    assert 80 <= (level.percent or 0) < 80 + max(1, rate * SOONEST_SECONDS)
    assert len(filling.waits) < 40


def test_watch_says_how_full_it_was_when_it_came_too_late(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.process().take(**REQUEST)
    filling = Filling(monkeypatch, 1000, start=20.0)  # full in a tenth of the interval
    *seen, last = watch(stage.process(), "snap", interval=1.0, threshold=Threshold(80))
    assert filling.waits[0] == SOONEST_SECONDS
    assert max(filling.waits) == 1.0
    assert {one.event for one in seen} == {"level"}
    assert last.event == "lost"
    assert last.message.endswith("; 1.0 s before, it was 0.0% full")


def test_watch_tells_of_an_extension_before_it_runs_the_command(stage: Stage) -> None:
    stage.fake.disk("/x/cow.img", COW_SECTORS)
    stage.process().take(**dict(REQUEST, cow="/x/cow.img"))
    stage.fake.write()
    threshold = Threshold(10, ("never",), extend=Growth(320, more=True))
    for level in watch(stage.process(), "snap", interval=0, threshold=threshold, run=never):
        if level.event == "extended":
            break
    assert level.total == COW_SECTORS + 320


def never(*_: object, **__: object) -> Any:
    raise AssertionError("it was to be told first")


def test_watch_ends_with_the_snapshot(stage: Stage) -> None:
    stage.process().take(**REQUEST)
    stage.fake.lost.add("/dev/cow")
    assert [one.event for one in watch(stage.process(), "snap", interval=0)] == ["lost"]
    stage.process().drop("snap")
    with pytest.raises(UsageError, match="there is no snapshot 'snap'"):
        next(watch(stage.process(), "snap", interval=0))


def test_watch_is_told_to_end_while_it_waits(stage: Stage) -> None:
    stage.process().take(**REQUEST)
    looks = watch(stage.process(), "snap", interval=0)
    assert next(looks).event == "level"
    stage.process().drop("snap")
    assert [one.event for one in looks] == ["gone"]


def test_progress_is_a_rate_and_the_time_left() -> None:
    progress = MergeProgress("snap", left=25, total=100, first=75, seconds=10.0)
    assert (progress.percent, progress.rate, progress.seconds_left) == (75.0, 5.0, 5.0)
    assert MergeProgress("snap", 100, 100, 100, 1.0).seconds_left is None
    assert MergeProgress("snap", 0, 0, 0, 0.0).percent == 100.0


def test_the_origin_stays_what_it_was(stage: Stage) -> None:
    plain = stage.fake.tables()
    assert plain == {"data": str(Table.of(SECTORS, Linear("/dev/a", 0)))}
    stage.process().take(**REQUEST)
    tables = stage.fake.tables()
    assert tables == {
        "data": "0 32 snapshot-origin data-real",
        "data-real": plain["data"],
        "snap": "0 32 snapshot data-real snap-cow P 8",
        "snap-cow": "0 64 linear /dev/cow 0",
    }
    window = stage.fake.log[stage.fake.log.index("suspend data") :]
    assert window == ["suspend data", "resume data-real", "resume snap", "resume data"]
