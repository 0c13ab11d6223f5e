"""The one place that uses pyudev, which has no types: udev's properties, and device events.

Where udevd runs, its events come after the links in /dev/disk are made. Where none does, as in a
container or an initramfs, only the kernel's own are there; either way libudev, which
pyudev loads, does the receiving.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from dmcopy.block.info import DeviceInfo
from dmcopy.block.sysfs import LIVE, Roots
from dmcopy.errors import DmcopyError, MissingError

Source: TypeAlias = Literal["udev", "kernel"]


class LostEventsError(Exception):
    """The netlink buffer overflowed, and the kernel dropped events."""


def runs(roots: Roots = LIVE) -> bool:
    """Return whether udevd runs here: its control socket is there."""
    return os.path.exists(f"{roots.run}/udev/control")


def _load() -> tuple[Any, Any]:
    """Return pyudev and a context of it; only for those who need it, as it loads libudev."""
    try:
        import pyudev

        return pyudev, pyudev.Context()
    except ImportError as error:  # also what pyudev raises where there is no libudev
        raise MissingError(
            f"pyudev or libudev is missing: {error} (apt-get install libudev1; pip install pyudev)"
        ) from None


def properties(name: str) -> dict[str, str]:
    """Return udev's properties of the device with this kernel name; {} when it has none."""
    try:
        pyudev, context = _load()
        told = pyudev.Devices.from_name(context, "block", name).properties
    except (LookupError, OSError, ValueError, MissingError):
        return {}
    found = {}
    for key in told:
        # The kernel's name of a partition is not UTF-8 where the name in its table is not ASCII.
        with contextlib.suppress(LookupError, ValueError):
            found[key] = told[key]
    return found


def fill(device: DeviceInfo, told: Mapping[str, str]) -> DeviceInfo:
    """Return the description with udev's serial and model where sysfs had none (USB, SATA)."""
    if device.parent or not told:
        return device
    return device._replace(
        serial=device.serial or told.get("ID_SERIAL_SHORT", ""),
        model=device.model or told.get("ID_MODEL", "").replace("_", " "),
    )


class Monitor:
    """Events of block devices from one source, as (action, kernel name)."""

    def __init__(self, source: Source, buffer_bytes: int) -> None:
        pyudev, context = _load()
        try:
            self._monitor = pyudev.Monitor.from_netlink(context, source)
            self._monitor.filter_by("block")
            # A second descriptor on the same socket, for the options that pyudev has no call for.
            self._socket = socket.socket(fileno=os.dup(self._monitor.fileno()))
            self._grow(buffer_bytes)
            self._monitor.start()
        except OSError as error:
            raise DmcopyError(f"cannot listen for device events: {error}") from error

    def _grow(self, size: int) -> None:
        try:
            self._monitor.set_receive_buffer_size(size)
        except OSError:  # needs CAP_NET_ADMIN; without it as much as net.core.rmem_max allows
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self._socket.fileno()

    def receive(self) -> tuple[str, str] | None:
        """Return the next event that is there, None when there is none. Raises LostEventsError."""
        # The overflow is an error of the socket. pyudev's poll turns that into an OSError without a
        # number, again and again, as nothing takes the error off the socket: so that is done here.
        number = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            raise LostEventsError(os.strerror(number))
        try:
            device = self._monitor.poll(timeout=0)
        except OSError as error:
            if error.errno in (None, errno.ENOBUFS):
                raise LostEventsError(str(error)) from None
            raise
        return None if device is None else (device.action, device.sys_name)

    def close(self) -> None:
        self._socket.close()
        del self._monitor  # pyudev closes its own descriptor with the object
