"""`dmcopy serve`: what it prints, how it ends, and what it refuses."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from dmcopy.cli.main import main
from dmcopy.cli.schema import schemas
from dmcopy.errors import BusyError, UsageError
from dmcopy.export.listening import Listener, listen_tcp, listen_unix
from dmcopy.runtime import runtime_folder

from .client import DEADLINE, Client
from .serving import Serving

SIZE = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(bytes(SIZE))
    return path


def connect(path: Path | str, name: str = "") -> Client:
    client = Client(str(path))
    client.greet()
    assert client.go(name) == 1
    return client


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_file_until_a_signal_comes(disk: Path, tmp_path: Path, number: signal.Signals) -> None:
    place = tmp_path / "socket"
    with Serving(disk, "--socket", place) as serving:
        assert serving.found == [f"nbd+unix:///disk?socket={place}"]
        with connect(place) as client:
            assert client.write(512, b"f" * 512) == 0
            assert serving.end(number) == (0, "")
            assert client.is_closed()
    assert disk.read_bytes()[:1024] == bytes(512) + b"f" * 512
    assert not place.exists()


def test_a_snapshot_and_its_origin_are_one_process(disk: Path, tmp_path: Path) -> None:
    place, cow = tmp_path / "socket", tmp_path / "cow"
    cow.write_bytes(bytes(SIZE))
    spec = f"then,,,,0 2048 snapshot {disk} {cow} P 8;live,,,,0 2048 snapshot-origin {disk}"
    with Serving("--concise", spec, "--socket", place, "--json", lines=2) as serving:
        told = [json.loads(line) for line in serving.found]
        assert [one["name"] for one in told] == ["then", "live"]
        assert all(one.keys() == schemas()["serve"]["properties"].keys() for one in told)
        with connect(place, "live") as live, connect(place, "then") as then:
            assert live.write(0, b"n" * (64 << 10)) == 0
            assert then.read(0, 128 << 10) == bytes(128 << 10)
            assert then.write(8192, b"m" * 512) == 0
            assert live.read(8192, 512) == b"n" * 512
            assert then.read(8192, 1024) == b"m" * 512 + bytes(512)
    assert disk.read_bytes()[: 64 << 10] == b"n" * (64 << 10)


def test_a_table_by_name_and_read_only(disk: Path, tmp_path: Path) -> None:
    place = tmp_path / "socket"
    table = f"0 1024 linear {disk} 0"
    with (
        Serving("--table", table, "--socket", place, "--name", "ö x", "--read-only") as serving,
        connect(place, "ö x") as client,
    ):
        assert serving.found == [f"nbd+unix:///%C3%B6%20x?socket={place}"]
        assert client.size == 1024 << 9
        assert client.write(0, b"x" * 512) == 1


def test_a_killed_server_is_followed_by_another(disk: Path, tmp_path: Path) -> None:
    place = tmp_path / "socket"
    with Serving(disk, "--socket", place) as serving:
        assert serving.end(signal.SIGKILL)[0] == -signal.SIGKILL
    assert place.exists()
    with Serving(disk, "--socket", place), connect(place) as client:
        assert client.read(0, 512) == bytes(512)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Return what tells how a command ended that cannot serve, and what it said."""

    def run(*words: object) -> tuple[int, str]:
        try:
            code = main(["serve", *map(str, words)])
        except SystemExit as error:
            code = int(error.code or 0)
        output = capsys.readouterr()
        assert output.out == ""
        return code, output.err

    return run


