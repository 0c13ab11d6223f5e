"""The kinds of front ends by name: importing this imports none of them."""

from __future__ import annotations

from typing import Final

MODULES: Final = {
    "nbd": "dmcopy.export.nbd.server",
    "fuse": "dmcopy.export.fuse.files",
    "loop": "dmcopy.export.loop",
    "nbd-device": "dmcopy.export.nbd.devices",
    "ublk": "dmcopy.export.ublk.devices",
}
"""The front ends, best first, each with the module that has it as `FRONT_END`."""


def kinds() -> tuple[str, ...]:
    """Return the names of all front ends; the best comes first."""
    return tuple(MODULES)
