"""A command that judges a disk: run on it, or on a copy that the command may change."""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from dmcopy.block import tools
from dmcopy.errors import DeviceError, UsageError

SECONDS: Final = 600.0
_HOLE: Final = "{}"
_SHOWN: Final = 2000


@dataclass(frozen=True)
class Verdict:
    """A command's verdict on a disk: its exit code, and the end of what it printed."""

    code: int
    output: str


class Fsck:
    """`command`, split as a shell would, but run without one: `fsck.ext4 -fn disk.img`.

    A word of it that has `{}` gets the path of a copy of the disk, so that the command may repair
    it, replay its journal or mount it. Without one it is run as it is, and should change nothing.
    Raises UsageError for what is no command.
    """

    def __init__(self, command: str, *, timeout: float = SECONDS) -> None:
        try:
            self.words = shlex.split(command)
        except ValueError as error:
            raise UsageError(f"{command!r} is no command: {error}") from None
        if not self.words:
            raise UsageError("--fsck is empty: give a command that ends with 0 for a sound disk")
        self._timeout = timeout

    @property
    def wants_copy(self) -> bool:
        return self.has(_HOLE)

    def judge(self, disk: str) -> Verdict:
        """Run it for a disk. Raises MissingError, DeadlineError, DeviceError."""
        if not self.wants_copy:
            return self._run(self.words)
        with tempfile.TemporaryDirectory(prefix="dmcopy-fsck-") as folder:
            copy = os.path.join(folder, "disk.img")
            done = tools.run(["cp", "--sparse=always", "--", disk, copy], timeout=self._timeout)
            if done.returncode:
                raise DeviceError(disk, f"copy it to {folder}", 0, done.stderr.strip())
            return self.run({_HOLE: copy})

    def has(self, hole: str) -> bool:
        """Whether a word has this, to be replaced by a path."""
        return any(hole in word for word in self.words)

    def run(self, paths: Mapping[str, str]) -> Verdict:
        """Run it with paths in the place of what stands for them."""
        words = self.words
        for hole, path in paths.items():
            words = [word.replace(hole, path) for word in words]
        return self._run(words)

    def _run(self, words: list[str]) -> Verdict:
        done = tools.run(words, timeout=self._timeout)
        return Verdict(done.returncode, (done.stdout + done.stderr)[-_SHOWN:].strip())
