"""`dmcopy snapshot` as it is typed, on a mapper in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dmcopy.cli.main import main
from dmcopy.errors import ExitCode

from .fake import Crash
from .fake_snapshots import CHUNK, COW_SECTORS, Stage


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    stage = Stage(tmp_path)
    stage.origin()
    stage.fake.disk("/dev/cow", COW_SECTORS)
    stage.fake.disk("/dev/b")
    monkeypatch.setattr("dmcopy.cli.workflows.open_mapper", lambda _: stage.process().mapper)
    monkeypatch.setattr("dmcopy.workflows.journal.default_folder", lambda: tmp_path / "workflows")
    monkeypatch.setattr("dmcopy.workflows.journal.identity", lambda _: f"0 {stage.processes}")
    return stage


def take(*words: str) -> int:
    return main(["snapshot", "take", "snap", "data", "/dev/cow", "--chunk-size", "4K", *words])


def test_from_take_to_merge(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    assert take() == 0
    assert main(["snapshot", "status"]) == 0
    assert main(["snapshot", "extend", "snap", "+8", "--with", "/dev/b"]) == 0
    stage.fake.user = ""
    assert main(["snapshot", "merge", "snap"]) == 0
    assert main(["snapshot", "status"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.splitlines() == [
        "/dev/mapper/snap is data as it is now",
        "Name  Origin  State    Full   Used  COW       Store  Chunk",
        "snap  data    active  25.0%  8 KiB  /dev/cow  P      4 KiB",
        "the COW of snap has 72s (36 KiB) now",
        "data is what it was when snap was taken",
        "no snapshots",
    ]


@pytest.mark.usefixtures("stage")
def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    def out(*words: str) -> Any:
        assert main(["snapshot", *words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    made = out("take", "snap", "/dev/b", "/dev/cow", "--chunk-size", str(CHUNK), "--store", "po")
    assert made["path"] == "/dev/mapper/snap"
    assert made["origin"] == "b-origin"
    (state,) = out("status", "snap")
    assert (state["state"], state["store"], state["percent"]) == ("active", "PO", 25.0)
    assert out("extend", "snap", "80", "--with", "/dev/a") == {"name": "snap", "total": 80}
    assert out("drop", "snap")["name"] == "snap"
    assert out("status") == []


def test_an_origin_that_is_not_mapped_is_used_through_another_device(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["snapshot", "take", "snap", "/dev/b", "/dev/cow", "--chunk-size", "8s"]) == 0
    out = capsys.readouterr().out
    assert "use /dev/mapper/b-origin instead of /dev/b from now on" in out
    assert main(["snapshot", "take", "two", "/dev/mapper/b-origin", "/dev/a"]) == 2
    assert "at least 3 chunks, 96s (48 KiB)" in capsys.readouterr().err
    assert stage.fake.devices.keys() == {"data", "snap", "snap-cow", "b-origin"}


def test_what_was_interrupted_is_told_and_ended(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    for end in ("undo", "finish"):
        stage.crash_in_next = 11
        with pytest.raises(Crash):
            take()
        assert main(["snapshot", "status"]) == 0
        assert capsys.readouterr().err.splitlines() == [
            "dmcopy: snap: data: suspended, so its users wait",
            "dmcopy: snap: 'dmcopy snapshot take snap' was interrupted: 'dmcopy snapshot finish "
            "snap' ends it, 'dmcopy snapshot undo snap' takes it back",
        ]
        assert main(["snapshot", end, "snap"]) == 0
        done = "taken back" if end == "undo" else "done"
        assert capsys.readouterr().out == f"{done}: dmcopy snapshot take snap\n"
        assert main(["snapshot", end, "snap"]) == ExitCode.USAGE
        assert "nothing was interrupted" in capsys.readouterr().err


def test_watch_prints_lines_of_json(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    assert take() == 0
    capsys.readouterr()
    stage.fake.lost.add("/dev/cow")
    assert main(["snapshot", "watch", "snap", "--at", "50%", "--run", "a", "--b"]) == 1
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (line["event"], line["name"], line["percent"]) == ("lost", "snap", None)


def test_watch_asks_before_it_is_too_late(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    assert take() == 0
    stage.fake.content["/dev/b"] = "ext4 'b'"
    words = ["snapshot", "watch", "snap", "--extend", "+8", "--with", "/dev/b"]
    assert main(words) == ExitCode.USAGE
    assert "/dev/b has ext4 'b' on it: --force overwrites it" in capsys.readouterr().err


def test_one_that_never_was_is_not_watched(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("snap", "data"):
        assert main(["snapshot", "watch", name]) == ExitCode.USAGE
    assert "there is no snapshot 'snap'" in capsys.readouterr().err
    assert stage.fake.devices.keys() == {"data"}


def test_status_ends_with_4_when_one_is_lost(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    assert take() == 0
    assert main(["snapshot", "status"]) == 0
    stage.fake.lost.add("/dev/cow")
    for words in ([], ["snap"], ["--json"]):
        assert main(["snapshot", "status", *words]) == ExitCode.MISMATCH
    assert "snap: the snapshot is lost" in capsys.readouterr().err


def test_a_damaged_record_is_told_of_and_forgotten(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    assert take() == 0
    record = stage.process().journal.folder / "snapshot-other.json"
    record.write_bytes(b"torn")
    assert main(["snapshot", "status"]) == ExitCode.MISMATCH
    for verb in ("status", "finish", "undo", "merge"):
        capsys.readouterr()
        assert main(["snapshot", verb, "other"]) == ExitCode.MISMATCH
        assert "'dmcopy snapshot forget other' puts it aside" in capsys.readouterr().err
    assert main(["snapshot", "forget", "other"]) == 0
    assert "its record was damaged" in capsys.readouterr().err
    assert main(["snapshot", "status"]) == 0
    assert main(["snapshot", "drop", "snap"]) == 0


def test_what_is_forgotten_is_told(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    stage.crash_in_next = 11
    with pytest.raises(Crash):
        take()
    assert main(["snapshot", "forget", "snap"]) == 0
    assert capsys.readouterr().err == (
        "'dmcopy snapshot take snap' is forgotten, and no device was changed; left are: "
        "data (suspended: 'dmcopy dm clear data', then 'dmcopy dm resume data'), data-real, "
        "snap (with a table loaded: 'dmcopy dm clear snap'), snap-cow\n"
    )
    assert main(["snapshot", "forget", "snap"]) == ExitCode.USAGE


def test_the_last_word_of_a_merge_names_a_device_that_is_there(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.fake.user = ""
    assert main(["snapshot", "take", "snap", "/dev/b", "/dev/cow", "--chunk-size", "8s"]) == 0
    assert main(["snapshot", "merge", "snap"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "/dev/b is what it was when snap was taken"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["tkae", "snap"], "did you mean 'take'?"),
        (["take", "snap", "data"], "the following arguments are required: COW"),
        (["take", "snap", "data", "c", "--chunksize", "8"], "did you mean '--chunk-size'?"),
        (["take", "snap", "data", "c", "--store", "Q"], "invalid choice: 'Q'"),
        (["take", "snap", "data", "c", "--chunk-size", "x"], "'x' is not a size"),
        (["watch", "snap", "--at", "0"], "'0' is not a percentage"),
        (["watch", "snap", "--interval", "-1"], "'-1' is not a number of seconds"),
    ],
)
def test_typing_mistakes(capsys: pytest.CaptureFixture[str], words: list[str], says: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["snapshot", *words])
    assert caught.value.code == ExitCode.USAGE
    assert says in capsys.readouterr().err


def test_without_device_mapper_the_doctor_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    for words in (["status"], ["take", "s", "data", "/dev/null"], ["drop", "s"], ["merge", "s"]):
        assert main(["snapshot", *words]) == ExitCode.MISSING
        assert "dmcopy doctor" in capsys.readouterr().err
