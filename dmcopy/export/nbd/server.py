"""The NBD server: a front end that serves any number of devices at one socket.

Devices are exports by their names; the last one added is also the one without a name. Each may have
several connections at a time. A peer has `HANDSHAKE_SECONDS` to choose an export. Beyond
`MAX_CONNECTIONS`, the one that has been choosing for longest is closed, or else the new one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

from dmcopy.errors import UsageError
from dmcopy.export.base import FrontEnd, Place
from dmcopy.export.listening import Listener, listen_tcp, listen_unix
from dmcopy.export.nbd import protocol as nbd
from dmcopy.export.nbd.handshake import Handshake
from dmcopy.export.nbd.transmission import Transmission
from dmcopy.export.wire import Wire
from dmcopy.io.reactor import Reactor, Timer
from dmcopy.io.region import Device
from dmcopy.runtime import runtime_folder

if TYPE_CHECKING:
    import ssl

HANDSHAKE_SECONDS: Final = 10.0
MAX_CONNECTIONS: Final = 64
CLOSE_SECONDS: Final = 30.0
_ACCEPTS: Final = 16
"""Connections taken together, before others have their turn."""
_NO_MORE_FILES: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_BREATH_SECONDS: Final = 0.1


class NbdServer(FrontEnd):
    """Serves devices by NBD at `place`: a Unix socket, by default in the runtime folder, or TCP.

    With `place.tls_creds` clients have to speak TLS, see `dmcopy.export.tls`. It listens from the
    first `add` on.
    """

    kind: ClassVar[str] = "nbd"
    summary: ClassVar[str] = "an NBD export: for QEMU, libnbd's tools, nbd-client"
    takes: ClassVar[tuple[str, ...]] = ("socket", "listen", "tls_creds")

    def __init__(self, reactor: Reactor, place: Place = Place()) -> None:  # noqa: B008
        super().__init__(reactor, place)
        if place.socket and place.listen:
            raise UsageError("say either a socket or an address to listen at, not both")
        self.exports: dict[str, Device] = {}
        self._listener: Listener | None = None
        self._tls: ssl.SSLContext | None = None
        if place.tls_creds:
            from dmcopy.export.tls import server_context

            self._tls = server_context(place.tls_creds)
        self._base = ""
        self._query = ""
        self._resting: Timer | None = None
        self._connections: dict[Connection, None] = {}  # in the order in which they came

    @classmethod
    def why_not(cls) -> str:
        """It works wherever there are sockets."""
        return ""

    def add(self, name: str, device: Device) -> str:
        try:
            size = len(name.encode())
        except UnicodeEncodeError:  # made under another locale, see PEP 383
            size = 0
        if not 1 <= size <= nbd.MAX_STRING or "\0" in name:
            limits = "give one of 1 to 4096 bytes, in UTF-8"
            raise UsageError(f"{name[:40]!r} is no name for an export: {limits}")
        if name in self.exports:
            raise UsageError(f"there is an export {name} already")
        if self._listener is None:
            self._listen(name)
        self.exports[name] = device
        from urllib.parse import quote

        return f"{self._base}/{quote(name)}{self._query}"

    def remove(self, name: str) -> None:
        """Serve a device no longer. Raises DeadlineError where its requests do not end."""
        del self.exports[name]
        self._end(lambda connection: connection.export == name)

    def disconnect(self, name: str) -> None:
        """Cut the connections of an export off, whatever they were asking for; others may come."""
        for connection in list(self._connections):
            if connection.export == name:
                connection.close()

    def close(self) -> None:
        """Answer what is under way, and serve nothing any more. Raises DeadlineError."""
        self.exports.clear()
        if self._listener is not None:
            listener, self._listener = self._listener, None
            if self._resting is not None:
                self._resting.cancel()
            else:
                self.reactor.unwatch(listener.fileno())
            listener.close()
        self._end(lambda _: True)

    def _listen(self, name: str) -> None:
        from urllib.parse import quote

        scheme = "nbd" if self._tls is None else "nbds"
        if self.place.listen:
            listener = listen_tcp(self.place.listen)
            address, port = listener.address
            shown = f"[{address}]" if ":" in address else address
            self._base = f"{scheme}://{shown}:{port}"
        else:
            path, otherwise = self.place.socket, "say another path"
            if path is None:
                path = str(runtime_folder() / f"{name.replace('/', '_')}.nbd")
                otherwise = "say another --name, or --socket PATH"
            listener = listen_unix(path, otherwise)
            self._base, self._query = (
                f"{scheme}+unix://",
                f"?socket={quote(os.fsencode(Path(path).absolute()))}",
            )
        self._listener = listener
        self._watch()

    def _accept(self, events: int) -> None:
        del events
        for _ in range(_ACCEPTS):
            if self._listener is None:
                return
            try:
                sock, _address = self._listener.socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _NO_MORE_FILES:
                    self._take_a_breath()
                return
            self._make_room()
            if len(self._connections) >= MAX_CONNECTIONS:
                sock.close()
                continue
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            connection = Connection(
                self.reactor, sock, self.exports, self._connections.pop, self._tls
            )
            self._connections[connection] = None

    def _make_room(self) -> None:
        if len(self._connections) >= MAX_CONNECTIONS:
            choosing = (one for one in self._connections if one.export is None)
            oldest = next(choosing, None)
            if oldest is not None:
                oldest.close()
                del self._connections[oldest]

    def _take_a_breath(self) -> None:
        """Wait for descriptors: the listener would be ready for ever."""
        listener = self._listener
        assert listener is not None
        self.reactor.unwatch(listener.fileno())
        self._resting = self.reactor.call_later(_BREATH_SECONDS, self._watch)

    def _watch(self) -> None:
        self._resting = None
        if self._listener is not None:
            self.reactor.watch(self._listener.fileno(), self._accept)

    def _end(self, which: Callable[[Connection], bool]) -> None:
        """End connections when what they asked for is answered; cut them off after a while."""
        ending = [one for one in self._connections if which(one)]
        for connection in ending:
            connection.stop()
        try:
            self.reactor.run_until(
                lambda: not any(one in self._connections for one in ending),
                CLOSE_SECONDS,
                "what NBD clients have asked for",
            )
        finally:
            for connection in ending:
                connection.close()


class Connection:
    """One client, from its first byte to the end of what it asked for; `over` is called then.

    Attributes:
        export: the name of what it has chosen.
    """

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.socket,
        exports: dict[str, Device],
        over: Callable[[Connection], object],
        tls: ssl.SSLContext | None,
    ) -> None:
        self.export: str | None = None
        self._exports = exports
        self._over = over
        self._wire = Wire(reactor, sock, self._readable, self._closed)
        self._tls = tls
        self._handshake = Handshake(exports, tls=tls is not None)
        self._transmission: Transmission | None = None
        self._deadline = reactor.call_later(HANDSHAKE_SECONDS, self._wire.close)
        self._buffer = memoryview(bytearray(nbd.OPTION.size + 8192))
        self._wire.send(self._handshake.greeting)

    def stop(self) -> None:
        """Take no more requests, and close when those that were taken are answered."""
        if self._transmission is not None:
            self._transmission.stop()
        else:
            self.close()

    def close(self) -> None:
        """Close immediately; what is under way is not answered."""
        self._wire.close()

    def _readable(self) -> None:
        if self._transmission is not None:
            self._transmission.readable()
            return
        got = self._wire.receive(self._buffer)
        if got is None:
            return
        if not got:
            self.close()
            return
        handshake = self._handshake
        answer = handshake.feed(self._buffer[:got])
        if answer:
            # A client that sends options and takes no answers is not read from.
            self._wire.reading = False
            self._wire.send(answer, sent=self._answered)
        if handshake.ended:
            self._wire.end()
        elif handshake.chosen is not None:
            self._begin(handshake.chosen)

    def _answered(self) -> None:
        if self._handshake.starting_tls:
            assert self._tls is not None
            self._handshake.encrypted()
            self._wire.encrypt(self._tls)
        if self._transmission is None and not self._handshake.ended:
            self._wire.reading = True

    def _begin(self, name: str) -> None:
        self._deadline.cancel()
        self._wire.reading = True
        self.export = name
        handshake = self._handshake
        self._transmission = Transmission(
            self._wire,
            self._exports[name],
            self._all_over,
            structured=handshake.structured,
            allocation=handshake.allocation == name,
        )
        self._transmission.start(handshake.rest)

    def _closed(self) -> None:
        self._deadline.cancel()
        if self._transmission is not None:
            self._transmission.lost()
        else:
            self._all_over()

    def _all_over(self) -> None:
        self._transmission = None  # its pages go with it
        with contextlib.suppress(KeyError):
            self._over(self)


FRONT_END = NbdServer
