"""The users of a block device that is served here. Not to be asked on the reactor's thread."""

from __future__ import annotations

import time
from typing import Final

from dmcopy.block import holders
from dmcopy.errors import BusyError

_GLANCE_SECONDS: Final = 2.0
"""How long a process may have it open that only looks at a changed device, as udev does."""


def check_unused(path: str) -> None:
    """Raise BusyError naming the users of a block device, once programs that only look are gone."""
    deadline = time.monotonic() + _GLANCE_SECONDS
    while (found := holders.who(path)) and time.monotonic() < deadline:
        if any(one.kind != "process" for one in found):
            break
        time.sleep(0.05)
    if found:
        raise BusyError(path, [str(one) for one in found], "it is still served")
