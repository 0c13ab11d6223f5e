"""Peers that do not keep to the protocol: an error or a closed connection, and others continue."""

from __future__ import annotations

import random
import resource
import socket
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmcopy.export.nbd import handshake
from dmcopy.export.nbd import server as server_module
from dmcopy.export.nbd.handshake import MAX_OPTION, Handshake
from dmcopy.io import Device
from tests.waiting import until

from .client import DEADLINE
from .conftest import Server


class _Disk:
    sectors = 2048
    logical_block_size = 512
    read_only = False


def exports() -> dict[str, Device]:
    return {"disk": _Disk(), "ünï": _Disk()}  # type: ignore[dict-item]


_OPTION = st.builds(
    lambda magic, option, data, lie: magic + struct.pack("!II", option, len(data) + lie) + data,
    st.sampled_from([b"IHAVEOPT", b"IHAVEOPT", b"IHAVEOPT", b"HAVEOPTI"]),
    st.integers(0, 12) | st.integers(0, 2**32 - 1),
    st.binary(max_size=64)
    | st.sampled_from([struct.pack("!I", 4) + b"disk\0\0", struct.pack("!I", 2**32 - 1)]),
    st.sampled_from([0, 0, 0, 1, 1 << 14, 1 << 30]),
)


@given(st.integers(0, 8), st.lists(_OPTION | st.binary(max_size=40), max_size=12), st.data())
def test_any_handshake_has_an_answer(flags: int, words: list[bytes], data: st.DataObject) -> None:
    """Whole replies, the same ones in whatever pieces it comes; little is kept."""
    sent = struct.pack("!I", flags) + b"".join(words)
    whole, pieces = Handshake(exports()), Handshake(exports())
    answer = whole.feed(sent)
    parts = b""
    while sent and not pieces.ended and pieces.chosen is None:
        size = data.draw(st.integers(1, len(sent)))
        parts += pieces.feed(sent[:size])
        sent = sent[size:]
        assert len(pieces._buffer) <= MAX_OPTION + 16 or pieces.ended
    assert parts == answer
    assert (whole.ended, whole.chosen) == (pieces.ended, pieces.chosen)
    assert whole.rest == pieces.rest + (sent if pieces.chosen is not None else b"")


def test_options_without_end(server: Server) -> None:
    with server.connect() as client:
        client.greet()
        for _ in range(256):
            client.option(3)
            client.answers()
        client.option(3)
        assert client.is_closed()


@pytest.mark.parametrize(
    ("option", "data", "answer"),
    [
        (3, b"x", 0x80000003),
        (7, b"", 0x80000003),
        (7, struct.pack("!I", 2**32 - 1) + b"disk\0\0", 0x80000003),
        (7, struct.pack("!I", 4) + b"disk\0\7", 0x80000003),
        (7, struct.pack("!I", 2) + b"\xff\xfe\0\0", 0x80000006),
        (5, b"", 0x80000001),
        (10, b"", 0x80000003),
        (9, struct.pack("!II", 0, 2**32 - 1), 0x80000003),
        (10, struct.pack("!I", 4) + b"disk" + struct.pack("!II", 1, 2**31) + b"base:", 0x80000003),
        (11, b"", 0x80000001),
        (2**32 - 1, b"x" * 1000, 0x80000001),
    ],
)
def test_an_option_that_is_refused(server: Server, option: int, data: bytes, answer: int) -> None:
    with server.connect() as client:
        client.greet()
        client.option(option, data)
        assert client.answers()[-1][0] == answer
        assert client.go() == 1


def test_an_option_too_long_to_be_one(server: Server) -> None:
    with server.connect() as client:
        client.greet()
        client.socket.sendall(b"IHAVEOPT" + struct.pack("!II", 7, 1 << 20))
        assert client.answers() == [(0x80000009, b"")]
        assert client.is_closed()


def test_flags_that_are_unknown_and_other_protocols(server: Server) -> None:
    for said in (struct.pack("!I", 64), b"GET / HTTP/1.1\r\nHost: here\r\n\r\n", bytes(1000)):
        with server.connect() as client:
            client.exactly(18)
            client.socket.sendall(said)
            assert client.is_closed()


def test_a_request_without_its_magic_number(server: Server) -> None:
    with server.client() as client:
        client.send(1, 0, 512, b"x" * 512, magic=0x25609514)
        assert client.is_closed()
    assert server.file.read_bytes()[:512] == bytes(512)


def test_half_a_write_is_not_written(server: Server) -> None:
    with server.client() as client:
        client.send(1, 0, 256 << 10, b"x" * (200 << 10))
    until(lambda: server.connections() == 0, "the connection is over")
    assert server.file.read_bytes()[: 256 << 10] == bytes(256 << 10)


def test_every_place_to_stop(server: Server) -> None:
    said = struct.pack("!I", 3) + b"IHAVEOPT" + struct.pack("!III", 7, 10, 4) + b"disk\0\0"
    said += struct.pack("!IHHQQI", 0x25609513, 0, 1, 1, 0, 512) + b"x" * 511
    for length in range(0, len(said), 7):
        with server.connect() as client:
            client.socket.sendall(said[:length])
    until(lambda: server.connections() == 0, "all connections are over")
    assert server.file.read_bytes()[:512] == bytes(512)


