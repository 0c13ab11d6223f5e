"""NBD by TLS: nothing without it, nothing without a certificate, and no bad credentials."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import ssl
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from dmcopy.cli.main import main
from dmcopy.errors import UsageError
from dmcopy.export.tls import server_context

from .certificates import Certificates
from .client import Client
from .conftest import Server

STARTTLS, REQUIRED, UNSUPPORTED, INVALID = 5, 0x80000005, 0x80000001, 0x80000003


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls") / "made")


@pytest.fixture
def server(serve: Callable[..., Server], made: Certificates) -> Server:
    return serve(tls_creds=str(made.server))


def starttls(client: Client, context: ssl.SSLContext) -> None:
    client.greet()
    client.option(STARTTLS)
    assert client.answers() == [(1, b"")]
    client.socket = context.wrap_socket(client.socket, server_hostname="localhost")


def encrypted(server: Server, context: ssl.SSLContext, *, structured: bool = False) -> Client:
    client = server.connect()
    starttls(client, context)
    assert client.go("disk", structured=structured) == 1
    return client


def is_refused(server: Server, context: ssl.SSLContext) -> bool:
    """Whether it ends: by TLS 1.3 a client learns of it only when it listens."""
    with server.connect() as client:
        try:
            starttls(client, context)
            client.go("disk")
        except (ssl.SSLError, EOFError, ConnectionError):
            return True
    return False


@pytest.mark.parametrize("structured", [False, True])
def test_what_is_written_is_read(server: Server, made: Certificates, structured: bool) -> None:
    data = os.urandom(1 << 20)
    with encrypted(server, made.context(made.client), structured=structured) as client:
        assert server.uri == f"nbds+unix:///disk?socket={server.socket}"
        assert client.write(0, data) == 0
        assert client.read(0, 1 << 20) == data
        for number in range(200):
            client.send(1, number * 512, 512, bytes([number]) * 512, cookie=number)
        assert {client.reply()[:2] for _ in range(200)} == {(n, 0) for n in range(200)}
        for number in range(200):
            client.send(0, number * 512, 512, cookie=number)
        for _ in range(200):
            reply = client.reply()
            assert reply.data == bytes([reply.cookie]) * 512
        client.send(2, 0, 0)
        assert client.is_closed()


def test_answers_that_are_taken_late(server: Server, made: Certificates) -> None:
    """The kernel takes a part of a record: it has to be continued just there."""
    data = os.urandom(1 << 20)
    with encrypted(server, made.context(made.client)) as client:
        assert client.write(0, data) == 0
        for cookie in range(50):
            client.send(0, cookie * 512, (1 << 20) - cookie * 512, cookie=cookie)
        for _ in range(50):
            reply = client.reply()
            assert reply.data == data[reply.cookie * 512 :]


def test_nothing_is_had_without_it(server: Server, made: Certificates) -> None:
    with server.connect() as client:
        client.greet()
        for option in (3, 6, 7, 8, 99):
            client.option(option, b"" if option in (3, 8) else b"\0\0\0\4disk\0\0")
            assert client.answers()[-1][0] == REQUIRED
        client.option(STARTTLS, b"x")
        assert client.answers()[-1][0] == INVALID
        client.option(1, b"disk")
        assert client.is_closed()
    with server.connect() as client:
        starttls(client, made.context(made.client))
        client.option(STARTTLS)
        assert client.answers()[-1][0] == INVALID
        assert client.go("disk") == 1


def test_a_server_without_it_says_so(serve: Callable[..., Server]) -> None:
    with serve().connect() as client:
        client.greet()
        client.option(STARTTLS)
        assert client.answers()[-1][0] == UNSUPPORTED
        assert client.go("disk") == 1


def test_what_comes_in_the_clear_behind_the_request_is_not_listened_to(server: Server) -> None:
    with server.connect() as client:
        client.exactly(18)
        option = b"IHAVEOPT" + struct.pack("!II", STARTTLS, 0)
        client.socket.sendall(struct.pack("!I", 3) + option + option)
        assert client.is_closed()


def test_garbage_is_no_tls(server: Server, made: Certificates) -> None:
    for garbage in (b"\x16\x03\x01" + bytes(60), os.urandom(4096), b"IHAVEOPT" + bytes(8), b"\x16"):
        with server.connect() as client:
            client.greet()
            client.option(STARTTLS)
            assert client.answers() == [(1, b"")]
            client.socket.sendall(garbage)
            client.socket.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                while client.socket.recv(4096):  # an alert, or nothing
                    pass
    with encrypted(server, made.context(made.client)) as client:
        client.socket.unwrap()  # type: ignore[attr-defined]
    with encrypted(server, made.context(made.client)) as client:
        assert client.read(0, 512) == bytes(512)


def test_clients_need_a_certificate_of_the_authority(server: Server, made: Certificates) -> None:
    for context in (made.context(), made.context(made.stranger())):
        assert is_refused(server, context)


def test_one_that_was_revoked(serve: Callable[..., Server], made: Certificates) -> None:
    creds = made.folder / "with-crl"
    shutil.copytree(made.server, creds)
    made.revoke(made.client, creds / "ca-crl.pem")
    server = serve(tls_creds=str(creds))
    assert is_refused(server, made.context(made.client))
    with encrypted(server, made.context(made.credentials("another", "client"))) as client:
        assert client.read(0, 512) == bytes(512)


def test_without_an_authority_all_who_speak_it_are_let_in(
    serve: Callable[..., Server], made: Certificates
) -> None:
    creds = made.folder / "open"
    shutil.copytree(made.server, creds)
    (creds / "ca-cert.pem").unlink()
    server = serve(tls_creds=str(creds), listen="0")
    port = int(server.uri.removesuffix("/disk").rpartition(":")[2])
    assert server.uri.startswith("nbds://127.0.0.1:")
    with Client(("127.0.0.1", port)) as client:
        starttls(client, made.context())
        assert client.go("disk") == 1
        assert client.read(0, 512) == bytes(512)


def test_credentials_that_cannot_be(made: Certificates, capsys: pytest.CaptureFixture[str]) -> None:
    def bad(name: str, **files: bytes | None) -> Path:
        creds = made.folder / f"bad-{name}"
        shutil.copytree(made.server, creds)
        for file, content in files.items():
            path = creds / f"{file.replace('_', '-')}.pem"
            path.unlink() if content is None else path.write_bytes(content)
        return creds

    other = (made.client / "client-key.pem").read_bytes()
    locked = made.with_password(made.server / "server-key.pem")
    old = made.credentials("old", "server", days=-1)
    for creds, said in [
        (made.folder / "nothing", "cannot be read: No such file"),
        (bad("no-key", server_key=None), "server-key.pem cannot be read: No such file"),
        (bad("other-key", server_key=other), "is not the key of"),
        (bad("no-pem", server_cert=b"certificate"), "no certificate and key"),
        (bad("ca", ca_cert=b"authority"), "ca-cert.pem holds nothing to check by"),
        (bad("locked", server_key=locked), "has a password"),
        (old, "certificate has expired"),
    ]:
        with pytest.raises(UsageError, match=said):
            server_context(str(creds))
    words = ["serve", "--tls-creds", str(old), str(made.authority)]
    assert main([*words, "--via", "nbd"]) == 2
    assert "certificate has expired: make a new one" in capsys.readouterr().err
    assert main([*words, "--via", "fuse"]) in (2, 5)
    assert "leave out --tls-creds" in capsys.readouterr().err


def test_credentials_that_are_no_files_are_not_waited_for(made: Certificates) -> None:
    """What has no end, or no writer, would hold the command up for ever."""
    for name in ("server-cert.pem", "server-key.pem", "ca-cert.pem"):
        creds = made.folder / f"odd-{name}"
        shutil.copytree(made.server, creds)
        (creds / name).unlink(missing_ok=True)
        os.mkfifo(creds / name)
        with pytest.raises(UsageError, match=f"{name} is no file"):
            server_context(str(creds))
        (creds / name).unlink()
        (creds / name).symlink_to("/dev/zero")
        with pytest.raises(UsageError, match=f"{name} is no file"):
            server_context(str(creds))
