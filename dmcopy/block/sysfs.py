"""Block devices as sysfs shows them: names, numbers, parents, partitions, holders, slaves."""

from __future__ import annotations

import os
from typing import Final, NamedTuple, TypeAlias

from dmcopy.block.devno import DevNo, devno_text, parse_devno
from dmcopy.errors import raise_passing

StrPath: TypeAlias = "str | os.PathLike[str]"


class Roots(NamedTuple):
    """Where the kernel's file systems are; tests put a made-up tree here."""

    sys: StrPath = "/sys"
    dev: StrPath = "/dev"
    proc: StrPath = "/proc"
    run: StrPath = "/run"


LIVE: Final = Roots()
DISK_MARK: Final = "disk "


def read(path: StrPath) -> str:
    """Return a small attribute without its newline; "" where it is not there or not readable.

    Raises MissingError, as all that asks here, where it cannot be known: no descriptor is left.
    """
    return _exactly(path).strip()


def _exactly(path: StrPath) -> str:
    try:
        with open(path, "rb") as file:
            return os.fsdecode(file.read())
    except OSError as error:  # a device that goes away takes its attributes with it, at any moment
        raise_passing(error)
        return ""


def read_int(path: StrPath, default: int = 0) -> int:
    """Return a numeric attribute, or `default`."""
    text = read(path)
    return int(text) if text.lstrip("-").isdecimal() else default


def entries(path: StrPath) -> list[str]:
    """Return a directory's sorted names; nothing where there is no such directory."""
    try:
        return sorted(os.listdir(path))
    except OSError as error:
        raise_passing(error)
        return []


def names(roots: Roots = LIVE) -> list[str]:
    """Return the kernel names of all block devices, partitions too."""
    return entries(f"{roots.sys}/class/block")


def directory(name: str, roots: Roots = LIVE) -> str:
    """Return the sysfs directory of the device with this kernel name."""
    return f"{roots.sys}/class/block/{name}"


def node(name: str, roots: Roots = LIVE) -> str:
    """Return the device node's path. sysfs writes ! for the / in a name (cciss!c0d0)."""
    return "{}/{}".format(roots.dev, name.replace("!", "/"))


def devno(name: str, roots: Roots = LIVE) -> DevNo | None:
    """Return a device's number, or None when it is gone."""
    text = read(f"{directory(name, roots)}/dev")
    return parse_devno(text) if text else None


def name_of(number: DevNo, roots: Roots = LIVE) -> str:
    """Return the kernel name of a device number, "" when no block device has it."""
    try:
        return os.path.basename(os.readlink(f"{roots.sys}/dev/block/{devno_text(number)}"))
    except OSError:
        return ""


def disk_mark(number: DevNo | None, roots: Roots = LIVE) -> str:
    """Return what tells the disk of this number from all others of this boot; "" if nothing does.

    The kernel counts disks (diskseq in sysfs, 5.15 and later). A mapped device becomes one when it
    gets its first table; a loop device is another one each time that it is attached or detached.
    """
    if number is None:
        return ""
    found = read(f"{roots.sys}/dev/block/{devno_text(number)}/diskseq")
    return f"{DISK_MARK}{found}" if found else ""


def parent(name: str, roots: Roots = LIVE) -> str:
    """Return the whole disk of a partition, "" for what is no partition."""
    path = directory(name, roots)
    if not os.path.exists(f"{path}/partition"):
        return ""
    return os.path.basename(os.path.dirname(os.path.realpath(path)))


def partitions(name: str, roots: Roots = LIVE) -> list[str]:
    """Return the kernel names of a disk's partitions."""
    path = directory(name, roots)
    return [entry for entry in entries(path) if os.path.exists(f"{path}/{entry}/partition")]


def holders(name: str, roots: Roots = LIVE) -> list[str]:
    """Return the devices that are made on top of this one: dm, md, bcache."""
    return entries(f"{directory(name, roots)}/holders")


def slaves(name: str, roots: Roots = LIVE) -> list[str]:
    """Return the devices that this one is made of."""
    return entries(f"{directory(name, roots)}/slaves")


def backing_file(name: str, roots: Roots = LIVE) -> str:
    """Return the path behind a loop device, "" for a free one and for what is none.

    For showing: it is what the maker of the device saw; see `block.backing`.
    """
    return _exactly(f"{directory(name, roots)}/loop/backing_file").removesuffix("\n")


def btrfs_siblings(name: str, roots: Roots = LIVE) -> set[str]:
    """Return all devices of the mounted btrfs that this device is a part of."""
    for filesystem in entries(f"{roots.sys}/fs/btrfs"):
        members = set(entries(f"{roots.sys}/fs/btrfs/{filesystem}/devices"))
        if name in members:
            return members
    return set()
