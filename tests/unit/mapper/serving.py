"""A device server on a thread of the test's process, without nodes, and its client."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Self, TypeVar

from dmcopy.errors import ClosedError
from dmcopy.export.commands import DeviceChange
from dmcopy.export.device_server import DeviceServer
from dmcopy.export.nodes import Nodes
from dmcopy.io.reactor import Reactor, log_exception
from dmcopy.io.region import Device
from dmcopy.ledger import NoLedger
from dmcopy.mapper.names import mangle
from dmcopy.mapper.own import OwnDevices
from dmcopy.mapper.served import ServedMapper
from dmcopy.runtime import control_path

SECONDS = 60.0
_T = TypeVar("_T")


class NoNodes(Nodes):
    """Knows names, and serves nothing."""

    def __init__(self, reactor: Reactor, folder: Path) -> None:
        super().__init__(reactor, NoLedger())
        self.folder = folder
        self.as_blocks = False
        self.added: dict[str, Device] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.added

    def path(self, name: str) -> str:
        return str(self.folder / mangle(name))

    def number(self, name: str) -> None:
        del name

    async def adding(self, name: str, device: Device, *, left: str = "") -> None:
        assert not left
        self.added[name] = device

    def mark(self, name: str) -> str:
        del name
        return ""

    async def check_unused(self, name: str) -> None:
        assert name in self.added

    async def removing(self, name: str) -> None:
        del self.added[name]

    def drop(self, name: str) -> None:
        self.added.pop(name, None)

    def rename(self, name: str, new_name: str) -> None:
        if name in self.added:
            self.added[new_name] = self.added.pop(name)

    def look(self, name: str) -> None:
        assert name in self.added

    def close(self) -> None:
        self.added.clear()


class Client(ServedMapper):
    """Asks the server; its devices' paths are those of `NoNodes`, and their UUIDs what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.uuid_prefix = ""

    def _own(self) -> OwnDevices:
        found = super()._own()
        found.path = lambda name: str(Path(control_path()).parent / mangle(name))  # type: ignore[method-assign]
        return found


class Served:
    """A server until the end of a `with` block, or until its last device goes unless it `stays`."""

    def __init__(self, folder: Path, *, stays: bool = False) -> None:
        self._folder = folder
        self._stays = stays
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._begun.wait(SECONDS)

    def _run(self) -> None:
        with Reactor(stacked=True) as reactor:
            reactor.on_exception = log_exception
            self.nodes = NoNodes(reactor, self._folder)
            self.server = DeviceServer(reactor, control_path(), self.nodes)
            if self._stays:
                self.server._is_over = lambda: False  # type: ignore[method-assign]
            self._begun.set()
            self.server.run()

    def call(self, what: Callable[[], _T]) -> _T:
        """Call it in the server's turn, as if it was asked to."""
        future: Future[_T] = Future()

        def told(result: _T, error: Exception | None) -> None:
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        command = DeviceChange((), what, told)
        self.server.reactor.call_soon_threadsafe(lambda: self.server._commands.add(command))
        return future.result(SECONDS)

    @property
    def over(self) -> bool:
        """Whether it ended."""
        self._thread.join(SECONDS)
        return not self._thread.is_alive()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():
            with contextlib.suppress(ClosedError):  # it ends by itself just now
                self.server.stop()
            assert self.over