def test_what_cannot_be(
    disk: Path, tmp_path: Path, refused: Callable[..., tuple[int, str]]
) -> None:
    long = tmp_path / ("s" * 110)
    for words, code, told in [
        ((), 2, "say what to serve"),
        ((disk, "--table", "0 8 zero"), 2, "one of them"),
        (("--table", "0 8 zeros"), 2, "zeros"),
        (("--table", "0 8 linear"), 2, "linear"),
        (("--table", " "), 2, "no lines"),
        (("--concise", "a,,,,0 8 zero;a,,,,0 8 zero"), 2, "same name"),
        (("--concise", "a,,,,0 8 zero", "--name", "b"), 2, "--name is for one"),
        (("--table", "0 8 zero", "--name", "a/b"), 2, "a/b"),
        ((disk, "--via", "pigeon"), 2, "pigeon"),
        ((disk, "--socket", long), 2, "too long for a socket"),
        ((disk, "--socket", disk), 2, "is no socket"),
        ((disk, "--socket", tmp_path / "none" / "socket"), 1, "No such file or directory"),
        ((disk, "--listen", "127.0.0.1:99999"), 2, "no place to listen"),
        ((disk, "--listen", "here"), 2, "no place to listen"),
        ((disk, "--listen", "0", "--socket", "s"), 2, "not both"),
        ((tmp_path / "none",), 2, "there is no such device or file"),
        ((tmp_path,), 2, "a directory"),
    ]:
        found = refused(*words)
        assert found[0] == code, found
        assert told in found[1]
        assert found[1].count("\n") == 1


def test_what_is_in_use(
    disk: Path, tmp_path: Path, refused: Callable[..., tuple[int, str]]
) -> None:
    place = tmp_path / "socket"
    with socket.socket() as taken, open(disk, "rb") as file:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, said = refused(disk, "--listen", port)
        assert (code, said) == (
            6,
            f"dmcopy: port {port} of 127.0.0.1 is in use by another server; say another port\n",
        )
        fcntl.flock(file, fcntl.LOCK_EX)
        assert refused(disk, "--socket", place)[0] == 6
        assert refused("--table", f"0 8 linear {disk} 0", "--socket", place)[0] == 6
    other = tmp_path / "other"
    other.write_bytes(bytes(SIZE))
    with Serving(disk, "--socket", place):
        code, said = refused(other, "--socket", place)
        assert code == 6
        assert "a server that listens there" in said
        with connect(place) as client:
            assert client.read(0, 512) == bytes(512)


def test_the_folder_of_sockets_is_the_users_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() or 4711)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    if os.getuid():
        assert runtime_folder() == tmp_path / "dmcopy"
        assert (tmp_path / "dmcopy").stat().st_mode & 0o777 == 0o700
        (tmp_path / "dmcopy").chmod(0o775)
    with pytest.raises(UsageError, match=r"not a folder that only you write to.*say --at PATH"):
        runtime_folder("--at PATH")
    with pytest.raises(UsageError, match=r"not a folder that only you write to.*say --socket PATH"):
        runtime_folder()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "none"))
    with pytest.raises(UsageError, match="say --socket"):
        runtime_folder()


@pytest.mark.parametrize("where", ["[::1]:0", "localhost:0", ":0", "0"])
def test_places_to_listen(where: str) -> None:
    try:
        listener = listen_tcp(where)
    except UsageError:
        assert where.startswith("[")  # a machine without IPv6
    else:
        assert listener.address[1]
        listener.close()


