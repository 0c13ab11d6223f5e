"""What every provider of guests answers to."""

from __future__ import annotations

import os
import random
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, ClassVar, Final, Self, TypeVar

from dmcopy.errors import ClosedError, LostVMError
from dmcopy.vm.cache import keep_log
from dmcopy.vm.channel import Channel, ChannelLostError, Command, CommandResult, Sink
from dmcopy.vm.disks import Disk, check_disks

BOOT_TIMEOUT: Final = 180.0
RUN_TIMEOUT: Final = 600.0
_TAIL_LINES: Final = 8
_TEXT_BYTES: Final = 1 << 20
_PANIC: Final = re.compile(r"Kernel panic - not syncing: (.*)")
_T = TypeVar("_T")


class Guest(ABC):
    """A booted machine with a kernel of its own. Use it with `with`, or close it.

    Commands run as root, in the folder that the host's process is in, with an environment of the
    guest's own plus `env`. `python` is the interpreter that imports there what this one does here.
    """

    python: ClassVar[str] = sys.executable

    def __init__(self, disks: Iterable[Disk]) -> None:
        self.disks = list(disks)
        check_disks(self.disks)
        self._channel: Channel | None = None

    @property
    def release(self) -> str:
        """The guest's kernel release, as uname -r gives it."""
        return self._alive().release

    @property
    def console_bytes(self) -> int:
        """How much the guest has said on its console, where that is known."""
        return 0

    def start(
        self,
        argv: Sequence[str],
        *,
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: IO[bytes] | bytes | None = None,
        stdout: Sink | None = None,
        stderr: Sink | None = None,
        tty: bool = False,
    ) -> Command:
        """Start a command and return without waiting; `wait` on what this returns. See `run`."""
        return self._alive().start(
            argv,
            cwd=str(self._inside(Path(cwd or Path.cwd()))),
            env=self._environment(env),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            tty=tty,
        )

    def wait(self, command: Command, timeout: float = RUN_TIMEOUT) -> CommandResult:
        """Wait for a started command. Raises DeadlineError, LostVMError."""
        return self._follow(command.wait, timeout)

    def poll(self, command: Command, timeout: float) -> int | None:
        """Move what a started command reads and writes until something happens.

        Returns its status once it has ended; None after `timeout` seconds or less. Raises
        LostVMError.
        """
        return self._follow(command.poll, timeout)

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float = RUN_TIMEOUT,
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: IO[bytes] | bytes | None = None,
        stdout: Sink | None = None,
        stderr: Sink | None = None,
    ) -> CommandResult:
        """Run a command to its end; a status other than 0 is not an error.

        Output goes to the sinks piece by piece, and what has no sink is in the result. After
        `timeout` seconds the command is killed: DeadlineError. A guest that dies or no longer
        answers: LostVMError.
        """
        command = self.start(argv, cwd=cwd, env=env, stdin=stdin, stdout=stdout, stderr=stderr)
        return self.wait(command, timeout)

    @abstractmethod
    def kill(self, chooser: random.Random | None = None) -> None:
        """Cut the power; the guest is closed.

        The disks keep what the guest flushed, and no more; with `chooser` each also keeps all,
        none or some of what was written since, by write or by block: see `VolatileDisk.cut`. A
        disk with a path can then be booted again.
        """

    @abstractmethod
    def close(self) -> None:
        """Shut the guest down and remove what it needed. Disks with a path of their own stay."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, KeyboardInterrupt):
            self.kill()  # after Ctrl-C the user does not want to wait for a shutdown
        else:
            self.close()

    @abstractmethod
    def _inside(self, path: Path) -> Path:
        """Return where a folder is in the guest. Raises UsageError for one that is not there."""

    @abstractmethod
    def _lost(self, why: str) -> LostVMError:
        """Return the error of a guest that died, with the end of its console."""

    def _alive(self) -> Channel:
        if self._channel is None:
            raise ClosedError("the guest is closed: boot another one")
        return self._channel

    def _follow(self, wait: Callable[[float], _T], timeout: float) -> _T:
        self._alive()
        try:
            return wait(timeout)
        except ChannelLostError as error:
            raise self._lost(str(error)) from None

    def _environment(self, extra: Mapping[str, str] | None) -> dict[str, str]:
        binaries = Path(sys.executable).parent
        return {
            "PATH": f"{binaries}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "LC_MESSAGES": "C",  # or a Python looks for translations of each word of a parser
            "TERM": os.environ.get("TERM", "dumb"),
            "DMCOPY_VM": "1",
            "DMCOPY_DISKS": " ".join(disk.serial for disk in self.disks if not disk.twin),
            **(extra or {}),
        }


def end_of(log: Path) -> str:
    """Return the end of what a guest or QEMU said: a guest can write to its console for ever."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TEXT_BYTES))
            return file.read(_TEXT_BYTES).decode(errors="replace").replace("\r\n", "\n")
    except FileNotFoundError:
        return ""


def lost(why: str, log: Path, name: str) -> LostVMError:
    """Return the error of a guest that has gone: with the panic of its console, and its end."""
    said = end_of(log)
    panic = _PANIC.search(said)
    if panic:
        why = f"the kernel panicked: {panic[1]}"
    kept = keep_log(log, name)
    tail = "\n".join(said.rstrip().splitlines()[-_TAIL_LINES:])
    return LostVMError(
        f"lost VM: {why}; whole console log: {kept}; its last lines:\n{tail}", str(kept)
    )
