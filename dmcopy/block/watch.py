"""Block devices as they come, change and go."""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from dmcopy.block import udev
from dmcopy.block.discovery import list_devices
from dmcopy.block.info import DeviceInfo, describe
from dmcopy.block.udev import LostEventsError, Monitor, Source
from dmcopy.closing import Closing

Action: TypeAlias = Literal["add", "change", "remove"]

# As udevd itself has it: a burst of thousands of events fits. Unused, it costs nothing.
_BUFFER_BYTES: Final = 128 << 20

# However fast events come, the reader gets its turn after this many.
_AT_ONCE: Final = 1000


@dataclass(frozen=True)
class Uevent:
    """What happened to a device. A removed one is described as it was last seen.

    `relisted` says that the event itself was lost and was found by comparing lists, so several
    changes may be told as one.
    """

    action: Action
    device: DeviceInfo
    relisted: bool = False


class Watch(Closing, Iterator[Uevent]):
    """An iterator of events until `timeout` seconds have passed or `close()` is called.

    `close` may be called from any thread, and wakes one that waits. When events come faster than
    they are read and the kernel drops some, the devices are listed again, and each difference from
    the last list is told as an event instead. `source` is "udev" where udevd runs, else "kernel".

    Raises MissingError without libudev.
    """

    def __init__(
        self,
        timeout: float | None = None,
        *,
        source: Source | None = None,
        buffer_bytes: int = _BUFFER_BYTES,
    ) -> None:
        self.source: Source = source or ("udev" if udev.runs() else "kernel")
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._pending: deque[Uevent] = deque()
        self._closed = False
        self._released = False
        self._lock = threading.Lock()
        # Listening comes before listing: what happens between the two is told twice, not never.
        self._monitor = Monitor(self.source, buffer_bytes)
        self._known = _devices()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(self._wake, select.POLLIN)
        self._poll.register(self._monitor.fileno(), select.POLLIN)

    def __next__(self) -> Uevent:
        while not self._pending:
            if not self._wait():
                self._release()
                raise StopIteration
            self._receive()
        return self._pending.popleft()

    def close(self) -> None:
        """End the iteration, in whatever thread it runs."""
        self._closed = True
        with self._lock:
            if not self._released:  # else the number may be another descriptor's by now
                os.eventfd_write(self._wake, 1)

    def __exit__(self, *_: object) -> None:
        self.close()
        self._release()

    def _release(self) -> None:
        with self._lock:
            if not self._released:
                self._released = True
                self._monitor.close()
                os.close(self._wake)

    def _wait(self) -> bool:
        """Wait until there is something to receive; False at the deadline or when closed."""
        while not self._closed and not self._released:
            left = None if self._deadline is None else self._deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            ready = self._poll.poll(None if left is None else left * 1000)
            if any(fd != self._wake for fd, _ in ready):
                return not self._closed
        return False

    def _receive(self) -> None:
        """Take what has come; after a loss, tell what else has changed."""
        lost = False
        for _ in range(_AT_ONCE):
            try:
                got = self._monitor.receive()
            except LostEventsError:
                lost = True
                continue
            if got is None:
                break
            self._tell(*got)
        if lost:
            self._relist()

    def _tell(self, action: str, name: str) -> None:
        if action == "remove":
            device = self._known.pop(name, None)
        else:
            device = describe(name)
            if device is not None:
                self._known[name] = device
        if device is None:  # gone already: its removal comes or has been told
            return
        kind: Action = "add" if action == "add" else "remove" if action == "remove" else "change"
        self._pending.append(Uevent(kind, device))

    def _relist(self) -> None:
        before, self._known = self._known, _devices()
        for name in before.keys() - self._known.keys():
            self._pending.append(Uevent("remove", before[name], relisted=True))
        for name, device in self._known.items():
            if name not in before:
                self._pending.append(Uevent("add", device, relisted=True))
            elif _unmounted(device) != _unmounted(before[name]):
                self._pending.append(Uevent("change", device, relisted=True))


def watch(timeout: float | None = None, *, source: Source | None = None) -> Watch:
    """Return an iterator of device events, which is also a context manager; see `Watch`."""
    return Watch(timeout, source=source)


def _devices() -> dict[str, DeviceInfo]:
    return {device.name: device for device in list_devices(empty=True, probe=False)}


def _unmounted(device: DeviceInfo) -> DeviceInfo:
    """Return what a device is without where it is mounted: no event tells of mounts."""
    return device._replace(mounts=())
