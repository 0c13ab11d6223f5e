"""Which names a device may have, and which device a word or a node means."""

from __future__ import annotations

import contextlib
import os

from dmcopy.block import sysfs
from dmcopy.block.devno import block_devno
from dmcopy.errors import DeviceError, UsageError
from dmcopy.mangling import CODED
from dmcopy.mangling import mangle as mangle
from dmcopy.mangling import unmangle as unmangle
from dmcopy.mapper.base import check_name


class TakenError(DeviceError):
    """Another mapped device has the name or the UUID."""


def checked(name: str) -> str:
    r"""Return `name` if a device can be made with it; raise UsageError otherwise.

    A name with a code such as \x20 in it is refused: a device of that name makes a plain
    `dmsetup ls` fail for everybody ("mangled more than once", measured with 1.02.185).
    """
    size = len(mangle(check_name(name)))
    if CODED.search(os.fsencode(name)):
        raise UsageError(rf"{name!r}: a device's name cannot have a code such as \x20 in it")
    if size > 127:
        raise UsageError(
            f"{name!r}: its odd characters are written with 4 bytes each, which makes {size}; "
            "a device's name has at most 127"
        )
    return name


def checked_uuid(uuid: str) -> str:
    """Return `uuid`, or raise UsageError: at most 128 bytes, printable."""
    if len(mangle(uuid)) > 128:
        raise UsageError(f"{uuid!r}: a device's UUID has at most 128 bytes")
    return uuid


def options(name: str) -> list[str]:
    r"""Return what dmsetup must be told to find an existing device whose name has a \xNN in it."""
    return ["--manglename", "hex"] if CODED.search(os.fsencode(name)) else []


def device_name(text: str) -> str:
    r"""Return the name that a person means: a name, or the path of a node that is there.

    With a code such as \x20 in it, it is what dmsetup prints and the name of the node.
    """
    if "/" not in text:
        return unmangle(text)
    if text.startswith("/dev/mapper/"):
        return unmangle(text.removeprefix("/dev/mapper/"))
    node = os.path.basename(os.path.realpath(text))
    name = sysfs.read(f"{sysfs.directory(node)}/dm/name")
    if not name:
        raise UsageError(f"{text} is not the node of a mapped device")
    return unmangle(name)


def number_of(name: str, roots: sysfs.Roots = sysfs.LIVE) -> tuple[int, int] | None:
    """Return the number of the mapped disk of this name, without a call of dmsetup; None if none.

    A node may be missing still, or be left from another device: sysfs is asked which has the name.
    """
    first = os.path.basename(os.path.realpath(f"{roots.dev}/mapper/{mangle(name)}"))
    for node in (first, *sysfs.names(roots)):
        if sysfs.read(f"{sysfs.directory(node, roots)}/dm/name") == mangle(name):
            return sysfs.devno(node, roots)
    return None


def has_node(name: str, path: str) -> bool:
    """Return whether the node at `path` is of the mapped disk of this name, if there is one."""
    number = number_of(name)
    with contextlib.suppress(OSError):
        return number is None or block_devno(os.stat(path)) == number
    return False