def test_one_byte_at_a_time(server: Server) -> None:
    said = struct.pack("!I", 3) + b"IHAVEOPT" + struct.pack("!III", 7, 10, 4) + b"disk\0\0"
    said += struct.pack("!IHHQQI", 0x25609513, 0, 1, 1, 0, 512) + b"x" * 512
    said += struct.pack("!IHHQQI", 0x25609513, 0, 0, 2, 4096, 512)
    with server.connect() as client:
        client.exactly(18)
        for byte in said:
            client.socket.sendall(bytes([byte]))
        assert client.answers()[-1][0] == 1
        client.lengths[2] = 512
        assert sorted(client.reply()[:3] for _ in "12") == [(1, 0, b""), (2, 0, bytes(512))]
        assert client.read(0, 512) == b"x" * 512


def test_a_peer_that_takes_no_answers_is_not_read_from(server: Server) -> None:
    """Far more is asked for than fits into its pages: what is sent on waits in the sockets."""
    with server.client() as client, server.client() as other:
        client.socket.settimeout(0.5)
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        asked = 0
        try:
            while asked < 100_000:
                client.send(0, 0, 1 << 20, cookie=asked)
                asked += 1
        except TimeoutError:
            pass
        assert asked < 100_000
        assert other.read(0, 512) == bytes(512)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert before < 4 << 20  # in KiB
        client.socket.settimeout(DEADLINE)
        for _ in range(asked):
            assert len(client.reply().data) == 1 << 20


def test_answers_that_nobody_takes_to_the_end(server: Server) -> None:
    with server.client() as client:
        for cookie in range(100):
            client.send(0, 0, 1 << 20, cookie=cookie)
    until(lambda: server.connections() == 0, "the connection is over")


def test_a_thousand_connections(server: Server) -> None:
    """Those that say nothing make room for one that does."""
    with server.client() as working:
        crowd = [server.connect() for _ in range(1000)]
        try:
            with server.client() as late:
                assert late.read(0, 512) == bytes(512)
                assert working.read(0, 512) == bytes(512)
            assert server.connections() <= server_module.MAX_CONNECTIONS
        finally:
            for client in crowd:
                client.socket.close()


def test_no_more_than_there_is_room_for(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS", 2)
    with server.client() as one, server.client() as two:
        with server.connect() as third:
            assert third.is_closed()
        assert one.read(0, 512) == two.read(0, 512) == bytes(512)


def test_a_handshake_has_a_deadline(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "HANDSHAKE_SECONDS", 0.05)
    server = serve()
    with server.connect() as silent:
        silent.exactly(18)
        assert silent.is_closed()
    monkeypatch.setattr(server_module, "HANDSHAKE_SECONDS", 60.0)
    with server.client() as client:
        assert client.read(0, 512) == bytes(512)
    assert handshake.MAX_OPTION < 1 << 16


def test_no_descriptors_left(server: Server) -> None:
    """What cannot be accepted now is accepted later, and the reactor does not spin meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with server.client() as client:
        waiting = socket.socket(socket.AF_UNIX)
        probe = socket.socket(socket.AF_UNIX)
        resource.setrlimit(resource.RLIMIT_NOFILE, (probe.fileno() + 1, hard))
        try:
            waiting.connect(server.socket)
            assert client.read(0, 512) == bytes(512)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            probe.close()
        waiting.settimeout(DEADLINE)
        assert waiting.recv(18)[:8] == b"NBDMAGIC"
        waiting.close()


def test_transmission_of_anything(server: Server) -> None:
    rng = random.Random(4)
    for _ in range(150):
        # More than the server takes may still be on their way out: it would turn the next one away.
        until(lambda: server.connections() < 32, "most of the earlier ones are over")
        with server.client(structured=rng.random() < 0.5) as client:
            for _ in range(rng.randrange(1, 8)):
                command = rng.choice((0, 1, 1, 3, 4, 6, rng.randrange(1 << 16)))
                length = rng.choice((0, 512, 4096, 1 << 16, rng.randrange(1 << 32)))
                offset = rng.choice((0, 512, 1 << 19, rng.randrange(1 << 64)))
                flags = rng.choice((0, 0, 1, rng.randrange(1 << 16)))
                payload = rng.randbytes(min(length, 1 << 16)) if command == 1 else b""
                try:
                    client.send(command, offset, length, payload, flags=flags)
                except (BrokenPipeError, ConnectionResetError):
                    break
    until(lambda: server.connections() == 0, "all connections are over")
    with server.client() as client:
        assert client.ask(3, 0, 0).error == 0


def test_the_end_does_not_wait_for_the_rest_of_a_message(server: Server) -> None:
    """Nor does another client: half a write, half a request and half a handshake are no work."""
    with server.client() as write, server.client() as request, server.connect() as handshake:
        write.send(1, 0, 64 << 10, b"x" * 1000)
        request.socket.sendall(struct.pack("!IHH", 0x25609513, 0, 0))
        handshake.greet()
        handshake.socket.sendall(b"IHAVEOPT")
        with server.client() as other:
            assert other.read(0, 512) == bytes(512)
        server.thread.call(lambda _: server.server.close())
        assert [client.is_closed() for client in (write, request, handshake)] == [True] * 3
    assert server.file.read_bytes()[: 64 << 10] == bytes(64 << 10)
