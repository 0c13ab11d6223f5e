"""TLS for servers: their credentials, and a socket that encrypts, as a wire needs it.

The credentials are a folder as QEMU and libnbd have it: server-cert.pem and server-key.pem. Where
there is ca-cert.pem, too, clients must have a certificate of that authority, and one that is not in
ca-crl.pem, where there is such a file.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import stat
from collections.abc import Iterator, Sequence
from typing import Final

from dmcopy.errors import UsageError

_CERT, _KEY = "server-cert.pem", "server-key.pem"
_CA, _CRL = "ca-cert.pem", "ca-crl.pem"
_CHUNK_BYTES: Final = 64 << 10
_AT_ONCE: Final = 1 << 20
"""How much is decrypted before others have their turn."""
_WAIT: Final = (ssl.SSLWantReadError, ssl.SSLWantWriteError)


class TlsSocket:
    """The server's side of TLS over a connected socket that does not block; it becomes its owner.

    The handshake takes place when it is first read from. What has the methods of a socket here
    behaves as one, but `pending` bytes can be read although the descriptor does not say so.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self._tls = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        self.fileno = self._tls.fileno
        self.pending = self._tls.pending

    def recvmsg_into(self, buffers: Sequence[memoryview]) -> tuple[int, int, int, None]:
        """Fill `buffers` with what there is, records together; the first result is how much."""
        got = 0
        for view in buffers:
            while view and got < _AT_ONCE:
                try:
                    count = self._tls.recv_into(view)
                except _WAIT:
                    if not got:
                        raise BlockingIOError from None
                    count = 0
                if not count:
                    return got, 0, 0, None
                got += count
                view = view[count:]
        return got, 0, 0, None

    def sendmsg(self, pieces: Sequence[bytes | memoryview]) -> int:
        """Send what the kernel takes of `pieces`; return how much that is.

        The rest has to be sent next, with more behind it or not.
        """
        sent = 0
        for chunk in _chunks(pieces):
            try:
                count = self._tls.send(chunk)
            except _WAIT:
                break
            sent += count
            if count < len(chunk):
                break
        return sent

    def close(self) -> None:
        """Close, and tell the peer that this is the end and no attack."""
        with contextlib.suppress(OSError, ValueError):
            self._tls.unwrap()
        self._tls.close()


def _chunks(pieces: Sequence[bytes | memoryview]) -> Iterator[bytearray]:
    """Put small pieces together, each chunk as full as it can be: it takes a system call."""
    chunk = bytearray()
    for piece in pieces:
        view = memoryview(piece)
        while view:
            part = view[: _CHUNK_BYTES - len(chunk)]
            chunk += part
            view = view[len(part) :]
            if len(chunk) == _CHUNK_BYTES:
                yield chunk
                chunk = bytearray()
    if chunk:
        yield chunk


def server_context(folder: str) -> ssl.SSLContext:
    """Return how a server with the credentials in `folder` speaks TLS.

    Raises UsageError for what is not there, cannot be used, or would be refused by every client.
    """
    cert, key, ca, crl = (os.path.join(folder, name) for name in (_CERT, _KEY, _CA, _CRL))
    context = _context(cert, key)
    _try(cert, key)
    if os.path.exists(ca):
        context.verify_mode = ssl.CERT_REQUIRED
        _load(context, ca)
        if os.path.exists(crl):
            _load(context, crl)
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    return context


def _context(cert: str, key: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for path in (cert, key):
        _check_readable(path)
    try:
        context.load_cert_chain(cert, key, password=lambda: _has_password(key))
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise UsageError(
                f"{key} is not the key of {cert}: give the two that belong together"
            ) from None
        raise UsageError(f"{cert} and {key} are no certificate and key: give both in PEM") from None
    return context


def _has_password(key: str) -> str:
    raise UsageError(f"{key} has a password, which a server cannot ask for: take it off")


def _load(context: ssl.SSLContext, path: str) -> None:
    _check_readable(path)
    try:
        context.load_verify_locations(path)
    except ssl.SSLError:
        raise UsageError(f"{path} holds nothing to check by: give it in PEM") from None


def _check_readable(path: str) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):  # one that might never come to its end
            raise UsageError(f"{path} is no file: give the certificates and keys as files")
    finally:
        os.close(fd)


def _try(cert: str, key: str) -> None:
    """Connect to ourselves as a client that trusts this very certificate. Raises UsageError."""
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    _load(trusting, cert)
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        trusting.wrap_bio(to_client, to_server),
        _context(cert, key).wrap_bio(to_server, to_client, server_side=True),
    ]
    try:
        for side in sides * 3:
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    except ssl.SSLCertVerificationError as error:
        raise UsageError(
            f"{cert} would be refused by clients: {error.verify_message}: make a new one"
        ) from None
    except ssl.SSLError as error:
        raise UsageError(f"{cert} cannot be used: {error.reason or error}") from None
