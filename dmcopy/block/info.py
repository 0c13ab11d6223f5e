"""One block device described: what sysfs, the links, the mount table and udev say of it."""

from __future__ import annotations

import os
from typing import NamedTuple

from dmcopy.block import content, holders, sysfs
from dmcopy.block.content import Content
from dmcopy.block.devno import DevNo
from dmcopy.block.sysfs import LIVE, Roots
from dmcopy.errors import raise_passing


class DeviceInfo(NamedTuple):
    """A block device as it was when it was looked at. Sizes: sectors of 512 bytes, blocks in bytes.

    `type` is disk, part, rom, loop, dm, md, or the driver's name (zram, nbd, ram). `links` are the
    /dev/disk/by-* links. `holders`, `slaves`, `partitions` and `parent` are kernel names.
    """

    name: str
    node: str
    devno: DevNo
    type: str
    sectors: int
    logical_block_size: int = 512
    physical_block_size: int = 512
    read_only: bool = False
    removable: bool = False
    rotational: bool = False
    model: str = ""
    serial: str = ""
    uuid: str = ""
    label: str = ""
    fstype: str = ""
    part_uuid: str = ""
    part_label: str = ""
    dm_name: str = ""
    dm_uuid: str = ""
    backing_file: str = ""
    links: tuple[str, ...] = ()
    holders: tuple[str, ...] = ()
    slaves: tuple[str, ...] = ()
    mounts: tuple[str, ...] = ()
    parent: str = ""
    partitions: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """Return what `--json` prints."""
        return self._asdict() | {"devno": "{}:{}".format(*self.devno)}


class Tables(NamedTuple):
    """What is read once for all devices of a listing."""

    links: dict[str, list[str]]
    mounts: dict[DevNo, list[str]]

    @classmethod
    def read(cls, roots: Roots = LIVE) -> Tables:
        """Read the tables as they are now."""
        return cls(content.links(roots), holders.mount_points(roots))


def describe(name: str, tables: Tables | None = None, *, roots: Roots = LIVE) -> DeviceInfo | None:
    """Describe the device with this kernel name, None when it is gone.

    Without reading the device: UUID and label only where a link tells them, no fstype.
    """
    number = sysfs.devno(name, roots)
    if number is None:
        return None
    tables = tables or Tables.read(roots)
    folder = sysfs.directory(name, roots)
    parent = sysfs.parent(name, roots)
    disk = sysfs.directory(parent, roots) if parent else folder
    links = tables.links.get(name, [])
    known = content.from_links(links)
    return DeviceInfo(
        name=name,
        node=sysfs.node(name, roots),
        devno=number,
        type=_type(name, folder),
        sectors=sysfs.read_int(f"{folder}/size"),
        logical_block_size=sysfs.read_int(f"{disk}/queue/logical_block_size", 512),
        physical_block_size=sysfs.read_int(f"{disk}/queue/physical_block_size", 512),
        read_only=sysfs.read(f"{folder}/ro") == "1",
        removable=sysfs.read(f"{disk}/removable") == "1",
        rotational=sysfs.read(f"{disk}/queue/rotational") == "1",
        model=_model(disk),
        serial=_serial(folder),
        uuid=known.uuid,
        label=known.label,
        part_uuid=known.part_uuid,
        part_label=known.part_label,
        dm_name=sysfs.read(f"{folder}/dm/name"),
        dm_uuid=sysfs.read(f"{folder}/dm/uuid"),
        backing_file=sysfs.backing_file(name, roots),
        links=tuple(links),
        holders=tuple(sysfs.holders(name, roots)),
        slaves=tuple(sysfs.slaves(name, roots)),
        mounts=tuple(tables.mounts.get(number, ())),
        parent=parent,
        partitions=tuple(sysfs.partitions(name, roots)),
    )


def with_content(device: DeviceInfo, found: Content) -> DeviceInfo:
    """Return the description with what was found on the device filled in.

    That is fresher than the links, which udev makes some time after a mkfs.
    """
    return device._replace(
        uuid=found.uuid or device.uuid,
        label=found.label or device.label,
        fstype=found.fstype,
        part_uuid=found.part_uuid or device.part_uuid,
        part_label=found.part_label or device.part_label,
    )


def _type(name: str, folder: str) -> str:
    for kind, mark in (("part", "partition"), ("dm", "dm"), ("md", "md"), ("loop", "loop")):
        if os.path.exists(f"{folder}/{mark}"):
            return kind
    if sysfs.read(f"{folder}/device/type") == "5":  # SCSI peripheral type: CD and DVD
        return "rom"
    driver = name.rstrip("0123456789")
    return driver if driver in {"loop", "zram", "nbd", "ram", "dm", "md"} else "disk"


def _model(folder: str) -> str:
    parts = [sysfs.read(f"{folder}/device/{name}") for name in ("vendor", "model")]
    vendor, model = parts
    # A virtio disk has no model, and its vendor is a PCI number.
    return f"{vendor} {model}".strip() if model else ""


def _serial(folder: str) -> str:
    """Return the disk's serial: virtio has it on the disk, NVMe and MMC on the device behind."""
    for name in ("serial", "device/serial"):
        text = sysfs.read(f"{folder}/{name}")
        if text:
            return text
    return _scsi_serial(f"{folder}/device/vpd_pg80")


def _scsi_serial(path: str) -> str:
    """Return the text of a SCSI unit serial number page: four bytes of head, then ASCII."""
    try:
        with open(path, "rb") as file:
            page = file.read()
    except OSError as error:
        raise_passing(error)
        return ""
    length = int.from_bytes(page[2:4], "big")
    return page[4 : 4 + length].decode("ascii", "replace").strip(" \0")
