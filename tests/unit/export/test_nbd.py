"""The NBD server, asked by a client that keeps to the protocol."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
from collections.abc import Callable
from errno import EINVAL, ENOSPC, EOPNOTSUPP, EOVERFLOW, EPERM
from pathlib import Path

import pytest

from dmcopy.io import Device
from dmcopy.io.stacked import StackedDevice

from .client import Client
from .conftest import SIZE, Server

READ, WRITE, DISCONNECT, FLUSH, TRIM, ZEROES, STATUS = 0, 1, 2, 3, 4, 6, 7
FUA, NO_HOLE, DF, ONE, FAST = 1, 2, 4, 8, 16
SET = (4, b"\0\0\0\1base:allocation")


@pytest.mark.parametrize("structured", [False, True])
def test_what_is_written_is_read(server: Server, structured: bool) -> None:
    data = os.urandom(192 << 10)
    with server.client(structured=structured) as client:
        assert client.size == SIZE
        assert client.blocks == (512, 4096, 32 << 20)
        assert client.write(512, data) == 0
        assert client.read(512, len(data)) == data
        assert client.read(0, 512) == bytes(512)
        assert client.ask(FLUSH, 0, 0).error == 0
        assert client.write(4096, data[:512], FUA) == 0
    assert server.file.read_bytes()[512:4096] == data[: 4096 - 512]


def test_many_requests_are_in_flight(server: Server) -> None:
    with server.client() as client:
        for number in range(200):
            client.send(WRITE, number * 512, 512, bytes([number]) * 512, cookie=number)
        assert {client.reply()[:2] for _ in range(200)} == {(n, 0) for n in range(200)}
        for number in range(200):
            client.send(READ, number * 512, 512, cookie=number)
        for _ in range(200):
            reply = client.reply()
            assert reply.data == bytes([reply.cookie]) * 512


def test_connections_see_each_others_writes(server: Server) -> None:
    with server.client() as one, server.client() as other:
        assert one.flags & (1 << 8)
        one.write(0, b"x" * 512)
        assert other.read(0, 512) == b"x" * 512


def test_zeroes_and_trim(server: Server) -> None:
    server.file.write_bytes(b"o" * SIZE)
    with server.client() as client:
        assert client.ask(TRIM, 0, 64 << 10).error == 0
        assert client.ask(ZEROES, 64 << 10, 64 << 10, flags=FUA).error == 0
        holes = server.file.stat().st_blocks
        assert client.ask(ZEROES, 128 << 10, 64 << 10, flags=NO_HOLE | FUA).error == 0
        assert client.ask(ZEROES, 0, 4096, flags=FAST).error == EOPNOTSUPP
        assert client.read(0, 192 << 10) == bytes(192 << 10)
        assert client.read(192 << 10, 512) == b"o" * 512
    assert server.file.stat().st_blocks == holes == SIZE - (128 << 10) >> 9
    assert client.flags & (1 << 11)


def test_zeroing_is_longer_than_any_write(serve: Callable[..., Server], tmp_path: Path) -> None:
    with open(tmp_path / "disk", "wb") as file:
        file.truncate(200 << 20)
        file.seek((150 << 20) - 512)
        file.write(b"x" * 512)
    with serve().client() as client:
        assert client.ask(ZEROES, 0, 200 << 20).error == 0
        assert client.read((150 << 20) - 512, 512) == bytes(512)
        assert client.ask(TRIM, 0, 200 << 20, flags=FUA).error == 0


@pytest.mark.parametrize(
    ("command", "offset", "length", "flags", "error"),
    [
        (READ, SIZE - 512, 1024, 0, EINVAL),
        (READ, 1 << 63, 512, 0, EINVAL),
        (READ, 1, 512, 0, EINVAL),
        (READ, 0, 100, 0, EINVAL),
        (READ, 0, 512, DF, EINVAL),
        (WRITE, SIZE, 512, 0, ENOSPC),
        (WRITE, 7, 512, 0, EINVAL),
        (WRITE, 0, 512, NO_HOLE, EINVAL),
        (TRIM, SIZE, 512, 0, EINVAL),
        (TRIM, 0, 512, FAST, EINVAL),
        (ZEROES, SIZE - 512, 1024, 0, ENOSPC),
        (FLUSH, 0, 0, 64, EINVAL),
        (5, 0, 512, 0, EINVAL),
        (99, 0, 0, 0, EINVAL),
    ],
)
@pytest.mark.parametrize("structured", [False, True])
def test_what_cannot_be_is_refused_and_the_next_request_is_not(
    server: Server,
    structured: bool,
    command: int,
    offset: int,
    length: int,
    flags: int,
    error: int,
) -> None:
    if structured and flags == DF:
        error = 0
    with server.client(structured=structured) as client:
        data = b"d" * length if command == WRITE else b""
        reply = client.ask(command, offset, length, data, flags)
        assert reply.error == error
        assert reply.structured == (structured and command == READ)
        assert client.read(0, 512) == bytes(512)
    assert server.file.stat().st_size == SIZE


def test_a_write_that_is_too_long_is_passed_over(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    with open(tmp_path / "disk", "wb") as file:
        file.truncate(64 << 20)
    with serve().client() as client:
        assert client.write(0, bytes((32 << 20) + 512)) == EOVERFLOW
        assert client.ask(READ, 0, (32 << 20) + 512).error == EOVERFLOW
        client.lengths.clear()
        assert client.write(0, b"m" * (32 << 20)) == 0
        assert client.read(0, 32 << 20) == b"m" * (32 << 20)


def test_one_that_is_read_only(serve: Callable[..., Server]) -> None:
    with serve(write=False).client() as client:
        assert client.flags & 2
        assert client.write(0, b"x" * 512) == EPERM
        assert client.ask(TRIM, 0, 512).error == EPERM
        assert client.ask(ZEROES, 0, 512).error == EPERM
        assert client.ask(FLUSH, 0, 0).error == 0
        assert client.read(0, 512) == bytes(512)


def test_requests_of_no_length(server: Server) -> None:
    for structured in (False, True):
        with server.client(structured=structured) as client:
            for command in (READ, WRITE, TRIM, ZEROES):
                assert client.ask(command, 0, 0).error == 0


def test_a_disconnect_comes_after_what_was_asked_for(server: Server) -> None:
    with server.client() as client:
        for number in range(100):
            client.send(WRITE, number * 512, 512, b"w" * 512, cookie=number)
        client.send(DISCONNECT, 0, 0)
        assert {client.reply().cookie for _ in range(100)} == set(range(100))
        assert client.is_closed()
    assert server.file.read_bytes()[: 100 * 512] == b"w" * 51200


def test_the_socket_is_the_users_alone_and_goes(server: Server) -> None:
    assert stat.S_IMODE(os.stat(server.socket).st_mode) == 0o600
    assert server.uri == f"nbd+unix:///disk?socket={server.socket}"
    server.thread.call(lambda _: server.server.close())
    assert not os.path.exists(server.socket)


def test_tcp(serve: Callable[..., Server]) -> None:
    server = serve(listen="0")
    head, _, port = server.uri.removesuffix("/disk").rpartition(":")
    assert head == "nbd://127.0.0.1"
    with Client(("127.0.0.1", int(port))) as client:
        client.greet()
        assert client.go() == 1
        assert client.write(0, b"t" * 512) == 0


def test_more_exports(server: Server) -> None:
    server.thread.call(lambda _: server.server.add("other", server.device))
    with server.connect() as client:
        client.greet()
        client.option(3)
        assert client.answers() == [(2, b"\0\0\0\4disk"), (2, b"\0\0\0\5other"), (1, b"")]
        assert client.go("third") == 0x80000006
        assert client.go("other", option=6) == 1
        assert client.go("other") == 1
        with server.client() as second:
            server.thread.call(lambda _: server.server.remove("other"))
            assert client.is_closed()
            assert second.read(0, 512) == bytes(512)
    with server.connect() as client:
        client.greet()
        assert client.go("other") == 0x80000006


def test_the_old_way_to_choose(server: Server) -> None:
    for flags, padding in ((3, 0), (1, 124)):
        with server.connect() as client:
            client.greet(flags)
            client.option(1, b"disk")
            assert int.from_bytes(client.exactly(8)) == SIZE
            assert client.exactly(2 + padding)[2:] == bytes(padding)
            assert client.read(0, 512) == bytes(512)
    with server.connect() as client:
        client.greet()
        client.option(1, b"no such export")
        assert client.is_closed()


def test_the_end_waits_for_what_was_asked_for(server: Server) -> None:
    with server.client() as client:
        for number in range(50):
            client.send(WRITE, number * 512, 512, b"e" * 512, cookie=number)
        answered = {client.reply().cookie}
        server.thread.call(lambda _: server.server.close())
        with contextlib.suppress(ConnectionResetError):  # it had not read all that was asked for
            while answer := client.socket.recv(16, socket.MSG_WAITALL):
                answered.add(int.from_bytes(answer[8:]))
    content = server.file.read_bytes()
    for number in range(50):
        assert (content[number * 512] == ord("e")) >= (number in answered)


def contexts(client: Client, name: str, *queries: str, option: int = 10) -> list[tuple[int, bytes]]:
    words = [name.encode(), *(query.encode() for query in queries)]
    first, *others = [struct.pack("!I", len(word)) + word for word in words]
    client.option(option, first + struct.pack("!I", len(others)) + b"".join(others))
    return client.answers()


def status(client: Client, offset: int, length: int, flags: int = 0) -> list[tuple[int, int]]:
    reply = client.ask(STATUS, offset, length, flags=flags)
    assert reply.error == 0
    assert reply.data[:4] == b"\0\0\0\1"
    return list(struct.iter_unpack("!II", reply.data[4:]))


def mapped(server: Server) -> Client:
    client = server.connect()
    client.greet()
    client.option(8)
    assert client.answers() == [(1, b"")]
    assert contexts(client, "disk", "x:y", "base:allocation") == [SET, (1, b"")]
    client.structured = True
    assert client.go("disk") == 1
    return client


def test_where_a_file_has_holes(serve: Callable[..., Server], tmp_path: Path) -> None:
    with open(tmp_path / "disk", "wb") as file:
        file.truncate(8 << 20)
        file.seek(1 << 20)
        file.write(b"x" * (64 << 10))
    with mapped(serve()) as client:
        rest = (7 << 20) - (64 << 10)
        whole = [(1 << 20, 3), (64 << 10, 0), (rest, 3)]
        assert status(client, 0, 8 << 20) == whole
        assert status(client, 0, 8 << 20, ONE) == whole[:1]
        assert status(client, (1 << 20) + 512, 1024) == [(1024, 0)]
        assert client.write(4 << 20, b"y" * 4096) == 0
        assert status(client, 4 << 20, 4096) == [(4096, 0)]
        assert client.ask(ZEROES, 1 << 20, 64 << 10).error == 0
        assert status(client, 0, 2 << 20) == [(2 << 20, 3)]
        for offset, length in ((0, 0), (0, (8 << 20) + 512), (1, 512), (8 << 20, 512)):
            reply = client.ask(STATUS, offset, length)
            assert (reply.error, reply.structured) == (EINVAL, True)


def test_a_reply_tells_of_no_more_than_so_many(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    with open(tmp_path / "disk", "wb") as file:
        file.truncate(16 << 20)
        for number in range(1024):
            file.seek(number << 14)
            file.write(b"x" * 4096)
    with mapped(serve()) as client:
        told = status(client, 0, 16 << 20)
        assert told == [(4096, 0), (12288, 3)] * 256


def test_a_mapped_device_is_all_data(serve: Callable[..., Server]) -> None:
    class Above(StackedDevice):
        """Where what it reads comes from is not known."""

        def __init__(self, below: Device) -> None:
            self.below = below

        def __getattr__(self, name: str) -> object:
            return getattr(self.below, name)

    with mapped(serve(make=lambda _, device: Above(device))) as client:
        assert status(client, 0, SIZE) == [(SIZE, 0)]


def test_contexts_are_told_and_set(server: Server) -> None:
    listed = (4, b"\0\0\0\0base:allocation")
    with server.connect() as client:
        client.greet()
        assert contexts(client, "disk", "base:allocation")[-1][0] == 0x80000003
        client.option(8)
        client.answers()
        assert contexts(client, "disk", option=9) == [listed, (1, b"")]
        assert contexts(client, "disk", "base:", option=9) == [listed, (1, b"")]
        assert contexts(client, "disk", "qemu:", option=9) == [(1, b"")]
        assert contexts(client, "none", option=9)[-1][0] == 0x80000006
        assert contexts(client, "disk", "base:allocation") == [SET, (1, b"")]
        assert contexts(client, "disk", "qemu:dirty-bitmap:x") == [(1, b"")]
        client.structured = True
        assert client.go("disk") == 1
        assert client.ask(STATUS, 0, 512).error == EINVAL  # the last word holds, and it was none
    with server.client() as client:
        assert client.ask(STATUS, 0, 512).error == EINVAL
