"""`dmcopy serve` as a process of its own, as users have it."""

from __future__ import annotations

import select
import signal
import subprocess
import sys
import time
from typing import Self

DEADLINE = 60.0


class Serving:
    """A command that serves, until the end of a `with` block; `found` is what it printed."""

    def __init__(self, *words: object, lines: int = 1, noun: str = "serve") -> None:
        argv = [sys.executable, "-m", "dmcopy", *noun.split(), *map(str, words)]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.found = [self.line() for _ in range(lines)]

    def line(self) -> str:
        """The next line of its stdout."""
        assert self.process.stdout is not None
        line = b""
        deadline = time.monotonic() + DEADLINE
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            assert left > 0, "the server says nothing"
            if select.select([self.process.stdout], [], [], left)[0]:
                more = self.process.stdout.read1(1)  # type: ignore[attr-defined]
                assert more, self.process.communicate()[1].decode()
                line += more
        return line.decode().strip()

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """End it by a signal; return how it ended and what it said."""
        self.process.send_signal(number)
        said = self.process.communicate(timeout=DEADLINE)[1]
        return self.process.returncode, said.decode()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            code, said = self.end()
            assert (code, said) == (0, "")
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
