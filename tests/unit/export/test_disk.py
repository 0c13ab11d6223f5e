"""`dmcopy disk serve` and `dmcopy disk cut`."""

from __future__ import annotations

import json
import resource
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dmcopy.asking import ask
from dmcopy.cli.main import main
from dmcopy.errors import DmcopyError
from dmcopy.export import control
from dmcopy.export.control import MAX_LINE, Control
from dmcopy.io.thread import ReactorThread
from dmcopy.ondisk.write_log import END, LogFlag, parse_entries

from .client import DEADLINE, Client
from .serving import Serving

SIZE = 1 << 20
WRITE, FLUSH, TRIM = 1, 3, 4


def connect(path: Path) -> Client:
    client = Client(str(path))
    client.greet()
    assert client.go() == 1
    return client


def test_a_cut_takes_what_was_not_flushed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, disk = tmp_path / "socket", tmp_path / "disk"
    with Serving(disk, "--size", "1M", "--socket", place, noun="disk serve") as serving:
        assert serving.found == [f"nbd+unix:///disk?socket={place}"]
        assert stat.S_IMODE((tmp_path / "socket.control").stat().st_mode) == 0o600
        with connect(place) as client:
            assert client.write(0, b"a" * 512) == 0
            assert client.ask(FLUSH, 0, 0).error == 0
            assert client.write(0, b"b" * 1024) == 0
            assert main(["disk", "cut", str(place), "--json"]) == 0
            assert json.loads(capsys.readouterr().out) == {"writes": 2, "flushes": 1}
            assert client.is_closed()
        with connect(place) as client:
            assert client.read(0, 1024) == b"a" * 512 + bytes(512)
            client.write(4096, b"c" * 512)
        assert main(["disk", "cut", str(place), "--seed", "1"]) == 0
        code, said = serving.end()
        assert (code, said) == (0, "dmcopy: disk: the power was cut\n" * 2)
    assert disk.stat().st_size == SIZE
    assert disk.read_bytes()[:1024] == b"a" * 512 + bytes(512)
    assert not (tmp_path / "socket.control").exists()


@pytest.mark.parametrize(("option", "survives"), [("--cut-after-writes", 0), ("--cut-at-flush", 1)])
def test_a_cut_by_itself(tmp_path: Path, option: str, survives: int) -> None:
    place, disk = tmp_path / "socket", tmp_path / "disk"
    disk.write_bytes(bytes(SIZE))
    with Serving(disk, option, 2, "--socket", place, noun="disk serve") as serving:
        with connect(place) as client:
            assert client.write(0, b"1" * 512) == 0
            if option == "--cut-at-flush":
                assert client.ask(FLUSH, 0, 0).error == 0
                client.write(512, b"2" * 512)
                client.send(FLUSH, 0, 0)
            else:
                client.send(WRITE, 512, 512, b"2" * 512)
            assert client.is_closed()
        with connect(place) as client:
            assert client.read(0, 1024) == (b"1" * 512 if survives else bytes(512)) + bytes(512)
            for _ in range(3):  # once is enough
                assert client.write(0, b"3" * 512) == 0
                assert client.ask(FLUSH, 0, 0).error == 0
        assert serving.end()[0] == 0
    assert disk.read_bytes()[:512] == b"3" * 512


def test_a_log_of_all_that_became_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    place, log = tmp_path / "socket", tmp_path / "log"
    with Serving(
        *("--size", "1M", "--log", log, "--socket", "socket", "--name", "x"), noun="disk serve"
    ) as serving:
        with connect(place) as client:
            client.write(512, b"a" * 1024)
            client.write(4096, b"f" * 512, flags=1)
            client.ask(TRIM, 8192, 4096)
            client.ask(FLUSH, 0, 0)
            client.write(0, b"l" * 512)
            assert main(["disk", "cut", "./socket"]) == 0
        assert serving.end()[0] == 0
    data = log.read_bytes()
    entries = [one for one, _ in parse_entries(data)]
    told = [(one.sector, one.nr_sectors, one.flags) for one in entries if one.flags != LogFlag.MARK]
    assert told[:4] == [
        (8, 1, LogFlag.FUA),
        (16, 8, LogFlag.DISCARD),
        (1, 2, LogFlag(0)),
        (0, 0, LogFlag.FLUSH),
    ]
    assert [one.text for one in entries if one.flags == LogFlag.MARK] == [b"dmcopy-cut", END]


