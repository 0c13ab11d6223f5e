"""A table as text that dmsetup passes on to the kernel whole."""

from __future__ import annotations

import errno
import os
import re
import stat
from typing import Final

from dmcopy.block import sysfs
from dmcopy.block.devno import devno_text, openable
from dmcopy.errors import DeviceError, UsageError
from dmcopy.table import Table

_CUT: Final = re.compile(r"[#\s\0]")
_PLAIN: Final = re.compile(r"[0-9A-Za-z/._+:@=%~,-]+")


def table_text(table: Table) -> str:
    """Return the text of `table`, checked. Raises UsageError for what the kernel would refuse.

    dmsetup cuts a line at a '#', reads line by line, and takes a backslash as itself: a device
    whose path has odd characters is named by its number instead.
    """
    table.check()
    text = ""
    for line in table.with_devices(_number_if_odd):
        words = [str(line.start), str(line.length), line.target_name, *line.target.words()]
        odd = next((word for word in words if _CUT.search(word)), None)
        if odd is not None:
            raise UsageError(
                f"dmsetup cannot pass on a word with white space or '#' in it: {odd!r}"
            )
        text += " ".join(words) + "\n"
    return text


def missing_device(table: Table) -> str:
    """Return the first path in `table` at which there is no block device, empty when all are."""
    for device in table.devices:
        try:
            if "/" in device and not stat.S_ISBLK(os.stat(device).st_mode):
                return f"{device} is not a block device"
        except (OSError, ValueError):
            return f"there is no block device {device}"
    return ""


def _number_if_odd(device: str) -> str:
    if _PLAIN.fullmatch(device):
        return device
    try:
        found = os.stat(device)
    except (OSError, ValueError) as error:
        code = error.errno if isinstance(error, OSError) else errno.EINVAL
        raise DeviceError(device, "use it in a table", code or errno.ENOENT) from error
    if not stat.S_ISBLK(found.st_mode):
        raise DeviceError(device, "use it in a table", errno.ENOTBLK)
    return devno_text(found.st_rdev)


def is_suspended(device: str) -> bool:
    """Return whether a device of a table is a mapped one, and suspended."""
    name = os.path.basename(os.path.realpath(openable(device)))
    return sysfs.read(f"{sysfs.directory(name)}/dm/suspended") == "1"
