"""Runs QEMU so that it cannot outlive whoever asked for it.

This file is run as a program, by itself, so it imports nothing of dmcopy:

    leash.py FOLDER PROGRAM ARG…

Its standard input is a pipe that the owner holds open. When the pipe closes, however the owner
ended, the program is killed and FOLDER is removed. Should the leash be killed, the kernel kills the
program. When the program ends by itself, its status is written to standard output. The
program's own output goes to FOLDER/output.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


class Leashed:
    """The owner's side: a program that ends, and whose folder goes, at the latest when we do."""

    def __init__(self, folder: Path, argv: list[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(folder), *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C is the owner's to handle
        )

    def wait(self, timeout: float) -> int | None:
        """Wait until the program has ended; return its status, or None after `timeout` seconds."""
        assert self._process.stdout is not None
        if not _ready([self._process.stdout.fileno()], timeout):
            return None
        return int(self._process.stdout.readline() or -signal.SIGKILL)

    def close(self) -> None:
        """End the program, if it has not ended, as a power cut would; its folder goes too."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:  # stopped, perhaps: the kernel ends the program then
            self._process.kill()
            self._process.wait(30)
        self._process.stdout.close()


def _ready(fds: list[int], timeout: float | None = None) -> list[int]:
    """Which descriptors can be read or have hung up; waits for one, `timeout` seconds at most."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return [fd for fd, _ in poll.poll(None if timeout is None else 1000 * timeout)]


def _start(folder: str, argv: list[str]) -> int:
    us = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() == us:  # else we lost the race: nobody is left to send the signal
            output = os.open(f"{folder}/output", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            for fd, source in ((0, os.open(os.devnull, os.O_RDONLY)), (1, output), (2, output)):
                os.dup2(source, fd)
            os.execvp(argv[0], argv)
    finally:
        os._exit(127)


def main(folder: str, argv: list[str]) -> int:
    """Run `argv` until it ends or our standard input does."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    pid = _start(folder, argv)
    pidfd = os.pidfd_open(pid)
    ended = pidfd in _ready([0, pidfd])
    if not ended:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if ended:
        try:
            os.write(1, b"%d\n" % os.waitstatus_to_exitcode(status))
        except BrokenPipeError:
            pass
        _ready([0])  # the owner reads the logs, then lets go
    shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
