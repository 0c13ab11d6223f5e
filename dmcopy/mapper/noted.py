"""Mounts and servers that are noted in the ledger for as long as they are there."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dmcopy.block import tools
from dmcopy.errors import DeviceError
from dmcopy.ledger import Ledger, identity

_SECONDS = 60.0


@contextlib.contextmanager
def mount(
    ledger: Ledger, device: str | os.PathLike[str], point: str | os.PathLike[str], *options: str
) -> Iterator[Path]:
    """Mount `device` on the directory `point`; `options` are mount's, such as "-o", "ro"."""
    source, target = str(Path(device)), str(Path(point).resolve())
    entry = ledger.add("mount", target, uuid=source)
    try:
        run_tool("mount", *options, "--", source, target)
    except BaseException:
        ledger.cancel(entry)
        raise
    try:
        yield Path(target)
    finally:
        run_tool("umount", "--", target)
        ledger.cancel(entry)


@contextlib.contextmanager
def server(ledger: Ledger, words: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """Run a program that serves a device; at the end it is asked to stop, and then made to.

    A kill -9 between its start and its entry leaves it running: make such a program end by itself
    when its parent does.
    """
    process = subprocess.Popen(list(words), **options)
    entry = ledger.add("server", os.path.basename(words[0]), uuid=identity(process.pid))
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        ledger.cancel(entry)


def run_tool(*words: str) -> None:
    """Run mount or umount. Raises DeviceError with what it said, and what `tools.run` does."""
    done = tools.run(words, timeout=_SECONDS)
    if done.returncode:
        raise DeviceError(words[-1], words[0], errno.EIO, done.stderr.strip())
