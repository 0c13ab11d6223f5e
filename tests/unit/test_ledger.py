"""The ledger: any bytes in it, any length of it, any process beside it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import resource
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from dmcopy import ledger as ledgers
from dmcopy.errors import DeviceError, UsageError
from dmcopy.ledger import Ledger, LedgerEntry


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", [].append)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.jsonl")


def odd(ledger: Ledger) -> list[bytes]:
    """Return the lines that were kept aside."""
    path = ledger.path.with_name("ledger.jsonl.odd")
    return path.read_bytes().splitlines() if path.exists() else []


def names(ledger: Ledger) -> list[str]:
    return [entry.name for entry in ledger.entries()]


def _made(**changes: Any) -> bytes:
    entry = LedgerEntry("1", "dm", "x", "U", "1 1", ledgers.boot_id())
    return json.dumps({"op": "made", **asdict(entry), **changes}).encode()


ODD = {
    "no JSON": b"hello",
    "torn": _made()[:-9],
    "bytes": b"\xff\xfe\x00{}",
    "a list": b"[1, 2]",
    "a number": b"5",
    "nesting": b"[" * 20_000,
    "digits": b'{"op": "gone", "id": ' + b"9" * 6000 + b"}",
    "no operation": b"{}",
    "a later operation": b'{"op": "moved", "id": "1"}',
    "an operation of another type": b'{"op": ["made"], "id": "1"}',
    "an unhashable id": b'{"op": "gone", "id": []}',
    "an unhashable name": b'{"op": "renamed", "kind": "dm", "name": {}, "to": "y"}',
    "too few values": b'{"op": "made", "id": "1"}',
    "too many values": _made(colour="red"),
    "another kind": _made(kind="cat"),
    "an unhashable kind": _made(kind=[]),
    "a name that is none": _made(name=5),
    "no name": _made(name=None),
    "a zero byte": _made(name="a\0b"),
    "half a character": _made(name="\ud800"),
    "keep": _made(keep="yes"),
    "made": _made(made="today"),
    "made of bool": _made(made=True),
    "made too late": _made(made=10**400),
    "made never": _made(made=float("nan")),
}


@pytest.mark.parametrize("line", ODD.values(), ids=ODD.keys())
def test_a_line_of_nobodys_is_passed_over_and_kept_aside(
    ledger: Ledger, caplog: pytest.LogCaptureFixture, line: bytes
) -> None:
    ledger.add("dm", "before")
    with ledger.path.open("ab") as file:
        file.write(line + b"\n")
    ledger.add("dm", "after")
    ledger.drop("dm", "before")  # does not read it
    assert not caplog.records
    assert names(ledger) == ["after"]
    assert odd(ledger) == [line]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "what is none of the ledger's (lines: 1)" in record.getMessage()
    assert "ledger.jsonl.odd" in record.getMessage()
    assert names(ledger) == ["after"]
    assert odd(ledger) == [line]


def test_a_line_that_a_crash_cut_short_spoils_no_other(ledger: Ledger) -> None:
    ledger.add("dm", "one")
    with ledger.path.open("a") as file:
        file.write('{"op": "made", "id": "x", "ki')
    ledger.add("dm", "two")
    assert names(ledger) == ["one", "two"]
    assert odd(ledger) == [b'{"op": "made", "id": "x", "ki']


def test_any_bytes_at_all_stop_nothing(ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    ledger.add("dm", "kept")
    ledger.add("loop", "/dev/loop9", uuid="/f", keep=True)
    whole = ledger.path.read_bytes()
    for seed in range(150):
        rng = random.Random(seed)
        raw = bytearray(whole)
        for _ in range(rng.randrange(1, 6)):
            place = rng.randrange(len(raw))
            match rng.randrange(3):
                case 0:
                    raw[place] = rng.randrange(256)
                case 1:
                    del raw[place : place + rng.randrange(40)]
                case 2:
                    raw[place:place] = rng.randbytes(rng.randrange(9))
        ledger.path.write_bytes(raw or b"x")
        ledger.add("dm", "new")
        assert "new" in names(ledger), seed
        ledger.drop("dm", "new")
        assert "new" not in names(ledger), seed
    assert caplog.records


def test_what_was_noted_is_what_is_there(ledger: Ledger) -> None:
    """Against a model: every operation, in any order, with the file written anew in between."""
    rng = random.Random(1)
    model: dict[str, tuple[str, str, str]] = {}
    kinds: list[ledgers.Kind] = ["dm", "loop"]
    for _ in range(400):
        kind, name, other = rng.choice(kinds), rng.choice("abc"), rng.choice("abc")
        there = [one for one, values in model.items() if values[:2] == (kind, name)]
        match rng.randrange(7):
            case 0 | 1:
                model[ledger.add(kind, name, uuid="U")] = (kind, name, "U")
            case 2:
                ledger.drop(kind, name)
                for one in there:
                    del model[one]
            case 3:
                ledger.rename(kind, name, other)
                for one in there:
                    model[one] = (kind, other, model[one][2])
            case 4 if there:
                ledger.cancel(there[0])
                del model[there[0]]
            case 5 if there:
                ledger.identify(there[0], "disk 5")
                model[there[0]] = (kind, name, "disk 5")
            case 6:
                ledger.compact()
        found = {entry.id: (entry.kind, entry.name, entry.uuid) for entry in ledger.entries()}
        assert found == model
    assert odd(ledger) == []


def test_whoever_makes_and_removes_only_appends(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.path.write_bytes(b"".join(_made(id=str(n), name=f"n{n}") + b"\n" for n in range(2000)))
    ledger.compact()
    read: list[int] = []

    def count(file: Any) -> bytes:
        read.append(1)
        file.seek(0)
        content: bytes = file.read()
        return content

    monkeypatch.setattr(ledgers, "_all", count)
    for number in range(50):
        ledger.drop("dm", f"n{number}")
        ledger.rename("dm", f"n{number + 50}", "other")
        ledger.cancel(ledger.add("cookie", "0x0d4d0001"))
    assert read == []
    assert len(ledger.entries()) == 1950


def test_it_is_written_anew_by_itself(ledger: Ledger) -> None:
    ledger.add("dm", "stays")
    longest = 0
    for number in range(600):
        ledger.add("dm", f"n{number}")
        ledger.drop("dm", f"n{number}")
        longest = max(longest, ledger.path.stat().st_size)
    assert longest < 70_000  # of some 170,000 bytes that were written
    assert names(ledger) == ["stays"]
    for number in range(600):
        ledger.add("dm", f"n{number}")  # what is there is kept, however much it is
    assert len(ledger.entries()) == 601


def test_a_line_meant_for_the_file_that_was_replaced_goes_to_the_new_one(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.add("dm", "one")
    real, other = ledgers.lock, Ledger(ledger.path)

    def slow(file: Any, path: Path) -> None:
        monkeypatch.setattr(ledgers, "lock", real)
        other.compact()  # while this one waits for the lock of the file that it has opened
        real(file, path)

    monkeypatch.setattr(ledgers, "lock", slow)
    ledger.add("dm", "two")
    assert names(other) == ["one", "two"]


@contextlib.contextmanager
def small_files() -> Iterator[None]:
    """Let no file grow past 66,000 bytes; not for longer than a call: our own output may be one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (66_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_sentence_and_tears_nothing(ledger: Ledger) -> None:
    ledger.path.write_bytes(b"".join(_made(id=str(n), name=f"n{n}") + b"\n" for n in range(200)))
    left = 65_900 - ledger.path.stat().st_size
    with ledger.path.open("ab") as file:
        file.write(b" " * (left - 1) + b"\n")
    too_large = "cannot keep the ledger of what is made: File too large"
    with small_files(), pytest.raises(DeviceError, match=too_large):
        ledger.add("dm", "one")
    ledger.compact()
    assert "one" not in names(ledger)
    ledger.add("dm", "two")
    assert len(names(ledger)) == 201


@pytest.mark.parametrize("kind", ["pipe", "folder", "no folder"])
def test_what_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "ledger.jsonl"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        tmp_path.joinpath("file").touch()
        path = tmp_path / "file" / "ledger.jsonl"
    for use in (lambda: Ledger(path).add("dm", "x"), Ledger(path).entries):
        with pytest.raises(DeviceError, match="cannot keep the ledger"):
            use()


def test_what_cannot_be_written_anew_goes_on_as_it_is(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    ledger.add("dm", "one")
    ledger.path.write_bytes(ledger.path.read_bytes() + b"odd\n")
    monkeypatch.setattr(ledgers, "replace_file", fail)
    assert names(ledger) == ["one"]
    ledger.compact()
    assert names(ledger) == ["one"]
    assert "cannot write the ledger anew" in caplog.text


def test_without_a_home_it_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # no HOME, no passwd entry
    with pytest.raises(UsageError, match="set HOME or XDG_STATE_HOME"):
        ledgers.default_path()


@pytest.mark.parametrize("owner", ["9" * 5000 + " 1", "² 1", "-1 1", "", " "])
def test_an_owner_that_cannot_be_is_not_alive(owner: str) -> None:
    assert not ledgers.alive(owner)
