"""The agent's protocol, both ends, with a process of this machine as the guest."""

from __future__ import annotations

import os
import re
import signal
import socket
import struct
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmcopy.errors import DeadlineError
from dmcopy.vm import channel as host
from dmcopy.vm.agent import FRAME_BYTES, Decoder, FrameKind, pack
from dmcopy.vm.channel import Channel, ChannelLostError, Command, CommandResult

from .conftest import LocalAgent


def start(agent: LocalAgent, *argv: str, **options: object) -> Command:
    env = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
    return agent.channel.start(argv, cwd="/", env=env, **options)  # type: ignore[arg-type]


def run(agent: LocalAgent, *argv: str, timeout: float = 30, **options: object) -> CommandResult:
    return start(agent, *argv, **options).wait(timeout)


@given(
    st.lists(st.tuples(st.sampled_from(FrameKind), st.integers(0, 2**32 - 1), st.binary())),
    st.lists(st.integers(1, 9), min_size=1),
)
def test_frames_survive_any_cut(
    frames: list[tuple[FrameKind, int, bytes]], sizes: Sequence[int]
) -> None:
    stream = b"".join(pack(*frame) for frame in frames)
    decoder = Decoder()
    seen = []
    turn = 0
    while stream:
        size = sizes[turn % len(sizes)]
        seen += decoder.feed(stream[:size])
        stream, turn = stream[size:], turn + 1
    assert seen == frames


def test_output_and_status(agent: LocalAgent) -> None:
    done = run(agent, "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (done.status, done.stdout, done.stderr) == (3, b"out\n", b"err\n")
    assert done.text == "out\n"
    assert agent.channel.release == os.uname().release


@pytest.mark.parametrize(
    ("argv", "status", "said"),
    [
        (("no-such-command",), 127, b"dmcopy: no-such-command: command not found\n"),
        (("/etc/passwd",), 126, b"dmcopy: /etc/passwd: Permission denied\n"),
        (("/etc",), 126, b"dmcopy: /etc: Permission denied\n"),
        (("sh", "-c", "kill -TERM $$"), 128 + 15, b""),
    ],
)
def test_what_a_shell_would_see(
    agent: LocalAgent, argv: tuple[str, ...], status: int, said: bytes
) -> None:
    done = run(agent, *argv)
    assert (done.status, done.stderr) == (status, said)


def test_a_folder_that_is_not_there(agent: LocalAgent) -> None:
    done = agent.channel.start(["true"], cwd="/no/such", env=dict(os.environ)).wait(30)
    assert done.status == 126
    assert b"no folder /no/such in the guest" in done.stderr


def test_binary_output_of_many_megabytes_to_a_sink(agent: LocalAgent) -> None:
    pieces: list[bytes] = []
    done = run(agent, "head", "-c", "30M", "/dev/urandom", stdout=pieces.append)
    assert sum(map(len, pieces)) == 30 << 20
    assert done.stdout == b""


def test_input_larger_than_the_window(agent: LocalAgent) -> None:
    data = os.urandom(3 << 20)
    assert run(agent, "cat", stdin=data).stdout == data


def test_input_from_a_file(agent: LocalAgent, tmp_path: Path) -> None:
    path = tmp_path / "input"
    path.write_bytes(b"line\n" * 100_000)
    with path.open("rb") as file:
        assert run(agent, "wc", "-l", stdin=file).stdout == b"100000\n"


def test_input_that_nobody_reads(agent: LocalAgent) -> None:
    assert run(agent, "true", stdin=bytes(5 << 20)).status == 0


def test_no_input_is_the_end_of_it(agent: LocalAgent) -> None:
    assert run(agent, "cat").stdout == b""


def test_a_child_that_keeps_the_output_open_is_not_waited_for(agent: LocalAgent) -> None:
    began = time.monotonic()
    assert run(agent, "sh", "-c", "echo x; sleep 25 & exit 0").stdout == b"x\n"
    assert time.monotonic() - began < 20


def test_a_command_that_takes_too_long_is_killed(agent: LocalAgent) -> None:
    with pytest.raises(DeadlineError, match="sleep: not done within 0 s in the guest"):
        run(agent, "sleep", "100", timeout=0.3)
    assert run(agent, "echo", "next").stdout == b"next\n"


def test_two_commands_at_once(agent: LocalAgent) -> None:
    slow = start(agent, "sh", "-c", "read line; echo got $line", stdin=b"word\n")
    assert run(agent, "echo", "quick").stdout == b"quick\n"
    assert slow.wait(30).stdout == b"got word\n"


def test_signals_reach_the_whole_command(agent: LocalAgent) -> None:
    command = start(agent, "sh", "-c", "sleep 100 & echo ready; wait")
    command.signal(signal.SIGTERM)
    assert command.wait(30).status == 128 + signal.SIGTERM


def test_a_terminal(agent: LocalAgent) -> None:
    done = run(agent, "sh", "-c", "test -t 0 && test -t 1 && echo yes", tty=True)
    assert done.stdout == b"yes\r\n"


def test_poll_returns_the_status_once_there_is_one(agent: LocalAgent) -> None:
    command = start(agent, "sh", "-c", "sleep 0.2; exit 9")
    deadline = time.monotonic() + 30
    while (status := command.poll(0.1)) is None:
        assert time.monotonic() < deadline
    assert status == command.poll(0.1) == 9


def test_a_guest_that_goes_away(agent: LocalAgent) -> None:
    command = start(agent, "sleep", "100")
    agent.process.kill()
    with pytest.raises(ChannelLostError, match="the guest hung up"):
        command.wait(30)


def test_a_guest_that_no_longer_answers(agent: LocalAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmcopy.vm.channel._GRACE", 0.3)
    command = start(agent, "sleep", "100")
    agent.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(ChannelLostError, match="no answer"):
            command.wait(0.3)
    finally:
        agent.process.send_signal(signal.SIGCONT)


class HostileGuest:
    """The guest's end of a channel, which says whatever it likes."""

    def __init__(self) -> None:
        ours, self.socket = socket.socketpair()
        self.channel = Channel(ours)
        self.command = self.channel.start(["x"], cwd="/", env={}, stdin=bytes(1 << 20))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        self.channel.close()


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        (struct.pack("!BII", 99, 1, 0), "99"),
        (struct.pack("!BII", FrameKind.OUT, 1, FRAME_BYTES + 1), "a frame of 16777217 bytes"),
        (struct.pack("!BII", FrameKind.OUT, 1, 0xFFFFFFFF), "a frame of 4294967295 bytes"),
        (pack(FrameKind.RUN, 1, b"{}"), "a frame RUN, which is the host's to send"),
        (pack(FrameKind.BYE, 1), "a frame BYE, which is the host's to send"),
        (pack(FrameKind.HELLO, 0, b"{x}"), "a HELLO without the kernel's release"),
        (pack(FrameKind.HELLO, 0, b"\xff"), "a HELLO without the kernel's release"),
        (pack(FrameKind.HELLO, 0, b"[" * 100_000), "a HELLO without the kernel's release"),
        (pack(FrameKind.HELLO, 0, b"[]"), "a HELLO without the kernel's release"),
        (pack(FrameKind.HELLO, 0, b"{}"), "a HELLO without the kernel's release"),
        (
            pack(FrameKind.HELLO, 0, b'{"release": "\\u001b[2J"}'),
            "a HELLO without the kernel's release",
        ),
        (pack(FrameKind.EXIT, 1), "an EXIT without a status"),
        (pack(FrameKind.EXIT, 1, b"12"), "an EXIT without a status"),
        (pack(FrameKind.TAKEN, 1, b"\xff" * 4), "a TAKEN of more input than it was given"),
        (pack(FrameKind.TAKEN, 1, b"\xff" * 4000), "a TAKEN of more input than it was given"),
    ],
)
def test_a_guest_that_sends_what_no_agent_sends_is_lost(said: bytes, complaint: str) -> None:
    with HostileGuest() as guest:
        guest.socket.sendall(said)
        with pytest.raises(ChannelLostError, match=f"the guest sent .*{re.escape(complaint)}"):
            guest.command.wait(30)


