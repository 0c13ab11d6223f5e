"""Removing what a test has used, though programs may still use it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from dmcopy.block import holders
from dmcopy.errors import BusyError, DeadlineError, DmcopyError

if TYPE_CHECKING:
    from dmcopy.mapper.kernel import KernelMapper

TRY_SECONDS: Final = 2.0
PATIENCE_SECONDS: Final = 30.0


def patiently(
    remove: Callable[[float], object], node: str, seconds: float = PATIENCE_SECONDS
) -> None:
    """Call `remove(seconds)` until it has removed what is at `node`, or a user is there that stays.

    What udev has started only looks, for as long as that takes on a slow machine; and where no user
    can be named it is the kernel's last work. Any other user has TRY_SECONDS to end. Raises what
    `remove` raises: BusyError naming the users, DeadlineError.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            remove(TRY_SECONDS)
            return
        except (BusyError, DeadlineError):
            if time.monotonic() > deadline or not _only_looked_at(node):
                raise


def cut_loose(mapper: KernelMapper, name: str) -> None:
    """End the I/O that waits for a device: suspend it without a flush, and let it fail all."""
    from dmcopy.table import Error, Table

    length = mapper.table(name).length
    mapper.swap(name, Table.of(length or 8, Error()), flush=False, lockfs=False)


def _only_looked_at(node: str) -> bool:
    try:
        return all(one.only_looks for one in holders.who(node))
    except DmcopyError:  # there is no such node: no program looks at it
        return False
