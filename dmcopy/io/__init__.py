"""The kernel's dm-io in userspace: regions, requests, and a reactor over back ends."""

from typing import TYPE_CHECKING

from dmcopy.lazy import attributes

if TYPE_CHECKING:
    from dmcopy.io.backend import BACKENDS, IoBackend, probe
    from dmcopy.io.reactor import Reactor, Timer
    from dmcopy.io.region import Device, IoRegion
    from dmcopy.io.request import CopyIo, Io, Memory, Op
else:
    __getattr__ = attributes(
        __name__,
        backend="BACKENDS IoBackend probe",
        reactor="Reactor Timer",
        region="Device IoRegion",
        request="CopyIo Io Memory Op",
    )

__all__ = [
    "BACKENDS",
    "CopyIo",
    "Device",
    "Io",
    "IoBackend",
    "IoRegion",
    "Memory",
    "Op",
    "Reactor",
    "Timer",
    "probe",
]