def test_what_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = tmp_path / "there"
    there.write_bytes(bytes(SIZE))
    refused: list[tuple[list[Any], int, str]] = [
        (["serve"], 2, "say what the disk is"),
        (["serve", there, "--size", "1M"], 1, "File exists"),
        (["serve", tmp_path / "none"], 2, "no such device or file"),
        (["serve", there, "--log", there], 1, "make a log of writes: File exists"),
        (["cut", tmp_path / "socket"], 2, "there is no server at"),
        (["cut", f"{tmp_path}/{'s' * 120}"], 2, "too long"),
    ]
    for words, code, told in refused:
        assert main(["disk", *map(str, words)]) == code
        output = capsys.readouterr()
        assert told in output.err
        assert output.err.count("\n") == 1


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    path = str(tmp_path / "control")

    def fail(*_: object) -> None:
        raise DmcopyError("no")

    with ReactorThread(stacked=True) as thread:
        verbs = {"say": lambda request, answer: answer({"said": request["what"]}), "fail": fail}
        served = thread.call(lambda reactor: Control(reactor, path, verbs))
        yield path
        thread.call(lambda _: served.close())


def test_the_control_socket_answers(path: str) -> None:
    assert ask(path, {"do": "say", "what": "this"})["said"] == "this"
    with pytest.raises(DmcopyError, match=r"^no$"):
        ask(path, {"do": "fail"})


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b"GET / HTTP/1.1\r\n", b"no JSON"),
        (b"[" * 3000 + b"\n", b"no JSON"),
        (b"[]\n", b"no request of version 1"),
        (b'{"version": 2, "do": "say"}\n', b"no request of version 1"),
        (b'{"version": 1, "do": "sing"}\n', b"can do say, fail"),
        (b'{"version": 1, "do": []}\n', b"can do say, fail"),
        (b"x" * (MAX_LINE + 1), b""),
        (b'{"version": 1', b""),
        (b"", b""),
    ],
)
def test_what_makes_no_sense_to_it(path: str, said: bytes, told: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        client.settimeout(DEADLINE)
        client.sendall(said)
        client.shutdown(socket.SHUT_WR)
        answer = b""
        while more := client.recv(4096):
            answer += more
    assert told in answer
    assert bool(told) == bool(answer)
    assert ask(path, {"do": "say", "what": 1})["said"] == 1


def test_who_says_nothing_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "DEADLINE_SECONDS", 0.05)
    path = str(tmp_path / "control")
    verbs: dict[str, Callable[..., None]] = {}
    with ReactorThread(stacked=True) as thread:
        served = thread.call(lambda reactor: Control(reactor, path, verbs))
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            client.settimeout(DEADLINE)
            assert client.recv(1) == b""
        thread.call(lambda _: served.close())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--size", "0"], "a disk has a sector at least"),
        (["--size", "1M", "--cut-after-writes", "0"], "0 is too small: give a number from 1 on"),
        (["--size", "1M", "--cut-at-flush", "-1"], "-1 is too small: give a number from 1 on"),
    ],
)
def test_numbers_that_nobody_means(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cut at write 0 would never come, and what waits for it would wait for ever."""
    try:
        code = main(["disk", "serve", *words])
    except SystemExit as stop:
        code = int(stop.code or 0)
    assert code == 2
    assert says in capsys.readouterr().err


def test_a_file_that_cannot_be_made_that_long_is_not_left_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "disk"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, limits[1]))
    try:
        assert main(["disk", "serve", str(path), "--size", "2G"]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "cannot make a disk's file of it" in capsys.readouterr().err
    assert not path.exists()