def test_frames_about_commands_that_are_not_there_are_passed_over() -> None:
    with HostileGuest() as guest:
        for kind in (FrameKind.OUT, FrameKind.ERR, FrameKind.TAKEN, FrameKind.EXIT):
            guest.socket.sendall(pack(kind, 77, b"anything"))
        guest.socket.sendall(pack(FrameKind.EXIT, 1, b"\x05"))
        assert guest.command.wait(30).status == 5


def test_a_guest_that_never_stops_talking_is_given_up_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dmcopy.vm.channel._GRACE", 0.1)
    with HostileGuest() as guest:
        noise = pack(FrameKind.OUT, 77, bytes(1000))

        def talk() -> None:
            try:
                while True:
                    guest.socket.sendall(noise)
            except OSError:
                pass

        thread = threading.Thread(target=talk)
        thread.start()
        with pytest.raises(ChannelLostError, match="no answer"):
            guest.command.wait(0.1)
        guest.channel.close()
        thread.join(30)
        assert not thread.is_alive()


def test_output_that_nothing_takes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "KEPT_BYTES", 1000)
    with HostileGuest() as guest:
        guest.socket.sendall(
            pack(FrameKind.OUT, 1, bytes(1000)) + pack(FrameKind.ERR, 1, bytes(1000))
        )
        guest.socket.sendall(pack(FrameKind.OUT, 1, b"x"))
        with pytest.raises(ChannelLostError, match="x wrote more than 0 MiB, which nothing takes"):
            guest.command.wait(30)
