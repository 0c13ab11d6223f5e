"""Status lines of mapped devices as typed values: text in, text out.

    StatusLine.parse("0 32768 snapshot 48/8192 16").status.used     # Ratio(used=48, total=8192)

A status has `trouble`: what is wrong in words, or nothing. To dmsetup, a snapshot that is `Invalid`
is a success, so a program that reads a status must look.
"""

from typing import TYPE_CHECKING

from dmcopy.lazy import attributes
from dmcopy.status.base import (
    STATUSES,
    FailedStatus,
    Silent,
    Status,
    StatusLine,
    Unparsed,
    parse_lines,
    parse_status,
)
from dmcopy.table.record import Ratio

if TYPE_CHECKING:
    from dmcopy.status.legs import (
        GroupStatus,
        MirrorStatus,
        MultipathStatus,
        PathStatus,
        RaidStatus,
        StripedStatus,
    )
    from dmcopy.status.pools import (
        CacheStatus,
        CloneStatus,
        EraStatus,
        ThinPoolStatus,
        ThinStatus,
        WritecacheStatus,
    )
    from dmcopy.status.simple import (
        DelayStatus,
        DustStatus,
        IntegrityStatus,
        LogWritesStatus,
        VdoStatus,
        VerityStatus,
        ZonedStatus,
    )
    from dmcopy.status.snapshot import SnapshotMergeStatus, SnapshotStatus
else:
    __getattr__ = attributes(
        __name__,
        legs="GroupStatus MirrorStatus MultipathStatus PathStatus RaidStatus StripedStatus",
        pools="CacheStatus CloneStatus EraStatus ThinPoolStatus ThinStatus WritecacheStatus",
        simple="DelayStatus DustStatus IntegrityStatus LogWritesStatus VdoStatus VerityStatus "
        "ZonedStatus",
        snapshot="SnapshotMergeStatus SnapshotStatus",
    )

__all__ = [
    "STATUSES",
    "CacheStatus",
    "CloneStatus",
    "DelayStatus",
    "DustStatus",
    "EraStatus",
    "FailedStatus",
    "GroupStatus",
    "IntegrityStatus",
    "LogWritesStatus",
    "MirrorStatus",
    "MultipathStatus",
    "PathStatus",
    "RaidStatus",
    "Ratio",
    "Silent",
    "SnapshotMergeStatus",
    "SnapshotStatus",
    "Status",
    "StatusLine",
    "StripedStatus",
    "ThinPoolStatus",
    "ThinStatus",
    "Unparsed",
    "VdoStatus",
    "VerityStatus",
    "WritecacheStatus",
    "ZonedStatus",
    "parse_lines",
    "parse_status",
]
