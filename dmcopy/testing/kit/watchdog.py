"""Ends the I/O that a hanging test waits for.

A process that waits for I/O of the kernel's takes no signal, so its time limit changes nothing. A
second after it the devices of the test are cut loose: what waits for them ends with EIO, and the
test with it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Final

from dmcopy.errors import DmcopyError
from dmcopy.testing.kit.kit import Kit

LATER_SECONDS: Final = 1.0


class Watchdog:
    """What became of a test that is watched. `said`: what was done, "" for nothing."""

    said = ""

    def __init__(self, kit: Kit, seconds: float) -> None:
        self._kit = kit
        self._seconds = seconds

    def cut_loose(self) -> None:
        waiting = []
        for device in reversed(self._kit.devices):
            with contextlib.suppress(DmcopyError):
                device.cut_loose()
                waiting.append(device.name)
        if waiting:
            self.said = (
                f"the test was not done {self._seconds:g} s after its limit: the I/O that waited "
                f"for {', '.join(waiting)} was ended with EIO"
            )


@contextlib.contextmanager
def watched(kit: Kit, limit: float) -> Iterator[Watchdog]:
    """Watch a test for the length of a `with` block, if it has a limit in seconds."""
    watch = Watchdog(kit, LATER_SECONDS)
    if not limit:
        yield watch
        return
    timer = threading.Timer(limit + LATER_SECONDS, watch.cut_loose)
    timer.daemon = True
    timer.start()
    try:
        yield watch
    finally:
        timer.cancel()
        timer.join()
