"""Waiting in a test for what another process, a thread or the kernel does."""

from __future__ import annotations

import time
from collections.abc import Callable

SECONDS = 120.0


def until(done: Callable[[], object], what: str, *, seconds: float = SECONDS) -> None:
    """Look until `done()` is true. Fails after `seconds`, and says what it waited for."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain for: {what}"
        time.sleep(0.01)
