"""The control socket of a running server: a line of JSON there, a line of JSON back.

What is said is in `dmcopy.asking`. Only the user that runs the server can open it, and the kernel
is asked which user a peer is.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from dmcopy.asking import VERSION, facts_of
from dmcopy.errors import DmcopyError, UsageError
from dmcopy.export.listening import listen_unix
from dmcopy.export.wire import Wire
from dmcopy.io.reactor import Reactor

DEADLINE_SECONDS: Final = 10.0
"""For the whole of a question."""
MAX_LINE: Final = 4096
MAX_CONNECTIONS: Final = 8

Facts = dict[str, Any] | DmcopyError


class Reply(Protocol):
    """Answers a request, and closes the connection; if `held` is given, when the peer closes it."""

    def __call__(self, facts: Facts, held: Callable[[], object] | None = None, /) -> None:
        """Send facts, or an error. `held` is called when the peer is gone."""


Verb = Callable[[dict[str, Any], Reply], Callable[[], object] | None]
"""Does what a request asks for, and calls the answer with facts or an error, then or later.

What it returns is called if the peer is gone before that.
"""


class Control:
    """Answers at the Unix socket `path`, until `close`. `verbs`: what can be asked for.

    What a verb raises, if it is a DmcopyError, is the answer. A question has `max_line` bytes at
    most. Peers beyond `max_connections` at a time are told that there are too many. Raises as
    `listen_unix` does, with `otherwise`.
    """

    def __init__(
        self,
        reactor: Reactor,
        path: str,
        verbs: Mapping[str, Verb],
        *,
        max_line: int = MAX_LINE,
        max_connections: int = MAX_CONNECTIONS,
        otherwise: str = "say another path",
    ) -> None:
        self._reactor = reactor
        self._verbs = verbs
        self._max_line = max_line
        self._max_connections = max_connections
        self._listener = listen_unix(path, otherwise)
        self._talks: dict[_Talk, None] = {}
        reactor.watch(self._listener.fileno(), self._accept)

    @property
    def talks(self) -> int:
        """How many questions are not answered yet."""
        return len(self._talks)

    def retire(self) -> None:
        """Accept no more peers; those that are connected are still answered."""
        if self._listener.fileno() < 0:
            return
        self._listener.remove()
        while self._accept():
            pass
        self._reactor.unwatch(self._listener.fileno())
        self._listener.close()

    def close(self) -> None:
        """Answer no more. May be called again."""
        if self._listener.fileno() >= 0:
            self._reactor.unwatch(self._listener.fileno())
            self._listener.close()
        for talk in list(self._talks):
            talk.wire.close()

    def _accept(self, events: int = 0) -> bool:
        """Take one peer; return whether there was one."""
        del events
        try:
            sock, _ = self._listener.socket.accept()
        except OSError:  # it is gone again
            return False
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        _, uid, _ = struct.unpack("3i", credentials)
        refusal: DmcopyError | None = None
        if uid not in (0, os.geteuid()):
            refusal = UsageError(f"this server is of user {os.geteuid()}, and you are user {uid}")
        elif len(self._talks) >= self._max_connections:
            refusal = DmcopyError("the server has too much to answer just now: try again")
        if refusal is not None:
            with contextlib.suppress(OSError):
                sock.setblocking(False)
                sock.send(_line({"ok": False, **facts_of(refusal)}))
            sock.close()
            return True
        talk = _Talk(self._reactor, sock, self._answer, self._talks.pop, self._max_line)
        self._talks[talk] = None
        return True

    def _answer(self, line: bytes, answer: Reply) -> Callable[[], object] | None:
        """Do what a line asks for; see `Verb`. Raises UsageError for what makes no sense."""
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            raise UsageError("this is no JSON") from None
        if not isinstance(request, dict) or request.get("version") != VERSION:
            raise UsageError(
                f"this is no request of version {VERSION}, which the server speaks (process "
                f"{os.getpid()}): use the dmcopy that started it, or end it"
            )
        verb = request.get("do")
        if not isinstance(verb, str) or verb not in self._verbs:
            raise UsageError(f"this server can do {', '.join(self._verbs)}")
        return self._verbs[verb](request, answer)


class _Talk:
    """One connection: one question, one answer."""

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.socket,
        ask: Callable[[bytes, Reply], Callable[[], object] | None],
        over: Callable[[_Talk], object],
        max_line: int,
    ) -> None:
        self._max_line = max_line
        self._ask = ask
        self._over = over
        self._gone: Callable[[], object] | None = None
        self._line = bytearray()
        self._buffer = memoryview(bytearray(MAX_LINE))
        self._timer = reactor.call_later(DEADLINE_SECONDS, self._late)
        self.wire = Wire(reactor, sock, self._readable, self._closed)

    def _readable(self) -> None:
        got = self.wire.receive(self._buffer)
        if got is None:
            return
        self._line += self._buffer[:got]
        if b"\n" not in self._buffer[:got].tobytes():
            if not got or len(self._line) > self._max_line:
                self.wire.close()
            return
        self.wire.reading = False
        self._timer.cancel()  # from now on it is ours to say
        line, self._line = self._line.partition(b"\n")[0], bytearray()
        try:
            gone = self._ask(bytes(line), self._tell)
        except DmcopyError as error:
            self._tell(error)
        else:
            self._gone = self._gone or gone

    def _tell(self, facts: Facts, held: Callable[[], object] | None = None) -> None:
        self._gone = held
        if self.wire.is_open:
            failed = isinstance(facts, DmcopyError)
            answer = facts_of(facts) if isinstance(facts, DmcopyError) else facts
            self.wire.send(_line({"ok": not failed, **answer}))
            if held is None:
                self.wire.end()

    def _late(self) -> None:
        self.wire.close()

    def _closed(self) -> None:
        self._timer.cancel()
        if self._gone is not None:
            self._gone()
        self._over(self)


def _line(answer: dict[str, Any]) -> bytes:
    return json.dumps({"version": VERSION, **answer}).encode() + b"\n"
