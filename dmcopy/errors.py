"""The error tree. Each error is one sentence: what happened to what, and what to do about it.

DmcopyError                 exit 1  anything that dmcopy raises on purpose
├── UsageError              exit 2  you asked for something that cannot be
├── DeviceError             exit 1  a device or file refused an operation (has path, errno)
├── PartialError            exit 3  some destination or region failed; the rest is good
├── MismatchError           exit 4  what was read back is not what was written
│   └── MetadataError       exit 4  on-disk metadata contradicts itself
├── MissingError            exit 5  this machine lacks something (named)
├── BusyError               exit 6  something else uses the device (has holders)
├── DeadlineError           exit 1  a wait outlasted its deadline (says what it waited for)
├── ClosedError             exit 1  you used an object after closing it
└── LostVMError             exit 1  a guest died, hung or was killed (has the console log)
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
from collections.abc import Iterator, Sequence


class ExitCode(enum.IntEnum):
    """The exit codes of every dmcopy command."""

    OK = 0
    FAILED = 1
    USAGE = 2
    PARTIAL = 3
    MISMATCH = 4
    MISSING = 5
    BUSY = 6
    INTERRUPTED = 130


class DmcopyError(Exception):
    """Anything that dmcopy raises on purpose; `exit_code` is what the command line ends with."""

    exit_code = ExitCode.FAILED


class UsageError(DmcopyError):
    """The caller asked for something that cannot be: a range past the end, nine destinations."""

    exit_code = ExitCode.USAGE


class DeviceError(DmcopyError):
    """A device or file refused an operation. `path` names it; `errno` is the kernel's.

    Where that is a limit of the system, the exit code is MISSING.
    """

    def __init__(self, path: str, action: str, errno: int, hint: str = "") -> None:
        self.path = path
        self.errno = errno
        if errno in _LACKING:
            self.exit_code = ExitCode.MISSING
        text = f"{path}: cannot {action}: {os.strerror(errno)}"
        super().__init__(f"{text}; {hint}" if hint else text)


_LACKING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def is_passing(error: OSError) -> bool:
    """Whether a limit of the system was met: asked again later, the same may be answered."""
    return error.errno in _LACKING


def raise_passing(error: OSError) -> None:
    """Raise MissingError where a limit of the system was met; return for what is an answer.

    For those that take an error for "there is none": what could not be asked is no such answer.
    """
    if is_passing(error) and (limit := of_limit(error)):
        raise limit from error


class PartialError(DmcopyError):
    """Some destination or region failed; what did not fail is good."""

    exit_code = ExitCode.PARTIAL


class MismatchError(DmcopyError):
    """What was read back differs from what was written."""

    exit_code = ExitCode.MISMATCH


class MetadataError(MismatchError):
    """On-disk metadata contradicts itself or is of no known format."""


class MissingError(DmcopyError):
    """This machine lacks something that the operation needs; the message names it."""

    exit_code = ExitCode.MISSING


_FILES = "too many files are open, and no more may be: raise the limit (ulimit -n)"
_THREADS = "no more processes and threads may be started: raise the limit (ulimit -u, or -v)"
_MEMORY = "there is no memory left for this: free some, or raise the limit (ulimit -v)"
_LIMITS = {
    errno.EMFILE: _FILES,
    errno.ENFILE: _FILES,
    errno.EAGAIN: _THREADS,
    errno.ENOMEM: _MEMORY,
}


def of_limit(error: BaseException) -> MissingError | None:
    """Return what to tell of an error where a limit of the system was met; None for another kind.

    Any line may meet one, such as the import of a module, or the start of a thread.
    """
    text = None
    if isinstance(error, OSError):
        text = _LIMITS.get(error.errno or 0)
    elif isinstance(error, MemoryError):
        text = _MEMORY
    elif isinstance(error, ImportError):  # of a shared object, see dlopen(3)
        text = _MEMORY if os.strerror(errno.ENOMEM) in str(error) else None
    elif isinstance(error, RuntimeError):
        text = _THREADS if "can't start new thread" in str(error) else None
        if "can't allocate" in str(error):  # a lock, in threading and io (CPython 3.11)
            text = _MEMORY
    if text is None:
        return None
    found = MissingError(text)
    for note in getattr(error, "__notes__", ()):
        found.add_note(note)
    return found


@contextlib.contextmanager
def limits_told() -> Iterator[None]:
    """Have what meets a limit of the system raise the MissingError of `of_limit`."""
    try:
        yield
    except (OSError, MemoryError, RuntimeError, ImportError) as error:
        if limit := of_limit(error):
            raise limit from error
        raise


class BusyError(DmcopyError):
    """Something else uses the device. `holders` names it, one phrase each."""

    exit_code = ExitCode.BUSY

    def __init__(self, path: str, holders: Sequence[str], hint: str = "") -> None:
        self.path = path
        self.holders = tuple(holders)
        by = ", ".join(holders) if holders else "something that cannot be named"
        text = f"{path} is in use by {by}"
        super().__init__(f"{text}; {hint}" if hint else text)


class DeadlineError(DmcopyError):
    """A wait outlasted its deadline; the message says what it waited for."""


class ClosedError(DmcopyError):
    """An object was used after it was closed: a mistake of the caller's."""


class LostVMError(DmcopyError):
    """A guest panicked, hung or was killed. `log` is the path of its whole console log."""

    def __init__(self, message: str, log: str = "") -> None:
        self.log = log
        super().__init__(message)
