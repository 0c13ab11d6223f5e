"""What is on a device: file system or RAID type, UUID and label, by its links or by blkid."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from dmcopy.block import sysfs, tools
from dmcopy.block.sysfs import LIVE, Roots
from dmcopy.errors import DeadlineError, MissingError

# A read from a disk that is dying can take this long and longer; a listing must not.
_BLKID_SECONDS: Final = 10.0
# blkid(8): low-level probing found more than one signature, and does not say which.
_AMBIVALENT: Final = 8

_MAGICS: Final = {b"SnAp": "the store of an earlier snapshot", b"rRiM": "the log of a mirror"}
"""What begins with these four bytes; blkid knows the first only, under another name."""


class Content(NamedTuple):
    """What blkid knows of a device; empty where it knows nothing."""

    uuid: str = ""
    label: str = ""
    fstype: str = ""
    partitions: str = ""
    """The kind of partition table: dos, gpt."""
    part_uuid: str = ""
    part_label: str = ""

    def __str__(self) -> str:
        """Return a phrase for it, "" for nothing."""
        if self.fstype:
            return f"{self.fstype} {self.label!r}" if self.label else self.fstype
        return f"a partition table ({self.partitions})" if self.partitions else ""


def links(roots: Roots = LIVE) -> dict[str, list[str]]:
    """Return the /dev/disk/by-* links of each device, by kernel name."""
    found: dict[str, list[str]] = {}
    for folder in sysfs.entries(f"{roots.dev}/disk"):
        for name in sysfs.entries(f"{roots.dev}/disk/{folder}"):
            link = f"{roots.dev}/disk/{folder}/{name}"
            target = os.path.realpath(link)
            relative = os.path.relpath(target, roots.dev)
            found.setdefault(relative.replace("/", "!"), []).append(link)
    return found


def from_links(paths: Sequence[str]) -> Content:
    """Return what the links by UUID and label say; the types are not in them."""
    known = {}
    for path in paths:
        folder, name = path.rsplit("/", 2)[-2:]
        known[folder] = unescape(name)
    return Content(
        known.get("by-uuid", ""),
        known.get("by-label", ""),
        part_uuid=known.get("by-partuuid", ""),
        part_label=known.get("by-partlabel", ""),
    )


def from_udev(told: Mapping[str, str]) -> Content:
    """Return what udev's properties say. The plain ones have spaces replaced, _ENC is exact."""
    return Content(
        unescape(told.get("ID_FS_UUID_ENC", "")),
        unescape(told.get("ID_FS_LABEL_ENC", "")),
        told.get("ID_FS_TYPE", ""),
        told.get("ID_PART_TABLE_TYPE", ""),
        told.get("ID_PART_ENTRY_UUID", ""),
        unescape(told.get("ID_PART_ENTRY_NAME", "")),
    )


def unescape(name: str) -> str:
    r"""Return a link's name as it was: udev writes what is unsafe in a name as \x20."""
    return re.sub(r"(?:\\x[0-9a-f]{2})+", _unescape_run, name)


def _unescape_run(match: re.Match[str]) -> str:
    return bytes.fromhex(match[0].replace("\\x", "")).decode(errors="surrogateescape")


def probe(node: str) -> Content:
    """Ask blkid what is on a device; nothing where it may not read it or is not installed.

    One device at a time: given several, blkid stops at the first that it cannot open. In its other
    formats a label that is not ASCII is written with cat's M- and ^, which cannot be undone.
    """
    try:
        done = tools.run(["blkid", "-p", "-o", "udev", node], timeout=_BLKID_SECONDS)
    except (OSError, MissingError, DeadlineError):
        return Content()
    if done.returncode == _AMBIVALENT:
        return Content(fstype="several signatures")
    pairs = (line.partition("=") for line in done.stdout.split("\n"))
    return from_udev({key: value for key, _, value in pairs})


def describe(path: str) -> str:
    """Return a phrase for what is on a device or file, "" where nothing is recognised."""
    try:
        with open(path, "rb", buffering=0) as file:
            magic = file.read(4)
    except OSError:
        return ""
    return _MAGICS.get(magic) or str(probe(path))
