"""The journal: who may begin what, and what happens to records that are damaged."""

from __future__ import annotations

import copy
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dmcopy.errors import BusyError, DeviceError, DmcopyError, ExitCode, MetadataError
from dmcopy.mapper.userspace import UserMapper
from dmcopy.workflows.journal import Journal
from dmcopy.workflows.record import Plan, PlanRecord
from dmcopy.workflows.session import Session
from dmcopy.workflows.snapshot_layout import SnapshotLayout
from dmcopy.workflows.snapshot_status import states
from dmcopy.workflows.step import Step

GONE = "1 0"  # a process that has ended

LAYOUT = SnapshotLayout(
    name="snap",
    origin="data",
    real="data-real",
    base="/dev/mapper/data-real",
    plain="0 100 linear /dev/x 0",
    length=100,
    cow="snap-cow",
    cow_path="/dev/mapper/snap-cow",
    parts="0 64 linear /dev/y 0",
    store="P",
    chunk_size=8,
    files=("/x/cow.img",),
)


def merge(name: str = "snap", devices: tuple[str, ...] = LAYOUT.devices) -> PlanRecord:
    steps = [
        Step("load", "data", table=LAYOUT.merge_table),
        Step("attach", "/x/cow.img"),
        Step("wipe", "/dev/y", size=2048),
        Step("resume", "data", before=LAYOUT.origin_table, joined=True, final=True),
    ]
    plan = Plan("snapshot", "merge", name, steps, (), devices, "merge", layout=LAYOUT, total=5)
    record = PlanRecord.of(plan)
    record.settled, record.begun = 1, 2
    return record


def make(name: str = "home") -> PlanRecord:
    steps = [Step("swap", name, "0 8 linear /dev/a 0", before="0 8 linear /dev/b 0")]
    after = [Step("settle", name, "0 8 linear /dev/a 0")]
    return PlanRecord.of(Plan("mirror", "make", name, steps, after, (name,), "resync"))


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Journal:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    return Journal(tmp_path / "journal", owner=GONE)


@pytest.fixture
def damage(journal: Journal) -> Callable[..., Path]:
    """Put bytes where the record of a merge of `snap` would be."""

    def put(data: bytes = b"{", name: str = "snapshot-snap.json") -> Path:
        journal.folder.mkdir(exist_ok=True)
        path = journal.folder / name
        path.write_bytes(data)
        return path

    return put


@pytest.mark.parametrize("record", [merge(), make()], ids=str)
def test_a_record_is_read_as_it_was_written(journal: Journal, record: PlanRecord) -> None:
    journal.begin(record)
    assert journal.find(record.noun, record.name) == record
    assert journal.records() == [record]
    assert journal.damaged() == []
    journal.end(record)
    assert journal.records() == []


def test_two_processes_do_not_work_on_one_origin(tmp_path: Path) -> None:
    mine = Journal(tmp_path)
    record = merge()
    mine.begin(record)
    other = merge("other", ("data", "other"))
    with pytest.raises(BusyError, match=r"data is in use by process \d+ \(dmcopy snapshot merge"):
        mine.begin(other)
    mine.end(record)
    mine.begin(other)
    found = Journal(tmp_path, owner="0 0").find("snapshot", "other")
    assert found == other
    with pytest.raises(BusyError):
        Journal(tmp_path, owner="0 0").adopt(other)
    with pytest.raises(DmcopyError):
        Journal(tmp_path, owner="0 0").begin(record)


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        (("noun",), "cow", "there is no 'cow' 'merge'"),
        (("verb",), "\x1b[31m", r"there is no 'snapshot' '\\x1b\[31m'"),
        (("name",), "a/b", "slash"),
        (("name",), "other", "it is that of 'dmcopy snapshot merge other'"),
        (("steps",), {}, "{} is no list"),
        (("steps", 0, "verb"), "mkfs", "no step 'mkfs'"),
        (("steps", 0, "table"), "0 x linear", "must be a decimal number"),
        (("steps", 2, "size"), -1, "-1 is no number of sectors"),
        (("steps", 2, "size"), "2048", "'2048' is no int"),
        (("steps", 0, "final"), 1, "1 is no bool"),
        (("steps", 0, "more"), 1, "no field 'more'"),
        (("settled",), 3, "3 and 2 of 4 steps"),
        (("begun",), True, "True is no int"),
        (("wait",), "soon", "snapshot merge waits for no 'soon'"),
        (("wait",), "resync", "snapshot merge waits for no 'resync'"),
        (("layout", "length"), "100", "'100' is no int"),
        (("layout", "parts"), "0 x linear", "must be a decimal number"),
        (("layout",), {}, "name is lacking"),
        (("layout",), None, "the layout of a snapshot is None"),
        (("version",), 1, "another version of dmcopy has written it"),
        (("after",), [{"verb": "mkfs", "device": "data"}], "no step 'mkfs'"),
        (("devices", 0), "\ud800", "surrogates not allowed"),
        (("owner",), "9" * 5000 + " 1", "it says not who made it"),
        (("made",), float("nan"), "it says not who made it, or when"),
        (("made",), None, "None is no float"),
    ],
)
def test_what_no_process_can_have_written_is_no_record(
    journal: Journal, damage: Callable[..., Path], place: tuple[Any, ...], value: Any, says: str
) -> None:
    values = json.loads(merge().build())
    inner = values
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    path = damage(json.dumps(values).encode())
    with pytest.raises(MetadataError, match=says) as caught:
        journal.find("snapshot", "snap")
    assert str(caught.value).startswith(f"{path} is not the record of a workflow: ")
    assert "'dmcopy snapshot forget snap' puts it aside" in str(caught.value)
    assert caught.value.exit_code == ExitCode.MISMATCH


