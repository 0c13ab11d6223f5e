"""The guest's side of a command channel: runs the host's commands, and reports how they end.

This file is copied into the guest and run there by itself, so it imports nothing of dmcopy; the
host imports its frames from here. A frame is a type, a command's number, a length and a payload:

    host to guest   RUN (JSON: argv, cwd, env, tty), STDIN (empty: the end), SIGNAL, RESIZE, BYE
    guest to host   HELLO (JSON), OUT, ERR, TAKEN (bytes of stdin passed on), EXIT (the status)

Several commands can run side by side. A status is what a shell would see: 128 + N after signal N,
127 for a command that is not there, 126 for one that cannot be run.
"""

from __future__ import annotations

import contextlib
import enum
import fcntl
import json
import os
import select
import signal
import struct
import sys
import warnings  # noqa: F401 - os.execvpe would import it, for every command in its new process
from typing import Any, Final

PORT: Final = "dmcopy.agent"
STDIN_WINDOW: Final = 256 << 10
_HEADER: Final = struct.Struct("!BII")
_PIECE: Final = 64 << 10
FRAME_BYTES: Final = 16 << 20
"""The longest payload of a frame: what is longer was not packed by us."""


class FrameKind(enum.IntEnum):
    """What a frame says."""

    RUN = 1
    STDIN = 2
    SIGNAL = 3
    RESIZE = 4
    BYE = 5
    HELLO = 16
    OUT = 17
    ERR = 18
    TAKEN = 19
    EXIT = 20


def pack(kind: FrameKind, number: int, payload: bytes = b"") -> bytes:
    return _HEADER.pack(kind, number, len(payload)) + payload


class Decoder:
    """Cuts a stream of bytes into frames, however it arrives. It keeps no more than one frame."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[FrameKind, int, bytes]]:
        """Return the frames that `data` completes. Raises ValueError for what is no frame."""
        self._buffer += data
        frames = []
        at = 0
        while len(self._buffer) - at >= _HEADER.size:
            kind, number, length = _HEADER.unpack_from(self._buffer, at)
            if length > FRAME_BYTES:
                raise ValueError(f"a frame of {length} bytes")
            end = at + _HEADER.size + length
            if len(self._buffer) < end:
                break
            frames.append((FrameKind(kind), number, bytes(self._buffer[at + _HEADER.size : end])))
            at = end
        del self._buffer[:at]
        return frames


class _Command:
    """One process, the descriptors between it and the agent, and input it has not taken yet."""

    def __init__(self, number: int, request: dict[str, Any]) -> None:
        self.number = number
        self.pending = bytearray()
        self.ending = False
        child: tuple[int, int, int]
        if request.get("tty"):
            ours, theirs = os.openpty()
            child = (theirs, theirs, theirs)
            self.stdin, self.outputs = os.dup(ours), {ours: FrameKind.OUT}
        else:
            their_in, self.stdin = os.pipe()
            out, their_out = os.pipe()
            err, their_err = os.pipe()
            child = (their_in, their_out, their_err)
            self.outputs = {out: FrameKind.OUT, err: FrameKind.ERR}
        self.pid = os.fork()
        if self.pid == 0:
            _become(request, child)
        for fd in set(child):
            os.close(fd)
        for fd in (self.stdin, *self.outputs):
            os.set_blocking(fd, False)
        self.pidfd = os.pidfd_open(self.pid)

    def write_pending(self) -> int:
        """Pass input on; return how many bytes went. A command that reads no more loses them."""
        taken = 0
        try:
            while self.pending:
                count = os.write(self.stdin, self.pending[:_PIECE])
                del self.pending[:count]
                taken += count
        except BlockingIOError:
            return taken
        except OSError:
            taken += len(self.pending)
            self.pending.clear()
            self.ending = True
        if self.ending and self.stdin >= 0:
            os.close(self.stdin)
            self.stdin = -1
        return taken

    def signal(self, number: int) -> None:
        """Send a signal to the process and those that it started."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:  # it has not come as far as having a group of its own
            os.kill(self.pid, number)

    def close(self) -> int:
        """Reap the process; return its status."""
        _, status = os.waitpid(self.pid, 0)
        for fd in (self.stdin, self.pidfd, *self.outputs):
            if fd >= 0:
                os.close(fd)
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code


