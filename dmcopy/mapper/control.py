"""Whether this kernel has device-mapper."""

from __future__ import annotations

import os
from typing import Final

CONTROL: Final = "/dev/mapper/control"
_DRIVERS: Final = "/proc/misc"


def has_driver() -> bool:
    """Return whether there is device-mapper, which may be loaded by the question."""
    try:
        os.close(os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return _is_listed()  # no node or no rights, which says nothing of the kernel
    return True


def _is_listed() -> bool:
    try:
        with open(_DRIVERS, encoding="ascii") as stream:
            return any(line.split()[1:] == ["device-mapper"] for line in stream)
    except OSError:
        return False
