"""Finding block devices by whatever name people have for them, and listing them all.

Everything is read from sysfs, the links in /dev/disk and the devices themselves, so the answers are
the same whether or not udevd runs. udev is asked only for what those leave open: what is on a disk
that only root may read, the serial of a drive that tells it to udev alone (optical ones).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import Final

from dmcopy.block import content, sysfs, udev
from dmcopy.block.content import Content
from dmcopy.block.devno import block_devno, parse_devno
from dmcopy.block.info import DeviceInfo, Tables, describe, with_content
from dmcopy.block.sysfs import LIVE, Roots
from dmcopy.errors import DeviceError, DmcopyError, UsageError
from dmcopy.suggest import did_you_mean

_DEVNO: Final = re.compile(r"\d{1,9}:\d{1,9}", re.ASCII)

# fstab's way of saying what kind of name it is, and two more; in what case does not matter.
_TAGS: Final[dict[str, Callable[[DeviceInfo], Sequence[str]]]] = {
    "UUID": lambda device: (device.uuid, device.uuid.lower()),
    "LABEL": lambda device: (device.label,),
    "PARTUUID": lambda device: (device.part_uuid, device.part_uuid.lower()),
    "PARTLABEL": lambda device: (device.part_label,),
    "ID": lambda device: [link.partition("/by-id/")[2] for link in device.links],
    "SERIAL": lambda device: (device.serial,),
    "DM": lambda device: (device.dm_name,),
}


def list_devices(
    *, empty: bool = False, probe: bool = True, roots: Roots = LIVE
) -> list[DeviceInfo]:
    """Return all block devices, partitions after their disks.

    `empty` includes those without a medium (free loop devices, card readers). `probe` lets blkid
    read the devices for UUID, label and type, which needs root and a moment for each.
    """
    tables = Tables.read(roots)
    found = [describe(name, tables, roots=roots) for name in sysfs.names(roots)]
    devices = [device for device in found if device and (empty or device.sectors)]
    if probe:
        devices = [_probed(device, roots) for device in devices]
    return sorted(devices, key=_natural)


def find(spec: str, *, roots: Roots = LIVE) -> DeviceInfo:
    """Return the one device that `spec` means.

    A node or link to it (/dev/sda, /dev/disk/by-id/…, /dev/mapper/…), a kernel name (sda), a dm
    name, a serial, a UUID or label of a file system or partition, or MAJOR:MINOR; UUID=, LABEL=,
    PARTUUID=, PARTLABEL=, ID=, SERIAL= and DM= before a name say which it is. Raises UsageError
    when no device or several match, DeviceError when the node may not be looked at.
    """
    name = _direct_name(spec, roots)
    if name:
        device = describe(name, roots=roots)
        if device is None:
            raise UsageError(f"{spec}: this device has just gone away")
        return _probed(device, roots)
    if not spec.startswith("/"):
        return _by_tag(spec, spec, roots)
    folder, _, last = spec.rpartition("/")
    if folder == f"{roots.dev}/mapper":  # no node without udev, but the name is known
        return _by_tag(spec, f"DM={last}", roots)
    tag = folder.rpartition("/by-")[2].upper()
    if tag in _TAGS and folder == f"{roots.dev}/disk/by-{tag.lower()}":
        return _by_tag(spec, f"{tag}={content.unescape(last)}", roots)
    raise _no_such(spec, roots)


def appearance(path: str, *, roots: Roots = LIVE) -> str:
    """Return a phrase for what is at `path`, by which a person can recognise it; "" if unknown.

    What is on it, with its label, and which device it is, by model and serial.
    """
    on_it = content.describe(path)
    try:
        device = describe(_direct_name(path, roots), roots=roots)
    except DmcopyError:  # a file
        return on_it
    disk = describe(device.parent, roots=roots) if device and device.parent else device
    if device is None or disk is None:  # it has just gone
        return on_it
    disk = udev.fill(disk, _told(disk, roots))
    known = {"": disk.model, "serial ": disk.serial, "mapped device ": device.dm_name}
    known["made of "] = device.backing_file
    which = ", ".join(f"{kind}{value}" for kind, value in known.items() if value)
    return " on ".join(filter(None, [on_it, which]))


def split_tag(spec: str) -> tuple[str, str]:
    """Return the tag before a name, in capitals, and the name; "" and `spec` where there is none.

    That is of UUID=, LABEL= and so on, see `find`, in capitals or not.
    """
    tag, equals, value = spec.partition("=")
    return (tag.upper(), value) if equals and tag.upper() in _TAGS else ("", spec)


def _direct_name(spec: str, roots: Roots) -> str:
    """Return the kernel name that `spec` leads to without a search, "" when there is none."""
    if _DEVNO.fullmatch(spec):
        return sysfs.name_of(parse_devno(spec), roots)
    if not spec.startswith(("/", ".")):
        short = spec.replace("/", "!")
        return short if short in sysfs.names(roots) else ""
    try:
        status = os.stat(spec)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        raise DeviceError(spec, "look at it", error.errno or 0) from error
    number = block_devno(status)
    if number is None:
        raise UsageError(f"{spec} is not a block device")
    return sysfs.name_of(number, roots)


def _by_tag(spec: str, tagged: str, roots: Roots) -> DeviceInfo:
    """Search all devices; those that blkid has to read only when nothing else matches."""
    tag, value = split_tag(tagged)
    getters = [_TAGS[tag]] if tag else list(_TAGS.values())
    wanted = {value} - {""} | ({value.lower()} if "UUID" in tag else set())
    for probe in (False, True):
        devices = list_devices(empty=True, probe=probe, roots=roots)
        found = [device for device in devices if any(wanted & {*get(device)} for get in getters)]
        if len(found) > 1:
            nodes = ", ".join(device.node for device in found)
            raise UsageError(f"{spec} is the name of several devices: give one of {nodes}")
        if found:
            return found[0] if probe else _probed(found[0], roots)
    raise _no_such(spec, roots)


def _no_such(spec: str, roots: Roots) -> UsageError:
    devices = list_devices(empty=True, probe=False, roots=roots)
    known = [name for device in devices for name in _names(device, path=spec.startswith("/"))]
    hint = did_you_mean(spec, known) or "; 'dmcopy devices' lists them"
    return UsageError(f"{spec}: no block device has this name{hint}")


def _names(device: DeviceInfo, *, path: bool) -> list[str]:
    if path:
        return [device.node, *device.links]
    return [name for name in (device.name, device.dm_name, device.serial, device.uuid) if name]


def _probed(device: DeviceInfo, roots: Roots) -> DeviceInfo:
    """Fill in the content of the device, and the facts that only udev knows."""
    told = _told(device, roots)
    on_it = content.probe(device.node) if device.sectors else Content()
    if on_it == Content():  # nothing on it, or it takes root to read it
        on_it = content.from_udev(told)
    return udev.fill(with_content(device, on_it), told)


def _told(device: DeviceInfo, roots: Roots) -> dict[str, str]:
    return udev.properties(device.name) if roots is LIVE and udev.runs(roots) else {}


def _natural(device: DeviceInfo) -> list[tuple[int, str]]:
    """Sort loop10 after loop2: runs of digits count as numbers."""
    parts = re.findall(r"\d+|\D+", device.name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
