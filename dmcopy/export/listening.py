"""Where servers listen: Unix sockets that only their user can open, and TCP on this machine."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import socket
import stat
import time
from collections.abc import Iterator
from typing import Final

from dmcopy.asking import MAX_PATH
from dmcopy.errors import BusyError, DeviceError, DmcopyError, UsageError
from dmcopy.units import quoted

LOOPBACK: Final = "127.0.0.1"
_BACKLOG: Final = 128
_LOCK_SECONDS: Final = 2.0
_LISTEN: Final = re.compile(r"(?:\[([^][]+)\]:|([^:]*):)?(\d{1,5})")


class Listener:
    """A socket that listens. `path` of a Unix socket, `address` (and port) of TCP."""

    def __init__(
        self, listening: socket.socket, path: str = "", address: tuple[str, int] = ("", 0)
    ) -> None:
        listening.listen(_BACKLOG)
        listening.setblocking(False)
        self.socket = listening
        self.fileno = listening.fileno
        self.path = path
        self.address = address
        self._file = _file(path)

    def remove(self) -> None:
        """Remove the socket's file, unless the name is another's by now: no peer will find it."""
        if self.path and self._file == _file(self.path):
            with contextlib.suppress(OSError):
                os.unlink(self.path)

    def close(self) -> None:
        """Listen no more, and remove the socket's file."""
        self.remove()
        self.socket.close()


def listen_unix(path: str, otherwise: str = "say another path") -> Listener:
    """Listen at `path`, which only this user can open (0600).

    A socket that no process listens at any more, as a killed server leaves it, is replaced. Raises
    BusyError where one does, UsageError for a path that cannot be, DeviceError; `otherwise` is what
    to do where something is there.
    """
    length = len(os.fsencode(path))
    if length > MAX_PATH:
        raise UsageError(
            f"{quoted(path)} is too long for a socket: {length} bytes, where {MAX_PATH} fit"
        )
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        # The file gets the socket's own mode (unix_bind in net/unix/af_unix.c): there is no moment
        # at which others can open it.
        os.fchmod(listener.fileno(), 0o600)
        with _alone_in(os.path.dirname(path) or "."):
            try:
                listener.bind(path)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                _remove_dead(path, otherwise)
                listener.bind(path)
            found = Listener(listener, path)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise BusyError(path, ["another server, which was just started"]) from None
        raise DeviceError(path, "make a socket of it", error.errno or 0) from None
    except DmcopyError:
        listener.close()
        raise
    return found


@contextlib.contextmanager
def _alone_in(folder: str) -> Iterator[None]:
    """Keep other servers from a folder between the bind and the listen: a socket seems dead then.

    Of two that replace a dead one, the second would otherwise remove that of the first. Where a
    stranger keeps the folder locked it is not waited for: then that may happen.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + _LOCK_SECONDS
        while time.monotonic() < deadline:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.01)
        yield
    finally:
        os.close(fd)


def _remove_dead(path: str, otherwise: str) -> None:
    """Remove a socket that no process listens at. Raises BusyError, UsageError."""
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise UsageError(f"{path} exists, and is no socket: {otherwise}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(1)
        try:
            client.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError:  # its queue is full: a process is there
            raise BusyError(path, ["a server that listens there"], otherwise) from None
        else:
            raise BusyError(path, ["a server that listens there"], otherwise)


def listen_tcp(where: str) -> Listener:
    """Listen at ADDRESS:PORT, or at PORT of the loopback.

    Port 0 is any that is free. Raises BusyError for a port that is taken, UsageError, DeviceError.
    """
    parts = _LISTEN.fullmatch(where)
    port = int(parts[3]) if parts else 1 << 16
    if parts is None or port >= 1 << 16:
        raise UsageError(
            f"{quoted(where)} is no place to listen at: give ADDRESS:PORT, [ADDRESS]:PORT or PORT, "
            "the port from 0 to 65535"
        )
    address = parts[1] or parts[2] or LOOPBACK
    try:
        family, kind, _, _, at = socket.getaddrinfo(
            address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise UsageError(f"{quoted(address)} is no address of a machine: {error}") from None
    listener = socket.socket(family, kind | socket.SOCK_CLOEXEC)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(at)
        found = Listener(listener, address=(address, listener.getsockname()[1]))
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            taken = f"port {port} of {address}"
            raise BusyError(taken, ["another server"], "say another port") from None
        if error.errno == errno.EADDRNOTAVAIL:
            raise UsageError(f"{address} is no address of this machine") from None
        raise DeviceError(where, "listen there", error.errno or 0) from None
    return found


def _file(path: str) -> tuple[int, int] | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
