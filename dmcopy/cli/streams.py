"""The streams of the command line: printing must never change the work.

Neither stream raises. On stdout is what was asked for: once it cannot be written the rest is
dropped, the command runs to its own end, and `finish` then says why, unless the reader has just
gone away. On stderr are messages: no command waits longer than a moment for a reader of one.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import select
import stat
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from dmcopy.cli.shown import Shown, shown
from dmcopy.errors import DeviceError

PATIENCE_SECONDS: Final = 1.0
"""How long a message waits for a reader that has stopped; those after it do not wait at all."""
_CHUNK: Final = select.PIPE_BUF  # a pipe that is writable takes this much whole, or nothing


class Output(io.FileIO):
    """Descriptor 1. `failure` is the errno with which it stopped taking anything, 0 before."""

    failure = 0

    def write(self, data: Any) -> int:
        """Write, or drop what cannot be written."""
        while not self.failure:
            try:
                written: int | None = super().write(data)
            except OSError as error:
                self.failure = error.errno or errno.EIO
                break
            if written is not None:
                return written
            room = select.poll()  # another process has made it non-blocking
            room.register(self, select.POLLOUT)
            room.poll()
        return memoryview(data).nbytes


class Messages(io.RawIOBase):
    """A descriptor for messages, whose `write` neither raises nor waits long."""

    def __init__(self, number: int = 2) -> None:
        self._number = number
        self._fd = _unblocked(number)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLOUT)
        self._patience = PATIENCE_SECONDS
        self._rest = b""  # of a message that has got out in part
        self._failed = False
        self._busy = False

    def fileno(self) -> int:
        """The descriptor itself, for questions about its terminal."""
        return self._number

    def isatty(self) -> bool:
        return os.isatty(self._number)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        """Write a message, or drop it."""
        message = bytes(data)
        if not self._busy:  # else a signal handler interrupts a message
            self._busy = True
            try:
                self._rest = self._send(self._rest)
                if not self._rest:
                    rest = self._send(message)
                    self._rest = rest if len(rest) < len(message) else b""
            finally:
                self._busy = False
        return len(message)

    def _send(self, data: bytes) -> bytes:
        """Send what is taken in time; return the rest."""
        deadline = time.monotonic() + self._patience
        while data and not self._failed:
            left = max(0.0, deadline - time.monotonic())
            if not self._poll.poll(1000 * left):
                self._patience = 0.0
                return data
            try:
                data = data[os.write(self._fd, data[:_CHUNK]) :]
                self._patience = PATIENCE_SECONDS
            except BlockingIOError:
                time.sleep(0.001)  # writable, but not for as much as this
                if left <= 0:
                    self._patience = 0.0
                    return data
            except OSError:
                self._failed = True
        return b"" if self._failed else data


_output: Output | None = None


def open_streams() -> None:
    """Put an `Output` and `Messages` below sys.stdout and sys.stderr; see that all three are open.

    Where a shell's `>&-` has closed one, the next device that is opened would be in its place.
    """
    global _output
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    if isinstance(sys.stdin, io.TextIOWrapper) and sys.stdin.errors != "surrogateescape":
        sys.stdin.reconfigure(errors="surrogateescape")  # as in a file: it has names of files
    before = sys.stdout or io.TextIOWrapper(io.BytesIO())  # None where it was closed
    assert isinstance(before, io.TextIOWrapper)
    _output = Output(1, "w", closefd=False)
    sys.stdout = Shown(
        io.BufferedWriter(_output),
        encoding=before.encoding,
        line_buffering=before.line_buffering or before.write_through,
    )
    sys.stderr = Shown(
        # Without a buffer, which would write a message again that a KeyboardInterrupt cuts short.
        Messages(),
        encoding=(sys.stderr or before).encoding,
        line_buffering=True,
    )


def relay(
    number: int, lost: Callable[[], object] = lambda: None, *, draws: bool = False
) -> Callable[[bytes], None]:
    """Return what writes another program's output to descriptor 1 or 2, and waits for its reader.

    Once it cannot be written it is dropped, and `lost` is called, once. To a terminal it is written
    as `Shown` writes, unless the program is one that `draws` there.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    escapes = os.isatty(number) and not draws
    raw = _output if number == 1 and _output is not None else Output(number, "w", closefd=False)

    def write(data: bytes) -> None:
        if escapes:
            data = shown(decoder.decode(data)).encode()
        before, view = raw.failure, memoryview(data)
        while view:
            view = view[raw.write(view) :]
        if raw.failure and not before:
            lost()

    return write


def is_heard() -> bool:
    """Whether what is printed still has a reader: else a command that only prints may end."""
    return _output is None or not _output.failure


def drop_output() -> None:
    """Drop what has not got out yet, and whatever comes: the process is to end now."""
    if _output is not None:
        _output.failure = _output.failure or errno.EPIPE


def finish(code: int) -> int:
    """See that everything is out; return the code to end with: the work's, if that has failed."""
    sys.stdout.flush()
    if is_heard() or _output is None or _output.failure == errno.EPIPE:
        return code
    error = DeviceError("standard output", "write", _output.failure)
    print(f"dmcopy: {error}", file=sys.stderr)
    return code or error.exit_code


def _unblocked(number: int) -> int:
    """Return a descriptor of our own, that never blocks, for the same pipe or terminal.

    Others have the one that we were given, too, and would not expect it to stop blocking. Where
    there is none, such as for a socket, writing one chunk at a time has to do.
    """
    mode = os.fstat(number).st_mode
    if not (stat.S_ISFIFO(mode) or os.isatty(number)):
        return number
    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        return os.open(f"/proc/self/fd/{number}", flags)
    except OSError:
        return number
