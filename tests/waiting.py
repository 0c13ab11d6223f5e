"""Waiting in a test for what another process, a thread or the kernel does."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

SECONDS = 120.0


def until(done: Callable[[], object], what: str, *, seconds: float = SECONDS) -> None:
    """Look until `done()` is true. Fails after `seconds`, and says what it waited for."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain for: {what}"
        time.sleep(0.01)


class Program(subprocess.Popen[Any]):
    """A process that a `with` starts, and kills where it is left by an exception.

    Popen would wait for its end, and a test whose deadline has passed would hang all the same.
    """

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self.kill()
        super().__exit__(kind, error, trace)
