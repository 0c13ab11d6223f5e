"""The other side of NBD, as the protocol's document has it; it sends whatever it is told to."""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple, Self

DEADLINE = 30.0


class Reply(NamedTuple):
    """What a request was answered with."""

    cookie: int
    error: int
    data: bytes = b""
    structured: bool = False


class Client:
    """A connection; `go` ends the handshake."""

    def __init__(self, address: str | tuple[str, int]) -> None:
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self.socket = socket.socket(family)
        self.socket.connect(address)
        self.socket.settimeout(DEADLINE)
        self.structured = False
        self.size = self.flags = 0
        self.blocks: tuple[int, ...] = ()
        self.lengths: dict[int, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def exactly(self, count: int) -> bytes:
        data = bytearray(count)
        view, got = memoryview(data), 0
        while got < count:
            more = self.socket.recv_into(view[got:])
            if not more:
                raise EOFError(f"{got} of {count} bytes")
            got += more
        return bytes(data)

    def is_closed(self) -> bool:
        """Whether nothing comes but the end."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def greet(self, flags: int = 3) -> None:
        assert self.exactly(18) == b"NBDMAGICIHAVEOPT\0\3"
        self.socket.sendall(struct.pack("!I", flags))

    def option(self, option: int, data: bytes = b"", magic: bytes = b"IHAVEOPT") -> None:
        self.socket.sendall(magic + struct.pack("!II", option, len(data)) + data)

    def answers(self) -> list[tuple[int, bytes]]:
        """The replies to an option, up to the last one."""
        found = []
        while True:
            magic, _, kind, length = struct.unpack("!QIII", self.exactly(20))
            assert magic == 0x3E889045565A9
            found.append((kind, self.exactly(length)))
            if kind == 1 or kind >> 31:
                return found

    def go(self, name: str = "", *, structured: bool = False, option: int = 7) -> int:
        """Choose an export; return the kind of the last reply, 1 for success."""
        if structured:
            self.option(8)
            assert self.answers() == [(1, b"")]
            self.structured = True
        encoded = name.encode()
        self.option(option, struct.pack("!I", len(encoded)) + encoded + b"\0\0")
        answers = self.answers()
        for kind, data in answers:
            if kind == 3 and data[:2] == b"\0\0":
                _, self.size, self.flags = struct.unpack("!HQH", data)
            elif kind == 3 and data[:2] == b"\0\3":
                self.blocks = struct.unpack("!HIII", data)[1:]
        return answers[-1][0]

    def send(
        self,
        command: int,
        offset: int,
        length: int,
        data: bytes = b"",
        *,
        flags: int = 0,
        cookie: int = 7,
        magic: int = 0x25609513,
    ) -> None:
        if command == 0:
            self.lengths[cookie] = length
        head = struct.pack("!IHHQQI", magic, flags, command, cookie, offset, length)
        self.socket.sendall(head + data)

    def reply(self) -> Reply:
        (magic,) = struct.unpack("!I", self.exactly(4))
        if magic == 0x67446698:
            error, cookie = struct.unpack("!IQ", self.exactly(12))
            length = self.lengths.pop(cookie, 0)
            return Reply(cookie, error, b"" if error else self.exactly(length))
        assert magic == 0x668E33EF
        assert self.structured
        flags, kind, cookie, length = struct.unpack("!HHQI", self.exactly(16))
        assert flags == 1
        body = self.exactly(length)
        self.lengths.pop(cookie, None)
        if kind == 0x8001:
            return Reply(cookie, struct.unpack("!IH", body)[0], structured=True)
        if kind == 5:
            return Reply(cookie, 0, body, structured=True)
        assert kind == 1 or not length
        return Reply(cookie, 0, body[8:], structured=True)

    def ask(
        self, command: int, offset: int, length: int, data: bytes = b"", flags: int = 0
    ) -> Reply:
        self.send(command, offset, length, data, flags=flags)
        return self.reply()

    def read(self, offset: int, length: int) -> bytes:
        reply = self.ask(0, offset, length)
        assert not reply.error
        return reply.data

    def write(self, offset: int, data: bytes, flags: int = 0) -> int:
        return self.ask(1, offset, len(data), data, flags).error