def test_many_that_replace_a_dead_socket_are_one(tmp_path: Path) -> None:
    """The others are told so; the socket is that of the one that listens."""
    path = str(tmp_path / "socket")
    for _ in range(20):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(path)
        begin = threading.Barrier(4)
        found: list[Listener] = []

        def listen(begin: threading.Barrier, found: list[Listener]) -> None:
            begin.wait(DEADLINE)
            with contextlib.suppress(BusyError):
                found.append(listen_unix(path))

        threads = [threading.Thread(target=listen, args=(begin, found)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)
        (one,) = found
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
        one.close()


@pytest.mark.parametrize(
    "words",
    [
        ["serve", "{disk}", "--socket", ""],
        ["serve", "{disk}", "--listen", ""],
        ["serve", "{disk}", "--at", ""],
        ["serve", "{disk}", "--name", ""],
        ["disk", "serve", "{disk}", "--socket", ""],
        ["disk", "serve", "{disk}", "--name", ""],
        ["disk", "serve", "{disk}", "--log", ""],
        ["disk", "cut", ""],
    ],
)
def test_an_empty_word_is_no_name(
    disk: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """It is what a shell makes of a variable that is not set; a default would serve elsewhere."""
    with pytest.raises(SystemExit) as stop:
        main([word.format(disk=disk) for word in words])
    assert stop.value.code == 2
    assert "it is empty: is a variable of the shell not set?" in capsys.readouterr().err


def test_no_device_is_nothing_to_serve(capsys: pytest.CaptureFixture[str]) -> None:
    """It would wait for ever, and no client could come."""
    assert main(["serve", "--concise", ";"]) == 2
    assert "there is no device in it" in capsys.readouterr().err


def test_a_place_whose_name_is_not_utf_8(disk: Path, tmp_path: Path) -> None:
    place = tmp_path / os.fsdecode(b"s\xffcket")
    with Serving(disk, "--socket", place) as serving:
        assert serving.found == [f"nbd+unix:///disk?socket={tmp_path}/s%FFcket"]
        with connect(place) as client:
            assert client.read(0, 512) == bytes(512)
    assert not place.exists()


def test_an_export_whose_name_is_not_utf_8_is_refused_and_leaves_nothing(
    disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names of NBD are UTF-8. A file's name may be anything: the device then wants another."""
    odd = tmp_path / os.fsdecode(b"d\xffsk")
    odd.symlink_to(disk)
    place = tmp_path / "socket"
    for words in ([str(odd)], [str(disk), "--name", os.fsdecode(b"\xff")]):
        assert main(["serve", *words, "--socket", str(place)]) == 2
        assert "no name for an export: give one of" in capsys.readouterr().err
        assert not place.exists()


def test_the_default_name_is_taken_once(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second is told what to say, and breaks nothing of the first, whatever serves that."""
    monkeypatch.setenv("DMCOPY_RUNTIME_DIR", str(tmp_path / "run"))
    other = tmp_path / "other"
    other.write_bytes(bytes(SIZE))
    disk.write_bytes(b"x" * SIZE)
    table = ["--via", "nbd", "--table", f"0 {SIZE >> 9} linear {disk} 0"]
    second = ["serve", "--via", "nbd", "--table", f"0 {SIZE >> 9} linear {other} 0"]
    socket = tmp_path / "run" / "dev.nbd"
    disk_serve = ["disk", "serve", "--via", "nbd", "--name", "dev", str(other)]
    with Serving(*table), connect(socket) as client:
        for words in (second, disk_serve):
            assert main(words) == 6
            assert capsys.readouterr().err == (
                f"dmcopy: {socket} is in use by a server that listens there; "
                "say another --name, or --socket PATH\n"
            )
        assert client.read(0, 512) == b"x" * 512
        with Serving(*second[1:], "--name", "then"), connect(socket) as again:
            assert again.read(0, 512) == b"x" * 512
        assert socket.exists()
    assert not socket.exists()
    assert os.listdir(tmp_path / "run") == []


def test_the_name_of_a_disk_is_taken_once(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its control socket has the name, too, and wherever the disk itself is."""
    monkeypatch.setenv("DMCOPY_RUNTIME_DIR", str(tmp_path / "run"))
    words = ["disk", "serve", "--via", "nbd", "--listen", "0"]
    with Serving(*words[2:], disk, noun="disk serve") as serving:
        assert main([*words, "--size", "1M"]) == 6
        assert capsys.readouterr().err == (
            f"dmcopy: {tmp_path}/run/disk.control is in use by a server that listens there; "
            "say another --name\n"
        )
        assert main(["disk", "cut", "disk"]) == 0
        assert serving.end() == (0, "dmcopy: disk: the power was cut\n")


@pytest.mark.parametrize(
    "words", ["--listen 0", "--read-only", "--json", "--name x", "--via nbd", "{disk}"]
)
def test_resume_takes_nothing_else(
    disk: Path, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is not done must not be taken, and passed over."""
    assert main(["serve", "--resume", *words.format(disk=disk).split()]) == 2
    assert "--resume says it all: leave the rest out" in capsys.readouterr().err
