r"""Tables of mapped devices as typed values: text in, text out, and the kernel's rules before it.

    table = Table.parse("0 131072 snapshot /dev/a /dev/b P 8")
    table.lines[0].target        # Snapshot(origin="/dev/a", cow="/dev/b", store="P", chunk_size=8)
    str(table)                   # the same text

Every target of kernels 6.1 and 6.12 has a type here, and so have targets of your own; any other is
`Raw`. Devices are strings, a
path or major:minor. All lengths and offsets are in sectors of 512 bytes unless a name says bytes.
"""

from typing import TYPE_CHECKING

from dmcopy.lazy import attributes
from dmcopy.table.record import Ratio, device_field, group_field, number_field, word_field
from dmcopy.table.table import Table, TableLine
from dmcopy.table.target import TARGETS, Leg, Line, Raw, Target
from dmcopy.table.words import TableError, Words

if TYPE_CHECKING:
    from dmcopy.table.concise import ConciseDevice, format_concise, parse_concise, read_concise
    from dmcopy.table.crypt import Crypt, Integrity, Verity
    from dmcopy.table.devices import Vdo, Zoned, ZonedDevice
    from dmcopy.table.faults import Delay, Delayed, Dust, Flakey, LogWrites
    from dmcopy.table.linear import Ebs, Error, Linear, Striped, Switch, Unstriped, Zero
    from dmcopy.table.mirror import CoreLog, DiskLog, Mirror, OtherLog
    from dmcopy.table.multipath import Multipath, Path, PathGroup
    from dmcopy.table.pools import Cache, Clone, Era, Thin, ThinPool, Writecache
    from dmcopy.table.raid import Raid, RaidLeg
    from dmcopy.table.snapshot import Snapshot, SnapshotMerge, SnapshotOrigin
else:
    __getattr__ = attributes(
        __name__,
        concise="ConciseDevice format_concise parse_concise read_concise",
        crypt="Crypt Integrity Verity",
        devices="Vdo Zoned ZonedDevice",
        faults="Delay Delayed Dust Flakey LogWrites",
        linear="Ebs Error Linear Striped Switch Unstriped Zero",
        mirror="CoreLog DiskLog Mirror OtherLog",
        multipath="Multipath Path PathGroup",
        pools="Cache Clone Era Thin ThinPool Writecache",
        raid="Raid RaidLeg",
        snapshot="Snapshot SnapshotMerge SnapshotOrigin",
    )

__all__ = [
    "TARGETS",
    "Cache",
    "Clone",
    "ConciseDevice",
    "CoreLog",
    "Crypt",
    "Delay",
    "Delayed",
    "DiskLog",
    "Dust",
    "Ebs",
    "Era",
    "Error",
    "Flakey",
    "Integrity",
    "Leg",
    "Line",
    "Linear",
    "LogWrites",
    "Mirror",
    "Multipath",
    "OtherLog",
    "Path",
    "PathGroup",
    "Raid",
    "RaidLeg",
    "Ratio",
    "Raw",
    "Snapshot",
    "SnapshotMerge",
    "SnapshotOrigin",
    "Striped",
    "Switch",
    "Table",
    "TableError",
    "TableLine",
    "Target",
    "Thin",
    "ThinPool",
    "Unstriped",
    "Vdo",
    "Verity",
    "Words",
    "Writecache",
    "Zero",
    "Zoned",
    "ZonedDevice",
    "device_field",
    "format_concise",
    "group_field",
    "number_field",
    "parse_concise",
    "read_concise",
    "word_field",
]
