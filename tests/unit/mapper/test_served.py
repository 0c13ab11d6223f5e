"""The device server and its client: the same engine, and what crosses between them."""

from __future__ import annotations

import contextlib
import errno
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmcopy import asking
from dmcopy.errors import BusyError, DeadlineError, DeviceError, DmcopyError, UsageError
from dmcopy.export import device_server
from dmcopy.export.aside import beside
from dmcopy.export.device_server import MAX_CONNECTIONS
from dmcopy.mapper import served as client
from dmcopy.mapper.base import DmInfo
from dmcopy.mapper.mapped import MappedDevice
from dmcopy.mapper.own import OwnDevices
from dmcopy.runtime import control_path
from dmcopy.table import Table

from .serving import SECONDS, Client, Served
from .test_userspace import DISKS, Stacks

ZEROES = Table.parse("0 64 zero")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DMCOPY_RUNTIME_DIR", str(tmp_path))

    def never() -> None:
        raise AssertionError("a server was started")

    monkeypatch.setattr(client, "start_server", never)
    return tmp_path


@pytest.fixture
def mapper(folder: Path) -> Iterator[Client]:
    with Served(folder), Client() as found:
        yield found


class ServedStacks(Stacks):
    """The same operations beside the same model, over the socket, on files."""

    def __init__(self, seed: int, folder: Path, server: Served) -> None:
        super().__init__(seed)
        self.reactor.close()
        self.mapper = Client()
        self.nodes = str(folder)
        self.place = f"{folder}/disk-"
        self._server = server
        for name in DISKS:
            Path(f"{self.place}{name}").write_bytes(name.encode() * (64 << 9))

    def read(self, name: str, sector: int) -> bytes:
        device = self._server.nodes.added[name]
        assert isinstance(device, MappedDevice)
        return self._server.call(lambda: device.read(sector, 1))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_stacks_of_served_devices(folder: Path, seed: int) -> None:
    with Served(folder, stays=True) as server:
        stacks = ServedStacks(seed, folder, server)
        try:
            for _ in range(60):
                stacks.step()
        except BaseException as error:
            error.add_note("\n".join(stacks.history))
            raise


def test_without_a_server_there_are_no_devices(folder: Path) -> None:
    with Client() as mapper:
        assert mapper.ls() == []
        for call in (mapper.info, mapper.status, mapper.table, mapper.resume, mapper.remove):
            with pytest.raises(DeviceError) as caught:
                call("none")
            assert caught.value.errno == errno.ENXIO
    assert not list(folder.iterdir())


def test_it_ends_with_its_last_device(folder: Path) -> None:
    with Served(folder) as server, Client() as mapper:
        mapper.create("a", ZEROES, uuid="U")
        mapper.create("b", Table.parse("0 8 linear /dev/mapper/a 0"))
        assert [(info.name, info.uuid, info.open_count) for info in mapper.ls()] == [
            ("a", "U", 1),
            ("b", "", 0),
        ]
        assert str(mapper.table("b")) == f"0 8 linear {folder}/a 0"
        with pytest.raises(BusyError, match="the mapped device b") as caught:
            mapper.remove("a")
        assert caught.value.holders == ("the mapped device b",)
        mapper.remove("a", deferred=True)
        mapper.remove("b")
        assert server.over
    assert not Path(control_path()).exists()


def test_errors_cross_as_they_are(mapper: Client, folder: Path) -> None:
    with pytest.raises(UsageError, match="none: there is no such device"):
        mapper.create("x", Table.parse(f"0 8 linear {folder}/none 0"))
    assert mapper.ls() == []
    mapper.create("x", ZEROES)
    with pytest.raises(DeviceError, match="already") as caught:
        mapper.create("x", ZEROES)
    assert (caught.value.errno, caught.value.path) == (errno.EBUSY, "x")
    with pytest.raises(UsageError, match="slash"):
        mapper.info("a/b")
    assert "too small" in mapper.refusal(Table.parse("0 128 linear /dev/mapper/x 0"))
    assert mapper.refusal(ZEROES) == ""


def test_a_wait_holds_nobody_up_and_ends_with_the_event(mapper: Client) -> None:
    mapper.create("x", ZEROES)
    found: list[int] = []
    waiting = threading.Thread(target=lambda: found.append(mapper.wait("x", 0, timeout=SECONDS)))
    waiting.start()
    mapper.create("other", ZEROES)
    mapper.rename("x", "y")  # which is an event; who waits for it need not know
    waiting.join(SECONDS)
    assert found == [1] or (not found and mapper.info("y").events == 1)
    assert mapper.wait("y", 0, timeout=SECONDS) == 1
    with pytest.raises(DeadlineError, match="y: no event after number 1 within 0"):
        mapper.wait("y", 1, timeout=0)


def test_a_wait_for_what_is_removed(mapper: Client) -> None:
    mapper.create("x", ZEROES)
    errors: list[DmcopyError] = []

    def wait() -> None:
        with pytest.raises(DeviceError) as caught:
            mapper.wait("x", 0, timeout=SECONDS)
        errors.append(caught.value)

    waiting = threading.Thread(target=wait)
    waiting.start()
    mapper.remove("x")
    waiting.join(SECONDS)
    assert [getattr(error, "errno", 0) for error in errors] == [errno.ENXIO]


