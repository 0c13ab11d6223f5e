"""Running other programs: an argument list, the C locale, a deadline, and a line in the log."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Final

from dmcopy import runtime
from dmcopy.errors import DeadlineError, MissingError, UsageError

_log = logging.getLogger(__name__)

# Debian leaves these out of a plain user's PATH, and `su` keeps that PATH for root.
_SBIN: Final = ("/usr/local/sbin", "/usr/sbin", "/sbin")

PACKAGES: Final = {
    "blkid": "util-linux",
    "dmsetup": "dmsetup",
    "fusermount3": "fuse3",
    "losetup": "mount",
    "nbd-client": "nbd-client",
    "qemu-system-x86_64": "qemu-system-x86",
    "umount": "mount",
}
"""The Debian package of each program that dmcopy runs."""


def which(program: str) -> str | None:
    """Return where a program is, also when the sbin directories are not in PATH."""
    return shutil.which(program, path=search_path())


def search_path() -> str:
    """Return PATH and the sbin directories, without the working folder.

    execvp(3) takes an empty or relative word of PATH for a place below the working folder, which
    may be any user's.
    """
    words = (*os.environ.get("PATH", os.defpath).split(":"), *_SBIN)
    return ":".join(word for word in words if word.startswith("/"))


def environment(**more: str) -> dict[str, str]:
    """Return the environment for a program that dmcopy runs: `search_path`, the C locale, `more`.

    subprocess looks for the program in the PATH of the environment that it is given.
    """
    return {**os.environ, "PATH": search_path(), "LC_ALL": "C", **more}


def python_environment() -> dict[str, str]:
    """Return the environment in which another Python finds this package, from whatever folder."""
    package = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    paths = [package, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    where = os.pathsep.join(map(os.path.abspath, paths))
    return {**runtime.environment(), "PYTHONPATH": where}


def require_exit_codes() -> None:
    """Raise UsageError where this process ignores SIGCHLD, as it may have from the one before it.

    The kernel keeps no exit codes for it then (wait(2)), and subprocess takes each for 0.
    """
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        raise UsageError(
            "this process ignores SIGCHLD, so that the kernel does not tell it how the programs "
            "end that it starts: call signal.signal(signal.SIGCHLD, signal.SIG_DFL) first"
        )


def run(
    argv: Sequence[str], *, timeout: float, pass_fds: Sequence[int] = (), **more: str
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end and return what it printed, whatever its exit code.

    It gets the descriptors `pass_fds`, and `more` in its environment.

    Raises MissingError when it is not installed, DeadlineError when it outlasts `timeout` seconds,
    UsageError where SIGCHLD is ignored.
    """
    require_exit_codes()
    program = which(argv[0])
    if program is None:
        package = PACKAGES.get(argv[0], argv[0])
        raise MissingError(f"{argv[0]} is not installed (apt-get install {package})")
    started = time.monotonic()
    try:
        done = subprocess.run(
            [program, *argv[1:]],
            env=environment(**more),
            pass_fds=pass_fds,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            # As file names are decoded: what a program says of a name is that name.
            encoding=sys.getfilesystemencoding(),
            errors="surrogateescape",
            check=False,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        raise DeadlineError(f"{' '.join(argv)} did not end within {timeout:g} s") from None
    seconds = time.monotonic() - started
    _log.debug("%s: exit %d, %.3f s, %s", argv, done.returncode, seconds, done.stderr.strip())
    return done
