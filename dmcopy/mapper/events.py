"""Events of all mapped devices, as they happen."""

from __future__ import annotations

import fcntl
import os
import select
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

from dmcopy.mapper.base import DmInfo, Mapper

CONTROL = "/dev/mapper/control"
# DM_DEV_ARM_POLL of include/uapi/linux/dm-ioctl.h (4.37.0, kernel 4.14): from then on, the file is
# readable once any device has had an event. _IOWR(0xfd, 16, struct dm_ioctl), 312 bytes.
_SIZE = 312
_ARM_POLL = (3 << 30) | (_SIZE << 16) | (0xFD << 8) | 16


@dataclass(frozen=True, slots=True)
class Event:
    """`device` has had events up to number `number`; `what` is event, appeared or gone."""

    time: float
    device: str
    number: int
    what: str


def follow(
    mapper: Mapper,
    *,
    timeout: float | None = None,
    started: Callable[[], None] = lambda: None,
    control: str = CONTROL,
) -> Iterator[Event]:
    """Yield what changes from now on; ends after `timeout` seconds, by default never.

    Calls `started` once it has seen what is there: whatever happens after that is reported.
    Devices that come and go are seen when something has an event, or within a second.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    known = {info.name: info for info in mapper.ls()}
    started()
    with _Alarm(control) as alarm:
        while deadline is None or time.monotonic() < deadline:
            alarm.wait(1.0 if deadline is None else min(1.0, deadline - time.monotonic()))
            now = {info.name: info for info in mapper.ls()}
            yield from _differences(known, now)
            known = now


def _differences(before: dict[str, DmInfo], now: dict[str, DmInfo]) -> Iterator[Event]:
    moment = time.time()
    for name, info in now.items():
        old = before.get(name)
        if old is None or old.number != info.number or old.uuid != info.uuid:
            yield Event(moment, name, info.events, "appeared")
        elif old.events != info.events:
            yield Event(moment, name, info.events, "event")
    for name in before.keys() - now.keys():
        yield Event(moment, name, before[name].events, "gone")


class _Alarm:
    """Waits until a device has an event; without the control node, just waits."""

    def __init__(self, control: str) -> None:
        try:
            self._fd = os.open(control, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            self._fd = -1

    def __enter__(self) -> Self:
        self._arm()
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def wait(self, seconds: float) -> None:
        if self._fd < 0:
            time.sleep(max(seconds, 0))
            return
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        if poll.poll(max(seconds, 0) * 1000):
            # Armed again before the devices are read: an event in between makes it readable.
            self._arm()

    def _arm(self) -> None:
        if self._fd < 0:
            return
        header = bytearray(_SIZE)
        struct.pack_into("=5I", header, 0, 4, 37, 0, _SIZE, _SIZE)  # version, data size and start
        try:
            fcntl.ioctl(self._fd, _ARM_POLL, header)
        except OSError:  # an older kernel: the list is read every second all the same
            pass
