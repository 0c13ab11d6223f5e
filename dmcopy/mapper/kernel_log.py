"""What the kernel logs about device-mapper while a command runs: the reason behind an EINVAL."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Self

_RECORD = re.compile(r"device-mapper: (?P<text>.*)")


class KernelLog:
    """The lines that device-mapper logs from now on. Says nothing where the log may not be read."""

    def __init__(self, path: Path = Path("/dev/kmsg")) -> None:
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._fd, 0, os.SEEK_END)
        except OSError:
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def lines(self) -> list[str]:
        """Return what device-mapper logged since the last call."""
        found = (_RECORD.search(record) for record in self.records())
        return [match["text"].strip() for match in found if match]

    def records(self) -> list[str]:
        """Return all that was logged since the last call, each with its numbers before a `;`."""
        records = []
        while self._fd >= 0:
            try:
                record = os.read(self._fd, 8192)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno == errno.EPIPE:  # some were overwritten before we came: the next
                    continue
                break
            if not record:
                break
            records.append(record.decode(errors="replace").split("\n")[0])
        return records
