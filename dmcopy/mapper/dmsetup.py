"""Running dmsetup: an argument list, a deadline, and errors with an errno instead of prose."""

from __future__ import annotations

import errno
import logging
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TextIO

from dmcopy.block import tools
from dmcopy.errors import DeadlineError, DeviceError, DmcopyError, MissingError
from dmcopy.ledger import Ledger
from dmcopy.mapper.cookies import cookie
from dmcopy.mapper.kernel_log import KernelLog
from dmcopy.mapper.udev import Udev, choose

_log = logging.getLogger(__name__)

# dmsetup knows two exit codes; which error it was stands in its words, in the C locale.
_TEXTS: Final = {
    "Operation not permitted": errno.EPERM,
    "No such file or directory": errno.ENOENT,
    "Input/output error": errno.EIO,
    "No such device or address": errno.ENXIO,
    "Argument list too long": errno.E2BIG,
    "Cannot allocate memory": errno.ENOMEM,
    "Permission denied": errno.EACCES,
    "Device or resource busy": errno.EBUSY,
    "File exists": errno.EEXIST,
    "No such device": errno.ENODEV,
    "Invalid argument": errno.EINVAL,
    "No space left on device": errno.ENOSPC,
    "Read-only file system": errno.EROFS,
    "Operation not supported": errno.EOPNOTSUPP,
    "Value too large for defined data type": errno.EOVERFLOW,
    "Inappropriate ioctl for device": errno.ENOTTY,
    "No data available": errno.ENODATA,
    "Interrupted system call": errno.EINTR,
    "Resource temporarily unavailable": errno.EAGAIN,
    "Device does not exist": errno.ENXIO,
}
_NO_DRIVER: Final = "Failure to communicate with kernel device-mapper driver"
_GRACE_SECONDS: Final = 2.0
_LOCALE: Final = "C.UTF-8"  # errors in English; without a UTF-8 in it, trees are drawn in ASCII


class DmsetupError(DmcopyError):
    """dmsetup ended with an error: `errno`, 0 if it said none, and what it and the kernel said.

    `printed` is what it printed all the same, on its standard output.
    """

    def __init__(
        self, words: Sequence[str], code: int, said: str, kernel: list[str], printed: str = ""
    ) -> None:
        self.words = tuple(words)
        self.printed = printed
        self.errno = code
        self.said = said
        self.kernel = kernel
        self.reason = _reason(kernel)
        reason = f"; the kernel says: {self.reason}" if kernel else ""
        super().__init__(f"dmsetup {shlex.join(words)}: {said or 'failed without a word'}{reason}")

    def about(self, name: str, action: str) -> DeviceError:
        """Return what a person should read: `action` on the device `name` failed, and why."""
        hint = f"the kernel says: {self.reason}" if self.reason else self.said
        if self.errno == errno.ENXIO:
            hint = "there is no mapped device of that name"
        return DeviceError(name, action, self.errno or errno.EIO, hint)


@dataclass(frozen=True, slots=True)
class DmsetupCall:
    """A finished call of dmsetup."""

    words: tuple[str, ...]
    code: int
    stdout: str
    stderr: str
    seconds: float


