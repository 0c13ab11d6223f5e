"""A process of this machine in the place of a guest."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

from dmcopy import vm
from dmcopy.errors import LostVMError, MissingError
from dmcopy.vm.channel import Channel, ChannelLostError, Command

_AGENT = "import sys; from dmcopy.vm.agent import Agent; Agent(int(sys.argv[1])).serve()"


class FakeGuest:
    """Runs commands here. The word `lost` as a kernel has no guest, `die` one that dies."""

    booted: ClassVar[list[str]] = []
    closed = 0
    boot_seconds = 0.0
    disks: ClassVar[dict[str, str | int]] = {}
    shares: object = ()
    memory = ""
    console_bytes = 0
    python = sys.executable

    def __init__(self, kernel: str, disks: list[vm.Disk], memory: str, share: object) -> None:
        FakeGuest.disks = {disk.serial: disk.size for disk in disks}
        FakeGuest.shares = share
        FakeGuest.memory = memory
        if kernel == "lost":
            raise MissingError("no qemu here: install it")
        FakeGuest.booted.append(kernel)
        time.sleep(FakeGuest.boot_seconds)
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _AGENT, str(theirs.fileno())], pass_fds=[theirs.fileno()]
            )
        self._channel = Channel(ours)
        self._channel.wait_hello(time.monotonic() + 30)

    def start(self, argv: list[str], *, env: dict[str, str], **options: object) -> Command:
        env = {**os.environ, **env, "GUEST_PID": str(self._process.pid)}
        options["cwd"] = str(options["cwd"])
        return self._channel.start(argv, env=env, **options)  # type: ignore[arg-type]

    def poll(self, command: Command, timeout: float) -> int | None:
        try:
            return command.poll(timeout)
        except ChannelLostError as error:
            raise LostVMError(f"lost VM: {error}") from None

    def kill(self, chooser: random.Random | None = None) -> None:
        del chooser
        FakeGuest.closed += 1
        started = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
        self._process.kill()
        for pid in map(int, started.split()):  # in a guest nothing outlives it
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        self._process.wait(30)
        self._channel.close()
