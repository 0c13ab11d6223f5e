"""The host's side of a command channel: starts commands in a guest and follows them.

Nothing runs in the background. A wait for one command moves the traffic of all of them.
"""

from __future__ import annotations

import json
import select
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Final

from dmcopy.errors import ClosedError, DeadlineError
from dmcopy.vm.agent import STDIN_WINDOW, Decoder, FrameKind, pack

_PIECE: Final = 256 << 10
_GRACE: Final = 15.0
_ABOUT_COMMANDS: Final = {FrameKind.OUT, FrameKind.ERR, FrameKind.TAKEN, FrameKind.EXIT}
KEPT_BYTES: Final = 512 << 20
"""The most output of a command that is kept in memory, where no sink takes it."""

Sink = Callable[[bytes], object]


class ChannelLostError(Exception):
    """The guest's end of the channel went away, or no longer answers. The message says which."""


class _ForeignError(ChannelLostError):
    """The guest sent a frame that no agent of ours sends: nothing from it can be trusted."""

    def __init__(self, what: str) -> None:
        super().__init__(f"the guest sent {what}")


@dataclass(frozen=True)
class CommandResult:
    """What became of a command. `status` is what a shell sees: 128 + N after signal N."""

    argv: tuple[str, ...]
    status: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """The standard output as text."""
        return self.stdout.decode(errors="replace")