def mutants(seed: int) -> Iterator[bytes]:
    """Yield records with some node of their JSON, or some of their bytes, changed."""
    chance = random.Random(seed)
    odd: list[Any] = [
        None,
        True,
        -1,
        2**64,
        10**30,
        1.5,
        "",
        "x",
        "\0",
        "\x1b",
        "/",
        "..",
        [],
        [[]],
        {},
    ]
    odd += [float("inf"), "9" * 5000, "\ud800", ["a"], {"a": 1}]
    for _ in range(80):
        values = json.loads(chance.choice([merge(), make("snap")]).build())
        nodes: list[tuple[Any, Any]] = []
        todo: list[Any] = [values]
        for parent in todo:
            inside = parent.items() if isinstance(parent, dict) else enumerate(parent)
            nodes += [(parent, key) for key, _ in inside]
            todo += [value for _, value in inside if isinstance(value, dict | list)]
        parent, key = chance.choice(nodes)
        if chance.random() < 0.2:
            del parent[key]
        else:
            parent[key] = copy.deepcopy(chance.choice(odd))
        yield json.dumps(values).encode()
        raw = bytearray(json.dumps(values).encode())
        at = chance.randrange(len(raw))
        raw[at : at + chance.choice([1, 4, 1000])] = chance.choice(
            [b"", b"\xff", b"\x1b[31m", b"9" * 5000, b"[" * 60000, b'"', b"\0"]
        )
        yield bytes(raw)


@pytest.mark.parametrize("seed", range(2))
def test_whatever_is_in_a_record_each_verb_ends_with_a_sentence(
    journal: Journal, damage: Callable[..., Path], seed: int
) -> None:
    """And nothing is written: of the few that still are records, no device is there."""
    with UserMapper() as mapper:
        for data in mutants(seed):
            noun = "mirror" if b'"noun": "mirror"' in data else "snapshot"
            path = damage(data, f"{noun}-snap.json")
            session = Session(mapper, journal)
            states(mapper, journal)
            for record in journal.records():
                assert session.advice(record)
            if journal.damaged():
                for verb in (session.finish, session.undo):
                    with pytest.raises(MetadataError, match=r"'dmcopy .* forget snap' puts it"):
                        verb(noun, "snap")
                with pytest.raises(MetadataError, match=r"^[^\0-\x1f]{1,400}$"):
                    journal.begin(merge())
            assert path.read_bytes() == data
            assert set(os.listdir(journal.folder)) <= {path.name, "lock"}
            path.unlink()


def test_a_damaged_record_is_in_the_way_of_its_own_name_only(
    journal: Journal, damage: Callable[..., Path]
) -> None:
    path = damage(b"\xff torn")
    other = make()
    journal.begin(other)
    assert journal.records() == [other]
    assert [one.path for one in journal.damaged()] == [path]
    for record in (merge(), make("snap")):
        with pytest.raises(MetadataError, match="'dmcopy snapshot forget snap' puts it aside"):
            journal.begin(record)
    assert path.read_bytes() == b"\xff torn"


def test_a_damaged_record_is_put_aside_and_never_lost(
    journal: Journal, damage: Callable[..., Path]
) -> None:
    for number, data in enumerate((b"one", b"two"), 1):
        damage(data)
        aside = journal.put_aside("snapshot", "snap")
        assert aside.name == f"snapshot-snap.damaged-{number}"
        assert aside.read_bytes() == data
    assert journal.damaged() == []
    journal.begin(merge())


def test_odd_things_in_the_folder(journal: Journal, damage: Callable[..., Path]) -> None:
    """A pipe is not waited for; what has no name of ours is left alone."""
    damage(b"{}", "notes.json")
    (journal.folder / os.fsdecode(b"snapshot-\xff.json")).write_bytes(b"{}")
    (journal.folder / "snapshot-folder.json").mkdir()
    os.mkfifo(journal.folder / "mirror-pipe.json")
    said = {one.path.name: str(one) for one in journal.damaged()}
    assert said["notes.json"].endswith("it is left alone")
    assert said["snapshot-\udcff.json"].endswith("it is left alone")
    assert (
        "Is a directory" in said["snapshot-folder.json"]
        or "regular" in said["snapshot-folder.json"]
    )
    assert "no regular file; 'dmcopy mirror forget pipe' puts" in said["mirror-pipe.json"]
    journal.begin(merge())


def test_no_file_of_another_name_is_written_to(journal: Journal) -> None:
    """The journal's folder may be a shared one: what lies beside a record is not ours."""
    journal.folder.mkdir()
    victim = journal.folder.parent / "victim"
    victim.write_bytes(b"mine")
    (journal.folder / "snapshot-snap.new").symlink_to(victim)
    journal.begin(merge())
    assert victim.read_bytes() == b"mine"
    assert (journal.folder / "snapshot-snap.new").is_symlink()


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_the_lock_is_no_way_to_another_file(journal: Journal, kind: str) -> None:
    journal.folder.mkdir()
    lock, victim = journal.folder / "lock", journal.folder.parent / "victim"
    if kind == "pipe":
        os.mkfifo(lock)
        journal.begin(merge())  # and it does not wait for a reader
        return
    lock.symlink_to(victim)
    with pytest.raises(DeviceError, match="cannot keep the journal of workflows"):
        journal.begin(merge())
    assert not victim.exists()