def test_facts_of_a_device_cross(mapper: Client, folder: Path) -> None:
    disk = folder / "disk"
    disk.write_bytes(bytes(64 << 9))
    mapper.create("d", Table.parse(f"0 64 dust {disk} 0 512"))
    assert mapper.info("d") == DmInfo(name="d", segments=1, deps=(str(disk),))
    mapper.message("d", "addbadblock", "3")
    assert mapper.message("d", "countbadblocks").startswith("countbadblocks: 1 badblock(s) found")
    mapper.load("d", ZEROES)
    assert mapper.info("d").inactive
    mapper.suspend("d")
    assert mapper.info("d").suspended
    mapper.resume("d")
    assert str(mapper.table("d")) == "0 64 zero"
    mapper.set_uuid("d", "U")
    assert mapper.info("d").uuid == "U"
    assert mapper.statuses()["d"][0].target == "zero"
    assert "snapshot" in mapper.targets()


@pytest.mark.parametrize(
    "request_words",
    [
        {"do": "create"},
        {"do": "create", "name": 7},
        {"do": "create", "name": "x", "uuid": "", "table": []},
        {"do": "load", "name": "x", "table": "0 8"},
        {"do": "wait", "name": "x", "event": True, "timeout": 1},
        {"do": "wait", "name": "x", "event": 0, "timeout": "1"},
        {"do": "wait", "name": "x", "event": 0, "timeout": float("nan")},
        {"do": "message", "name": "x", "words": "word", "sector": 0},
        {"do": "message", "name": "x", "words": ["a"], "sector": 1 << 200},
        {"do": "suspend", "name": "x", "flush": 1},
        {"do": "remove", "name": None},
        {"do": "rename", "name": "x", "new_name": "/"},
        {"do": "__init__"},
    ],
)
def test_requests_that_make_no_sense(mapper: Client, request_words: dict[str, object]) -> None:
    mapper.create("x", ZEROES)
    with pytest.raises((UsageError, DeviceError)):
        asking.ask(control_path(), request_words)
    assert [info.name for info in mapper.ls()] == ["x"]
    assert not mapper.info("x").suspended


def test_a_server_of_another_version(mapper: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    mapper.create("x", ZEROES)
    monkeypatch.setattr(asking, "VERSION", 2)
    with pytest.raises(DmcopyError, match="of another version: it speaks 1, and this dmcopy 2"):
        mapper.ls()


def test_a_flood_of_peers_that_say_nothing(mapper: Client) -> None:
    mapper.create("x", ZEROES)
    peers = [socket.socket(socket.AF_UNIX) for _ in range(MAX_CONNECTIONS + 6)]
    for peer in peers:
        peer.connect(control_path())
    with pytest.raises(DmcopyError, match="too much to answer"):
        mapper.ls()
    for peer in peers:
        peer.close()
    for _ in range(1000):
        with contextlib.suppress(DmcopyError):
            assert [info.name for info in mapper.ls()] == ["x"]
            return
    raise AssertionError("it answers nothing any more")


def test_an_error_of_the_servers_own_is_one_answer(mapper: Client, folder: Path) -> None:
    mapper.create("x", ZEROES)
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(control_path())
        peer.sendall(json.dumps({"version": 1, "do": "plugin", "module": "no.such"}).encode())
        peer.sendall(b"\n")
        assert json.loads(peer.makefile().readline())["ok"] is False
    assert mapper.exists("x")
    assert folder


def test_what_is_slow_to_remove_holds_up_no_other(folder: Path) -> None:
    """Such as a block device that a program has just opened, which is given a while."""
    begun, free = threading.Event(), threading.Event()
    with Served(folder) as server, Client() as mapper:

        async def removing(name: str) -> None:
            begun.set()
            await beside(server.server.reactor, lambda: free.wait(SECONDS), "its user")
            del server.nodes.added[name]

        server.nodes.removing = removing  # type: ignore[method-assign]
        mapper.create("slow", ZEROES)
        with Client() as other:
            thread = threading.Thread(target=other.remove, args=("slow",))
            thread.start()
            try:
                assert begun.wait(SECONDS)
                mapper.create("x", ZEROES)
                with pytest.raises(DeviceError, match="it is being removed"):
                    mapper.create("y", Table.parse("0 8 linear /dev/mapper/slow 0"))
                assert mapper.exists("slow")
            finally:
                free.set()
                thread.join(SECONDS)
        assert [info.name for info in mapper.ls()] == ["x"]


def test_removals_that_wait_for_users_are_tried_each_once_at_a_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_server, "LEAVING_SECONDS", 0.001)
    tries = Counter[str]()
    with Served(folder) as server, Client() as mapper:

        async def removing(name: str) -> None:
            tries[name] += 1
            raise BusyError(name, ["its user"])

        server.nodes.removing = removing  # type: ignore[method-assign]
        for name in "abc":
            mapper.create(name, ZEROES)
            mapper.remove(name, deferred=True)
        deadline = time.monotonic() + SECONDS
        while min(tries.values()) < 20:
            assert time.monotonic() < deadline, tries
            mapper.ls()
        timers, queue = server.server.reactor._timers, server.server._commands._queue
        assert len(queue) + sum(not one.cancelled for one in list(timers)) < 10
        mapper.message("a", "@cancel_deferred_remove")
        assert [info.deferred for info in mapper.ls()] == [False, True, True]


def test_own_devices_by_any_name(folder: Path) -> None:
    info = DmInfo("a b", number=(7, 1234567))
    own = OwnDevices(lambda: [info])
    expected = own.path("a b")
    for word in ("/dev/mapper/a\\x20b", expected, "7:1234567", f"{folder}/a\\x20b"):
        assert own.resolve(word) == expected
    assert own.resolve("/dev/mapper/other") == "/dev/mapper/other"
    assert own.resolve("8:0") == "8:0"
    assert own.resolve("disk.img") == f"{Path.cwd()}/disk.img"