class Channel:
    """Commands in a guest, over a connected socket whose other end is the agent."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._decoder = Decoder()
        self._outgoing = bytearray()
        self._commands: dict[int, Command] = {}
        self._number = 0
        self.release = ""

    def wait_hello(self, deadline: float) -> str:
        """Wait for the agent's first word and return the guest's kernel release."""
        if not self.move_until(lambda: bool(self.release), deadline):
            raise DeadlineError("the guest's agent said nothing")
        return self.release

    def start(
        self,
        argv: Sequence[str],
        *,
        cwd: str,
        env: Mapping[str, str],
        stdin: IO[bytes] | bytes | None = None,
        stdout: Sink | None = None,
        stderr: Sink | None = None,
        tty: bool = False,
    ) -> Command:
        """Start `argv`, wait for nothing. Output goes to the sinks; without one it is kept."""
        if not argv:
            raise ClosedError("a command has at least one word")
        self._number += 1
        request = {"argv": list(argv), "cwd": cwd, "env": dict(env), "tty": tty}
        command = Command(self, self._number, tuple(argv), stdin, stdout, stderr)
        self._commands[self._number] = command
        self.send(FrameKind.RUN, self._number, json.dumps(request).encode())
        return command

    def send(self, kind: FrameKind, number: int, payload: bytes = b"") -> None:
        """Queue one frame; it leaves during the next wait."""
        self._outgoing += pack(kind, number, payload)
        self._write()

    def move_until(self, done: Callable[[], bool], deadline: float) -> bool:
        """Move traffic until `done()`; False once past `deadline`, however busy the guest is."""
        while not done():
            if time.monotonic() >= deadline:
                return False
            self.move(deadline)
        return True

    def move(self, deadline: float) -> None:
        """Move what can be moved, waiting for something to happen, until `deadline` at most.

        Raises ChannelLostError when the guest has gone, or sends a frame that is not our agent's.
        """
        ours = self._socket.fileno()
        inputs = {
            fd: command
            for command in self._commands.values()
            if (fd := command.wants_input()) is not None
        }
        poll = select.poll()
        for fd in inputs:
            poll.register(fd, select.POLLIN)
        poll.register(ours, select.POLLIN | (select.POLLOUT if self._outgoing else 0))
        ready = poll.poll(1000 * max(0.0, deadline - time.monotonic()))
        for fd, events in ready:
            if fd != ours:
                inputs[fd].forward_input()
                continue
            if events & select.POLLOUT:
                self._write()
            if events & ~select.POLLOUT:
                self._read()

    def close(self) -> None:
        """Let the guest go: it shuts down by itself."""
        self._socket.close()

    def _write(self) -> None:
        try:
            while self._outgoing:
                sent = self._socket.send(self._outgoing[:_PIECE])
                del self._outgoing[:sent]
        except BlockingIOError:
            pass
        except OSError as error:
            raise ChannelLostError(f"the guest hung up ({error.strerror})") from None

    def _read(self) -> None:
        try:
            data = self._socket.recv(_PIECE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            raise ChannelLostError("the guest hung up")
        try:
            frames = self._decoder.feed(data)
        except ValueError as error:
            raise _ForeignError(str(error)) from None
        for kind, number, payload in frames:
            if kind == FrameKind.HELLO:
                self.release = _release(payload)
            elif kind not in _ABOUT_COMMANDS:
                raise _ForeignError(f"a frame {kind.name}, which is the host's to send")
            elif number in self._commands:
                self._commands[number].take(kind, payload)
                if kind == FrameKind.EXIT:
                    del self._commands[number]


def _release(hello: bytes) -> str:
    try:
        release = json.loads(hello)["release"]
    except (ValueError, KeyError, TypeError, RecursionError):
        release = None
    if not isinstance(release, str) or not release.isprintable() or not release:
        raise _ForeignError("a HELLO without the kernel's release")
    return release


class Command:
    """One command in a guest."""

    def __init__(
        self,
        channel: Channel,
        number: int,
        argv: tuple[str, ...],
        stdin: IO[bytes] | bytes | None,
        stdout: Sink | None,
        stderr: Sink | None,
    ) -> None:
        self._channel = channel
        self._number = number
        self._argv = argv
        self._kept = {FrameKind.OUT: bytearray(), FrameKind.ERR: bytearray()}
        self._sinks = {FrameKind.OUT: stdout, FrameKind.ERR: stderr}
        self._file = None if isinstance(stdin, bytes) else stdin
        self._bytes = stdin if isinstance(stdin, bytes) else b""
        self._window = STDIN_WINDOW
        self._ended = False
        self.status: int | None = None

    def wait(self, timeout: float) -> CommandResult:
        """Wait until the command has ended.

        After `timeout` seconds it is killed: DeadlineError. ChannelLostError means that the
        guest has gone, or does not even answer to the kill.
        """
        deadline = time.monotonic() + timeout
        self._feed()
        if not self._channel.move_until(self._has_ended, deadline):
            self._give_up(timeout)
        assert self.status is not None
        return CommandResult(
            self._argv,
            self.status,
            bytes(self._kept[FrameKind.OUT]),
            bytes(self._kept[FrameKind.ERR]),
        )

    def poll(self, timeout: float) -> int | None:
        """Move what there is to move; return the status once there is one."""
        if self.status is None:
            self._feed()
            self._channel.move(time.monotonic() + timeout)
        return self.status

    def signal(self, number: int) -> None:
        """Send a signal to the command and whatever it started."""
        self._channel.send(FrameKind.SIGNAL, self._number, bytes([number]))

    def resize(self, size: bytes) -> None:
        """Tell the command's terminal its size, a packed `struct winsize`."""
        self._channel.send(FrameKind.RESIZE, self._number, size)

    def wants_input(self) -> int | None:
        """The descriptor to read input from when there is room for it, else None."""
        if self._file is None or self._ended or self._window <= 0:
            return None
        return self._file.fileno()

    def forward_input(self) -> None:
        """Pass on what the input has now."""
        assert self._file is not None
        read = getattr(self._file, "read1", self._file.read)
        self._send_input(read(min(self._window, 32 << 10)))

    def take(self, kind: FrameKind, payload: bytes) -> None:
        """Take a frame that the guest sent about this command."""
        if kind == FrameKind.EXIT:
            if len(payload) != 1:
                raise _ForeignError("an EXIT without a status")
            self.status = payload[0]
        elif kind == FrameKind.TAKEN:
            self._window += int.from_bytes(payload, "big")
            if self._window > STDIN_WINDOW:
                raise _ForeignError("a TAKEN of more input than it was given")
            self._feed()
        else:
            self._take_output(kind, payload)

    def _take_output(self, kind: FrameKind, payload: bytes) -> None:
        sink = self._sinks[kind]
        if sink is not None:
            sink(payload)
            return
        kept = self._kept[kind]
        if len(kept) + len(payload) > KEPT_BYTES:
            raise ChannelLostError(
                f"{self._argv[0]} wrote more than {KEPT_BYTES >> 20} MiB, which nothing takes"
            )
        kept += payload

    def _has_ended(self) -> bool:
        return self.status is not None

    def _feed(self) -> None:
        """Pass on input that is in memory, as far as the guest has room; then the end of it."""
        if self._file is not None or self._ended:
            return
        while self._bytes and self._window > 0:
            piece = self._bytes[: self._window]
            self._bytes = self._bytes[len(piece) :]
            self._send_input(piece)
        if not self._bytes:
            self._send_input(b"")

    def _send_input(self, data: bytes) -> None:
        self._window -= len(data)
        self._ended = not data
        self._channel.send(FrameKind.STDIN, self._number, data)

    def _give_up(self, timeout: float) -> None:
        self.signal(signal.SIGKILL)
        if not self._channel.move_until(self._has_ended, time.monotonic() + _GRACE):
            raise ChannelLostError(f"no answer for {_GRACE:.0f} s after {timeout:.0f} s of work")
        raise DeadlineError(f"{self._argv[0]}: not done within {timeout:.0f} s in the guest")
