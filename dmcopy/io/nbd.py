"""The kernel's nbd driver: block devices, /dev/nbdN, whose requests come through a socket.

It is told by generic netlink what to do. Numbers are those of include/uapi/linux/nbd-netlink.h and
genetlink.h; what the driver does is in drivers/block/nbd.c, 6.1 and 6.12. A device carries a word
of its server's, its `mark`, which the driver shows, and without which it takes no other server
(NBD_ATTR_BACKEND_IDENTIFIER, since Linux 5.14).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import struct
from collections.abc import Iterator
from typing import Final

from dmcopy.units import SECTOR_SHIFT

WAIT_SECONDS: Final = 1_000_000
"""How long a device waits for its next server: eleven days."""
RETRY_MS: Final = 5000
"""How often requests under way look whether there is another server, which they then ask."""

_MODULE: Final = "/sys/module/nbd"
_BLOCKS: Final = "/sys/block"
_OLDEST: Final = (5, 14)
_NAME: Final = re.compile(r"nbd(\d+)")
_MARK_PREFIX: Final = "dmcopy-"

_HEADER: Final = struct.Struct("=IHHII")
_GENERIC: Final = struct.Struct("=BBH")
_ATTRIBUTE: Final = struct.Struct("=HH")
_RESULT: Final = struct.Struct("=i")
_U16, _U32, _U64 = struct.Struct("=H"), struct.Struct("=I"), struct.Struct("=Q")
_GENERIC_NETLINK, _NLMSG_ERROR, _REQUEST_AND_ACK = 16, 2, 1 | 4
_NESTED, _TYPE = 1 << 15, 0x3FFF
_MAX_ANSWER: Final = 1 << 16

_CONTROLLER, _GET_FAMILY, _FAMILY_ID, _FAMILY_NAME = 16, 3, 1, 2
_CONNECT, _DISCONNECT, _RECONFIGURE = 1, 2, 3
_INDEX, _SIZE_BYTES, _BLOCK_SIZE, _TIMEOUT, _SERVER_FLAGS = 1, 2, 3, 4, 5
_SOCKETS, _DEAD_TIMEOUT, _BACKEND = 7, 8, 10
_SOCKET_ITEM, _SOCKET_FD = 1, 1


def node(number: int) -> str:
    """Return a device's node."""
    return f"/dev/nbd{number}"


def new_mark() -> str:
    """Return a mark that no device has."""
    return _MARK_PREFIX + os.urandom(8).hex()


