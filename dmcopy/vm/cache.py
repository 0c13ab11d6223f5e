"""Where the rig keeps kernels, logs and its findings about this machine; and its locks."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from dmcopy.errors import DeadlineError, MissingError
from dmcopy.units import format_bytes

_KEPT_LOGS: Final = 20


def cache_dir() -> Path:
    """Return `$XDG_CACHE_HOME/dmcopy` (`~/.cache/dmcopy`), made if need be.

    Raises MissingError where there is none, and where it is another user's, or others may write to
    it: a kernel, or the answer about KVM, would be whatever they put there.
    """
    path = _cache_home() / "dmcopy"
    try:
        path.mkdir(parents=True, exist_ok=True)
        status = path.stat()
    except OSError as error:
        raise MissingError(
            f"{path}: no cache folder ({error.strerror}): set XDG_CACHE_HOME to a writable folder"
        ) from None
    if status.st_uid != os.geteuid() or status.st_mode & stat.S_IWOTH:
        whose = "open to every user" if status.st_mode & stat.S_IWOTH else "another user's"
        raise MissingError(f"{path} is {whose}: set XDG_CACHE_HOME to a folder of your own")
    return path


def _cache_home() -> Path:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # neither HOME nor an entry in the list of users
        raise MissingError(
            "no home folder to keep kernels in: set XDG_CACHE_HOME to a writable folder"
        ) from None


def require_space(folder: Path, size_bytes: int, what: str) -> None:
    """Raise MissingError unless `folder`'s file system has `size_bytes` free for `what`."""
    free = shutil.disk_usage(folder).free
    if free < size_bytes:
        raise MissingError(
            f"{folder} has {format_bytes(free)} free and {what} needs {format_bytes(size_bytes)}: "
            "make room or set XDG_CACHE_HOME to another file system"
        )


@contextlib.contextmanager
def locked(path: Path, what: str, timeout: float) -> Iterator[None]:
    """Hold the lock file `path` while the body runs; it is gone afterwards.

    Waits up to `timeout` seconds for another process that does `what`, then raises DeadlineError.
    A process that is killed leaves an unlocked file, which the next one takes over.
    """
    deadline = time.monotonic() + timeout
    while (fd := _try_lock(path)) is None:
        if time.monotonic() > deadline:
            raise DeadlineError(
                f"another dmcopy has been {what} for {timeout:.0f} s and holds {path}: end it first"
            )
        time.sleep(0.2)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(fd)


def _try_lock(path: Path) -> int | None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The last holder removes the file before it lets go: a lock on a file without a name would
        # exclude no other process.
        if os.stat(path).st_ino == os.fstat(fd).st_ino:
            return fd
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(fd)
    return None


def keep_log(console: Path, name: str) -> Path:
    """Copy a lost guest's console log to where it outlives the guest, and return the copy.

    The newest 20 are kept.
    """
    folder = cache_dir() / "logs"
    folder.mkdir(exist_ok=True)
    kept = folder / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    shutil.copyfile(console, kept)
    logs = sorted(folder.glob("*.log"), key=lambda path: path.stat().st_mtime)
    for old in logs[:-_KEPT_LOGS]:
        old.unlink(missing_ok=True)
    return kept
