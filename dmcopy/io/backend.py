"""The interface of a back end, and the choice of one.

A back end is chosen by trying it: io_uring may be forbidden (containers,
`kernel.io_uring_disabled`) or lack a feature, and threads work everywhere. `DMCOPY_IO=threads` or
an argument forces one.
"""

from __future__ import annotations

import os
from typing import Final, Protocol

from dmcopy.errors import MissingError, UsageError
from dmcopy.io.poller import Poller
from dmcopy.io.request import Memory, Request

BACKENDS: Final = ("uring", "threads")


class IoBackend(Protocol):
    """Where I/O happens. All methods are called on the reactor's thread."""

    name: str

    def submit(self, request: Request) -> None:
        """Take a request; it starts at the next `poll` at the latest.

        Raises nothing: what is wrong with the request is its `error`, and it is handed back.
        """

    def poll(self, timeout: float | None) -> list[Request]:
        """Wait at most `timeout` seconds (None: for ever) and return the requests that completed.

        Returns early, with an empty list, when the poller was woken or a watched descriptor was
        ready.
        """

    def time(self) -> float:
        """Return the clock that timers go by, in seconds."""

    def pin(self, memory: Memory) -> None:
        """See `Reactor.pin`."""

    def unpin(self, memory: Memory) -> None:
        """See `Reactor.unpin`."""

    def fileno(self) -> int:
        """Return a descriptor that is readable when `poll(0)` would do something."""

    def close(self) -> None:
        """Release everything; nothing may be in flight."""


def probe() -> dict[str, str]:
    """Return for each back end why it does not work on this machine, or '' when it works.

    What has been found out is kept, but not that there was no descriptor, or no memory, to try it.
    """
    global _ring_lacks
    lacks = _ring_lacks
    if lacks is None:
        try:
            from dmcopy.io.ring import probe_ring

            lacks = _ring_lacks = probe_ring()
        except OSError as error:
            lacks = f"it cannot be tried now ({error.strerror})"
    return {"uring": lacks, "threads": ""}


_ring_lacks: str | None = None


def make_backend(name: str | None, poller: Poller, *, inline: bool) -> IoBackend:
    """Return the back end called `name`; None: `$DMCOPY_IO`, else the best one that works here.

    `inline`: a request that is alone is done by plain system calls on the reactor's thread, which
    is quicker than any hand-over, but stops the reactor for as long as the device takes.

    Raises UsageError for an unknown name, MissingError for a back end that does not work here.
    """
    name = name or os.environ.get("DMCOPY_IO") or ("threads" if probe()["uring"] else "uring")
    if name not in BACKENDS:
        raise UsageError(f"there is no I/O back end {name!r}: choose one of {', '.join(BACKENDS)}")
    # Threads need no trying, which takes milliseconds.
    if name != "threads" and (lacks := probe()[name]):
        raise MissingError(f"the I/O back end {name} does not work here: {lacks}")
    if name == "uring":
        from dmcopy.io.uring import UringBackend

        return UringBackend(poller, inline=inline)
    from dmcopy.io.threads import ThreadsBackend

    return ThreadsBackend(poller, inline=inline)