class NbdControl:
    """Commands to the driver, each of which is over when its method returns.

    Several threads may use one. Raises OSError with the driver's errno. The driver may wait for
    what it has asked of a device's server: not to be called on the thread that answers.
    """

    def why_not(self) -> str:
        """Return why there can be no devices on this machine, "" where there can."""
        if os.geteuid() != 0:
            return "nbd devices need root"
        release = os.uname().release
        # To ask for the driver's messages would have 6.12 load it.
        if not os.path.exists(_MODULE):
            return "this kernel has no nbd driver, or has not loaded it (modprobe nbd)"
        if tuple(map(int, re.findall(r"\d+", release)[:2])) < _OLDEST:
            return f"the nbd driver of kernel {release} is older than 5.14"
        try:
            self._family()
        except OSError as error:
            if error.errno == errno.ENOENT:
                return "the nbd driver cannot be asked in this network namespace"
            return f"the nbd driver cannot be asked: {error.strerror}"
        return ""

    def connect(
        self, mark: str, descriptor: int, *, sectors: int, block_size: int, flags: int, wait: bool
    ) -> int:
        """Make a device whose requests go to a socket; return its number, which was free.

        `flags`: of the transmission. However long a request takes, it is waited for. Where the
        other side of the socket is closed, all fails that is asked from then on, and what is under
        way waits for `disconnect`; with `wait` all waits for another server.
        """
        asked = [
            _u64(_SIZE_BYTES, sectors << SECTOR_SHIFT),
            _u64(_BLOCK_SIZE, block_size),
            _u64(_TIMEOUT, 0),
            _u64(_DEAD_TIMEOUT, WAIT_SECONDS if wait else 0),
            _u64(_SERVER_FLAGS, flags),
            _backend(mark),
            _socket(descriptor),
        ]
        (number,) = _U32.unpack(self._ask(_CONNECT, *asked)[_INDEX])
        return int(number)

    def retry_soon(self, number: int) -> None:
        """Have requests under way look for another server each `RETRY_MS`.

        Only once a device is served: 6.12 waits for all that is under way to it, as what udev
        reads of a new one (queue_attr_store in block/blk-sysfs.c).
        """
        path = f"{_BLOCKS}/nbd{number}/queue/io_timeout"
        with contextlib.suppress(OSError), open(path, "w", encoding="ascii") as file:
            file.write(str(RETRY_MS))

    def reconnect(self, number: int, mark: str, descriptor: int) -> None:
        """Have a device continue with another socket, if the driver knows that the last is dead.

        Where it does not yet, nothing is done, and nothing said.
        """
        self._ask(_RECONFIGURE, _u32(_INDEX, number), _backend(mark), _socket(descriptor))

    def resize(self, number: int, mark: str, sectors: int) -> None:
        """Give a device another size. What is under way is waited for (6.12)."""
        size = _u64(_SIZE_BYTES, sectors << SECTOR_SHIFT)
        self._ask(_RECONFIGURE, _u32(_INDEX, number), _backend(mark), size)

    def disconnect(self, number: int) -> None:
        """Make a device vanish when its last user closes it; what is asked of it now fails."""
        self._ask(_DISCONNECT, _u32(_INDEX, number))

    def mark(self, number: int) -> str:
        """Return the mark of a device, "" where it has none."""
        try:
            with open(f"{_BLOCKS}/nbd{number}/backend", encoding="utf-8") as file:
                return file.read().strip()
        except OSError:
            return ""

    def find(self, mark: str) -> int | None:
        """Return the number of the device that carries a mark."""
        return next((number for number in self.numbers() if self.mark(number) == mark), None)

    def numbers(self) -> list[int]:
        """Return the numbers of all devices that are connected by netlink."""
        names = (_NAME.fullmatch(name) for name in os.listdir(_BLOCKS))
        numbers = sorted(int(name[1]) for name in names if name)
        return [number for number in numbers if os.path.exists(f"{_BLOCKS}/nbd{number}/backend")]

    def _family(self) -> int:
        """Return the number that the kernel gave the driver's family of messages."""
        answer = self.exchange(_CONTROLLER, _GET_FAMILY, _attribute(_FAMILY_NAME, b"nbd\0"))
        (number,) = _U16.unpack(_attributes(answer)[_FAMILY_ID])
        return int(number)

    def _ask(self, command: int, *attributes: bytes) -> dict[int, bytes]:
        return _attributes(self.exchange(self._family(), command, b"".join(attributes)))

    def exchange(self, family: int, command: int, attributes: bytes) -> bytes:
        """Send a message, and return the attributes of what is answered before it is done."""
        message = _GENERIC.pack(command, 1, 0) + attributes
        head = _HEADER.pack(_HEADER.size + len(message), family, _REQUEST_AND_ACK, 1, 0)
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _GENERIC_NETLINK) as kernel:
            kernel.sendall(head + message)
            answer = b""
            while True:
                for kind, body in _messages(kernel.recv(_MAX_ANSWER)):
                    if kind == _NLMSG_ERROR:
                        (result,) = _RESULT.unpack_from(body)
                        if result:
                            raise OSError(-result, os.strerror(-result))
                        return answer
                    answer = body[_GENERIC.size :]


def _attribute(kind: int, data: bytes) -> bytes:
    size = _ATTRIBUTE.size + len(data)
    return _ATTRIBUTE.pack(size, kind) + data + bytes(-size % 4)


def _u32(kind: int, value: int) -> bytes:
    return _attribute(kind, _U32.pack(value))


def _u64(kind: int, value: int) -> bytes:
    return _attribute(kind, _U64.pack(value))


def _backend(mark: str) -> bytes:
    return _attribute(_BACKEND, mark.encode() + b"\0")


def _socket(descriptor: int) -> bytes:
    item = _attribute(_SOCKET_ITEM | _NESTED, _u32(_SOCKET_FD, descriptor))
    return _attribute(_SOCKETS | _NESTED, item)


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the kinds and bodies of what was received together."""
    at = 0
    while at < len(data):
        length, kind, *_ = _HEADER.unpack_from(data, at)
        yield kind, data[at + _HEADER.size : at + length]
        at += length + -length % 4


def _attributes(data: bytes) -> dict[int, bytes]:
    """Return what a message holds, by kinds."""
    found = {}
    at = 0
    while at < len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        found[kind & _TYPE] = data[at + _ATTRIBUTE.size : at + length]
        at += length + -length % 4
    return found