def _become(request: dict[str, Any], child: tuple[int, int, int]) -> None:
    """In the new process: turn into the command, or end with 126 or 127 and a line that says so."""
    argv = request["argv"]
    status, reason = 126, ""
    try:
        os.setsid()
        for want, fd in enumerate(child):
            os.dup2(fd, want)
        if request.get("tty"):
            fcntl.ioctl(0, 0x540E, 0)  # TIOCSCTTY: the pseudo-terminal is this session's own
        for number in (signal.SIGPIPE, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.chdir(request["cwd"])
        os.execvpe(argv[0], argv, request["env"])
    except FileNotFoundError:
        status, reason = 127, "command not found"
        if not os.path.isdir(request["cwd"]):
            status, reason = 126, f"no folder {request['cwd']} in the guest"
    except OSError as error:
        reason = os.strerror(error.errno or 0)
    except Exception as error:  # such as a module that the search of PATH imports
        reason = repr(error)
    finally:
        with contextlib.suppress(OSError):
            os.write(2, f"dmcopy: {argv[0]}: {reason}\n".encode())
        os._exit(status)


class Agent:
    """Serves one host until it says BYE or goes away.

    Over the descriptor `port`; what is said to the host goes to `out` where that is another one.
    """

    def __init__(self, port: int, out: int | None = None) -> None:
        self._port = port
        self._out = port if out is None else out
        for fd in (self._port, self._out):
            os.set_blocking(fd, False)
            os.set_inheritable(fd, False)
        self._decoder = Decoder()
        self._commands: dict[int, _Command] = {}

    def serve(self) -> None:
        """Run the host's commands until the end."""
        self._send(FrameKind.HELLO, 0, json.dumps({"release": os.uname().release}).encode())
        while True:
            poll, owners = self._poll()
            for fd, _ in poll.poll():
                if fd == self._port:
                    if not self._read_port():
                        return
                elif owners[fd].number in self._commands:
                    self._serve(owners[fd], fd)

    def _poll(self) -> tuple[select.poll, dict[int, _Command]]:
        poll = select.poll()
        poll.register(self._port, select.POLLIN)
        owners = {}
        for command in self._commands.values():
            fds = dict.fromkeys((command.pidfd, *command.outputs), select.POLLIN)
            if command.pending:
                fds[command.stdin] = select.POLLOUT
            for fd, events in fds.items():
                poll.register(fd, events)
                owners[fd] = command
        return poll, owners

    def _serve(self, command: _Command, fd: int) -> None:
        if fd == command.pidfd:
            # What it wrote is in the pipes by now; what children of its that live on may write
            # later is not waited for.
            for output in list(command.outputs):
                while self._read_output(command, output):
                    pass
            del self._commands[command.number]
            self._send(FrameKind.EXIT, command.number, bytes([command.close()]))
        elif fd in command.outputs:
            self._read_output(command, fd)
        else:
            self._pass_stdin(command)

    def _read_output(self, command: _Command, fd: int) -> bool:
        try:
            data = os.read(fd, _PIECE)
        except BlockingIOError:
            return False
        except OSError:  # EIO: the last process on a pseudo-terminal has gone
            data = b""
        if data:
            self._send(command.outputs[fd], command.number, data)
        elif fd in command.outputs:
            del command.outputs[fd]
            os.close(fd)
        return bool(data)

    def _pass_stdin(self, command: _Command) -> None:
        taken = command.write_pending()
        if taken:
            self._send(FrameKind.TAKEN, command.number, taken.to_bytes(4, "big"))

    def _read_port(self) -> bool:
        try:
            data = os.read(self._port, _PIECE)
        except BlockingIOError:
            return True
        if not data:
            return False
        return all(self._obey(*frame) for frame in self._decoder.feed(data))

    def _obey(self, kind: FrameKind, number: int, payload: bytes) -> bool:
        if kind == FrameKind.BYE:
            return False
        if kind == FrameKind.RUN:
            self._commands[number] = _Command(number, json.loads(payload))
        command = self._commands.get(number)
        if command is None:
            return True  # it ended while this was on its way
        if kind == FrameKind.STDIN:
            command.pending += payload
            command.ending = command.ending or not payload
            self._pass_stdin(command)
        elif kind == FrameKind.SIGNAL:
            command.signal(payload[0])
        elif kind == FrameKind.RESIZE:
            fcntl.ioctl(next(iter(command.outputs)), 0x5414, payload)  # TIOCSWINSZ
        return True

    def _send(self, kind: FrameKind, number: int, payload: bytes) -> None:
        data = memoryview(pack(kind, number, payload))
        while data:
            try:
                data = data[os.write(self._out, data) :]
            except BlockingIOError:
                poll = select.poll()
                poll.register(self._out, select.POLLOUT)
                poll.poll()


def _find_port() -> str:
    """The device of the port that carries our name; udev need not have linked it yet."""
    ports = "/sys/class/virtio-ports"
    for device in os.listdir(ports):
        with open(f"{ports}/{device}/name") as file:
            if file.read().strip() == PORT:
                return f"/dev/{device}"
    raise SystemExit(f"no virtio port {PORT}")


def main() -> None:
    """Serve the host: on the virtio port, or on standard input and output if told so with `-`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.argv[1:] == ["-"]:
        Agent(os.dup(0), os.dup(1)).serve()
    else:
        Agent(os.open(_find_port(), os.O_RDWR | os.O_CLOEXEC)).serve()


if __name__ == "__main__":
    main()
