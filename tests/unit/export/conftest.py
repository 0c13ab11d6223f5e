"""A server of a file, on a thread of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from dmcopy.block import BlockDevice
from dmcopy.export.base import Place
from dmcopy.export.nbd.server import NbdServer
from dmcopy.io import Device, Reactor
from dmcopy.io.thread import ReactorThread

from .client import Client

SIZE = 1 << 20


class Server:
    """`file` as an export called "disk"; `make` may put another device above it."""

    def __init__(
        self,
        folder: Path,
        *,
        write: bool = True,
        listen: str | None = None,
        tls_creds: str | None = None,
        make: Callable[[Reactor, Device], Device] = lambda _, device: device,
    ) -> None:
        self.file = folder / "disk"
        if not self.file.exists():
            self.file.write_bytes(bytes(SIZE))
        self.socket = str(folder / "socket")
        self.thread = ReactorThread(stacked=True)
        self.device = BlockDevice.open(self.file, write=write)

        def start(reactor: Reactor) -> NbdServer:
            place = Place(None if listen else self.socket, listen, tls_creds=tls_creds)
            server = NbdServer(reactor, place)
            self.uri = server.add("disk", make(reactor, self.device))
            return server

        self.server = self.thread.call(start)

    def connect(self) -> Client:
        return Client(self.socket)

    def client(self, *, structured: bool = False) -> Client:
        client = self.connect()
        client.greet()
        assert client.go("disk", structured=structured) == 1
        return client

    def connections(self) -> int:
        return self.thread.call(lambda _: len(self.server._connections))

    def close(self) -> None:
        self.thread.call(lambda _: self.server.close())
        self.thread.close()
        self.device.close()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    with ExitStack() as exits:

        def make(**words: object) -> Server:
            server = Server(tmp_path, **words)  # type: ignore[arg-type]
            exits.callback(server.close)
            return server

        yield make


@pytest.fixture
def server(serve: Callable[..., Server]) -> Server:
    return serve()
