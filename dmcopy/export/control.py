"""The control socket of a running server: a line of JSON there, a line of JSON back.

    {"version": 1, "do": "cut", "seed": 7}
    {"version": 1, "ok": true}            or {"version": 1, "ok": false, "error": "…"}

Only the user that runs the server can open it, and the kernel is asked who is there.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Callable
from typing import Any, Final

from dmcopy.errors import DeadlineError, DmcopyError, UsageError
from dmcopy.export.listening import MAX_PATH, listen_unix
from dmcopy.export.wire import Wire
from dmcopy.io.reactor import Reactor

VERSION: Final = 1
DEADLINE_SECONDS: Final = 10.0
"""For the whole of a question."""
MAX_LINE: Final = 4096
MAX_CONNECTIONS: Final = 8

Answer = Callable[[dict[str, Any]], None]
Verb = Callable[[dict[str, Any], Answer], None]
"""Does what a request asks for, and calls the answer with facts, then or later."""


class Control:
    """Answers at the Unix socket `path`, until `close`. `verbs`: what can be asked for.

    What a verb raises, if it is a DmcopyError, is the answer. Raises as `listen_unix` does.
    """

    def __init__(self, reactor: Reactor, path: str, verbs: dict[str, Verb]) -> None:
        self._reactor = reactor
        self._verbs = verbs
        self._listener = listen_unix(path)
        self._talks: dict[_Talk, None] = {}
        reactor.watch(self._listener.fileno(), self._accept)

    def close(self) -> None:
        """Answer no more; as often as you like."""
        if self._listener.fileno() < 0:
            return
        self._reactor.unwatch(self._listener.fileno())
        self._listener.close()
        for talk in list(self._talks):
            talk.wire.close()

    def _accept(self, events: int) -> None:
        del events
        try:
            sock, _ = self._listener.socket.accept()
        except OSError:  # it is gone again
            return
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        _, uid, _ = struct.unpack("3i", credentials)
        if uid not in (0, os.geteuid()) or len(self._talks) >= MAX_CONNECTIONS:
            sock.close()
            return
        talk = _Talk(self._reactor, sock, self._answer, self._talks.pop)
        self._talks[talk] = None

    def _answer(self, line: bytes, answer: Answer) -> None:
        """Do what a line asks for. Raises UsageError for what makes no sense."""
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            raise UsageError("this is no JSON") from None
        if not isinstance(request, dict) or request.get("version") != VERSION:
            raise UsageError(f"this is no request of version {VERSION}, which this server speaks")
        verb = request.get("do")
        if not isinstance(verb, str) or verb not in self._verbs:
            raise UsageError(f"this server can do {', '.join(self._verbs)}")
        self._verbs[verb](request, answer)


class _Talk:
    """One connection: one question, one answer."""

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.socket,
        ask: Callable[[bytes, Answer], None],
        over: Callable[[_Talk], object],
    ) -> None:
        self._ask = ask
        self._over = over
        self._line = bytearray()
        self._buffer = memoryview(bytearray(MAX_LINE))
        self._timer = reactor.call_later(DEADLINE_SECONDS, self._late)
        self.wire = Wire(reactor, sock, self._readable, self._closed)

    def _readable(self) -> None:
        got = self.wire.receive(self._buffer)
        if got is None:
            return
        self._line += self._buffer[:got]
        line, end, _ = self._line.partition(b"\n")
        if not end:
            if not got or len(self._line) > MAX_LINE:
                self.wire.close()
            return
        self.wire.reading = False
        self._timer.cancel()  # from now on it is ours to say
        try:
            self._ask(bytes(line), self._tell)
        except DmcopyError as error:
            self._say({"ok": False, "error": str(error)})

    def _tell(self, facts: dict[str, Any]) -> None:
        self._say({"ok": True, **facts})

    def _say(self, answer: dict[str, Any]) -> None:
        if self.wire.is_open:
            self.wire.send(json.dumps({"version": VERSION, **answer}).encode() + b"\n")
            self.wire.end()

    def _late(self) -> None:
        self.wire.close()

    def _closed(self) -> None:
        self._timer.cancel()
        self._over(self)


def ask(path: str, request: dict[str, Any], *, timeout: float = 60.0) -> dict[str, Any]:
    """Ask the server at `path`, and wait for its answer, `timeout` seconds at most.

    Raises UsageError where there is no server, DmcopyError with what it says, DeadlineError.
    """
    if len(os.fsencode(path)) > MAX_PATH:
        raise UsageError(f"{path} is too long for a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout)
        try:
            sock.connect(path)
            sock.sendall(json.dumps({"version": VERSION, **request}).encode() + b"\n")
            with sock.makefile("rb") as stream:
                line = stream.readline(MAX_LINE)
        except TimeoutError:
            raise DeadlineError(f"the server at {path} did not answer in {timeout:g} s") from None
        except OSError as error:
            raise UsageError(f"there is no server at {path}: {error.strerror}") from None
    try:
        answer = json.loads(line)
    except ValueError:
        raise DmcopyError(f"the server at {path} ended before it answered") from None
    if not isinstance(answer, dict) or answer.get("version") != VERSION:
        raise DmcopyError(f"the server at {path} is of another version: it says {answer!r:.80}")
    if answer.get("ok") is not True:
        raise DmcopyError(f"{path}: {answer.get('error')}")
    return answer