class Dmsetup:
    """dmsetup as a function. `timeout` in seconds bounds a call that is given no other.

    `ledger` is where the cookies of its calls are noted; without one, dmsetup makes them itself,
    and leaves one behind when it is killed.
    """

    def __init__(
        self,
        program: str = "dmsetup",
        *,
        udev: Udev | None = None,
        timeout: float = 30.0,
        ledger: Ledger | None = None,
    ) -> None:
        self.program = program
        self.timeout = timeout
        self.ledger = ledger
        self._udev = udev

    @property
    def udev(self) -> Udev:
        """How nodes come about here; looked up a single time, when first asked."""
        if self._udev is None:
            self._udev = choose()
        return self._udev

    def run(self, *words: str, stdin: str | None = None, timeout: float | None = None) -> str:
        """Run dmsetup with `words` and return what it printed; see `finish`."""
        return self.finish(*words, stdin=stdin, timeout=timeout).stdout

    def finish(
        self, *words: str, stdin: str | None = None, timeout: float | None = None
    ) -> DmsetupCall:
        """Run dmsetup with `words` and return all that is known of the call.

        Raises DmsetupError when it fails, MissingError when it or the kernel's driver is not there,
        DeadlineError when it does not end in time, UsageError where SIGCHLD is ignored.
        """
        with KernelLog() as log:
            call = self.call(words, stdin, self.timeout if timeout is None else timeout)
            if call.code:
                raise _failure(call, log)
        return call

    def change(self, *words: str, stdin: str | None = None, timeout: float | None = None) -> str:
        """Run a command that makes, changes or removes a device; see `finish`.

        Where udevd runs, it returns when udev's rules are done, or raises DeadlineError.
        """
        verb, *rest = words
        limit = self.timeout if timeout is None else timeout
        if self.ledger is None or self.udev is not Udev.COOKIES or not _takes_cookie(verb, rest):
            return self.run(verb, *self.udev.options, *rest, stdin=stdin, timeout=limit)
        deadline = time.monotonic() + limit
        with cookie(self.ledger) as made:
            options = [] if made is None else ["--udevcookie", made.option]
            printed = self.run(verb, *options, *rest, stdin=stdin, timeout=limit)
            if made is not None:
                made.wait(max(deadline - time.monotonic(), _GRACE_SECONDS))
        return printed

    def call(self, words: Sequence[str], stdin: str | None, timeout: float) -> DmsetupCall:
        """Run dmsetup to its end, whatever that is; log it."""
        argv = [self.program, *words]
        started = time.monotonic()
        process = self._start(argv)
        try:
            out, err = process.communicate(_bytes(stdin), timeout)
        except subprocess.TimeoutExpired:
            _stop(process)
            _log.debug("%s: no end after %.1f s", argv, timeout)
            raise DeadlineError(_waited(words, timeout)) from None
        except BaseException:
            _stop(process)
            raise
        call = DmsetupCall(
            tuple(words), process.returncode, _text(out), _text(err), time.monotonic() - started
        )
        _log.debug("%s: exit %d, %.3f s, %s", argv, call.code, call.seconds, call.stderr.strip())
        return call

    def _start(self, argv: list[str]) -> subprocess.Popen[bytes]:
        tools.require_exit_codes()
        env = tools.environment(**self.udev.environment, LC_ALL=_LOCALE)
        try:
            # Standard input is always given: dmsetup reads a table from it whenever it has none.
            return subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=env,
            )
        except FileNotFoundError:
            raise MissingError(
                f"{self.program} is not on PATH (apt-get install dmsetup); see 'dmcopy doctor'"
            ) from None


class ScriptDmsetup(Dmsetup):
    """Prints the commands that would change something; runs only the others."""

    def __init__(self, stream: TextIO | None = None, *, udev: Udev | None = None) -> None:
        super().__init__(udev=udev)
        self._stream = stream or sys.stdout

    def change(self, *words: str, stdin: str | None = None, timeout: float | None = None) -> str:
        """Print the command with its standard input as a shell would be given it."""
        del timeout
        command = shlex.join(["dmsetup", words[0], *self.udev.options, *words[1:]])
        assignments = [f"{key}={value} " for key, value in self.udev.environment.items()]
        text = "".join([*assignments, command])
        if stdin is not None:
            text += f" <<'END-OF-TABLE'\n{stdin.rstrip()}\nEND-OF-TABLE"
        print(text, file=self._stream)
        return ""


def _takes_cookie(verb: str, words: Sequence[str]) -> bool:
    """Return whether udev is told of a command, and one cookie is enough for it.

    A forced removal tells udev twice, and the man page warns of one cookie for both.
    """
    return verb in ("create", "resume", "remove", "rename") and "--force" not in words


def _reason(lines: Sequence[str]) -> str:
    """Return the line that says why: the others say that there was an error."""
    tables = [line for line in lines if line.startswith("table:")]
    return next(iter(tables or lines), "")


def _bytes(stdin: str | None) -> bytes:
    return os.fsencode(stdin or "")


def _text(raw: bytes) -> str:
    return os.fsdecode(raw)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a dmsetup; one that the kernel does not let go is left to itself."""
    process.terminate()
    try:
        process.communicate(timeout=_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()


def _waited(words: Sequence[str], timeout: float) -> str:
    return (
        f"dmsetup {shlex.join(words)} did not end within {timeout:g} s: it waits for I/O on a "
        "suspended or failed device, or for udevd"
    )


def _failure(call: DmsetupCall, log: KernelLog) -> DmcopyError:
    if _NO_DRIVER in call.stderr:
        return _no_driver(call.stderr)
    last = [line for line in call.stderr.splitlines() if line and line != "Command failed."]
    said = "; ".join(dict.fromkeys(line.removesuffix(".") for line in last))
    return DmsetupError(call.words, error_code(call.stderr), said, log.lines(), call.stdout)


def _no_driver(stderr: str) -> DmcopyError:
    if "Permission denied" in stderr or "Operation not permitted" in stderr:
        return MissingError("device-mapper needs root: run this with sudo; see 'dmcopy doctor'")
    return MissingError(
        "this kernel has no device-mapper (try 'modprobe dm-mod'); see 'dmcopy doctor'"
    )


def error_code(stderr: str) -> int:
    """Return the errno whose message ends a line of `stderr`; 0 when there is none."""
    for line in stderr.splitlines():
        code = _TEXTS.get(line.rpartition(": ")[2].strip().removesuffix("."), 0)
        if code:
            return code
    return 0
