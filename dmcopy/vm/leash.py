"""Runs QEMU so that it cannot outlive the process that asked for it.

This file is run as a program, by itself, so it imports nothing of dmcopy:

    leash.py FOLDER PROGRAM ARG…

Its standard input is a pipe that the owner holds open. When the pipe closes, however the owner
ended, the program is killed and FOLDER is removed. Should the leash be killed, the kernel kills the
program. When the program ends by itself, its status is written to standard output. The
program's own output goes to FOLDER/output.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import shutil
import signal
import stat
import struct
import subprocess
import sys
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_SECCOMP: Final = 22
_PR_SET_NO_NEW_PRIVS: Final = 38
_SECCOMP_ERRNO: Final = 0x00050000
_SECCOMP_ALLOW: Final = 0x7FFF0000

# System calls of x86-64, with the place of their argument that is looked at.
_MODES: Final = {
    90: 1,  # chmod
    91: 1,  # fchmod
    268: 2,  # fchmodat
    452: 2,  # fchmodat2
    83: 1,  # mkdir
    258: 2,  # mkdirat
    85: 1,  # creat
    133: 1,  # mknod
    259: 2,  # mknodat
}
_OPENS: Final = {2: 1, 257: 2}  # open, openat: flags, and the mode behind them
_NODES: Final = {133: 1, 259: 2}  # mknod, mknodat
_NEVER: Final = {
    188: errno.EPERM,  # setxattr: capabilities are extended attributes
    189: errno.EPERM,  # lsetxattr
    190: errno.EPERM,  # fsetxattr
    437: errno.ENOSYS,  # openat2, whose mode cannot be looked at: programs fall back to openat
}


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
        _forbid_privileged_files()
        if os.getppid() == us:  # else we lost the race: there is no parent left to send the signal
            output = os.open(f"{folder}/output", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            for fd, source in ((0, os.open(os.devnull, os.O_RDONLY)), (1, output), (2, output)):
                os.dup2(source, fd)
            os.execvp(argv[0], argv)
    finally:
        os._exit(127)


def _forbid_privileged_files() -> None:
    """Refuse to make files that give rights away: setuid, setgid, device nodes, capabilities.

    A guest makes files in a shared folder through QEMU, with the rights of the user that runs it:
    as root, a program that the guest made setuid would be root's on the host. By seccomp(2), on the
    x86-64 that the rig runs on; where the kernel has none of it, QEMU does not start.
    """
    program = b"".join(
        struct.pack("HBBI", code, yes, no, value) for code, yes, no, value in _filter()
    )
    code = ctypes.create_string_buffer(program)
    fprog = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or prctl(_PR_SET_SECCOMP, 2, fprog, 0, 0):
        os.write(2, b"no seccomp filter can be set in this kernel\n")
        os._exit(126)


def _filter() -> list[tuple[int, int, int, int]]:
    """Return a program of classic BPF over struct seccomp_data: (code, if true, if false, value).

    Each rule ends the program with an errno, or leaves it to the next.
    """
    load, jump_eq, jump_set, mask, end = 0x20, 0x15, 0x45, 0x54, 0x06
    number, arch, x86_64 = 0, 4, 0xC000003E
    refuse = (end, 0, 0, _SECCOMP_ERRNO | errno.EPERM)
    rules = [(load, 0, 0, arch), (jump_eq, 1, 0, x86_64), refuse]

    def when(syscall: int, *body: tuple[int, int, int, int]) -> None:
        rules.extend([(load, 0, 0, number), (jump_eq, 0, len(body), syscall), *body])

    def argument(index: int) -> tuple[int, int, int, int]:
        return (load, 0, 0, 16 + 8 * index)

    for syscall, mode in _MODES.items():
        when(syscall, argument(mode), (jump_set, 0, 1, 0o6000), refuse)
    for syscall, flags in _OPENS.items():
        when(
            syscall,
            argument(flags),
            (jump_set, 0, 3, os.O_CREAT | os.O_TMPFILE & ~os.O_DIRECTORY),
            argument(flags + 1),
            (jump_set, 0, 1, 0o6000),
            refuse,
        )
    for syscall, mode in _NODES.items():
        for kind in (stat.S_IFCHR, stat.S_IFBLK):
            when(syscall, argument(mode), (mask, 0, 0, 0o170000), (jump_eq, 0, 1, kind), refuse)
    for syscall, answer in _NEVER.items():
        when(syscall, (end, 0, 0, _SECCOMP_ERRNO | answer))
    return [*rules, (end, 0, 0, _SECCOMP_ALLOW)]


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
