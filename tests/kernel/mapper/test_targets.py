"""Each target that the kernel has, made from its typed value: table and status come back typed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dmcopy.mapper.kernel import KernelMapper
from dmcopy.status import (
    FailedStatus,
    IntegrityStatus,
    MirrorStatus,
    Silent,
    SnapshotStatus,
    Status,
    ThinStatus,
    Unparsed,
)
from dmcopy.table import (
    Cache,
    Clone,
    CoreLog,
    Crypt,
    Delay,
    Delayed,
    DiskLog,
    Dust,
    Ebs,
    Era,
    Error,
    Flakey,
    Integrity,
    Leg,
    Linear,
    LogWrites,
    Mirror,
    Multipath,
    PathGroup,
    Raid,
    RaidLeg,
    Snapshot,
    SnapshotMerge,
    SnapshotOrigin,
    Striped,
    Switch,
    Table,
    Target,
    Thin,
    ThinPool,
    Unstriped,
    Vdo,
    Verity,
    Writecache,
    Zero,
    Zoned,
    ZonedDevice,
)
from dmcopy.table import Path as MultipathPath
from tests.kernel.snapshot.ioctls import IoctlMapper

from .conftest import Disks

pytestmark = pytest.mark.kernel
KEY = "00" * 64
HASH = "ba" * 32
LENGTH = 16384

Make = Callable[[Disks], Target]
TARGETS: dict[str, Make] = {
    "linear": lambda d: Linear(d.a, 8),
    "striped": lambda d: Striped(16, (Leg(d.a, 0), Leg(d.b, 8))),
    "unstriped": lambda d: Unstriped(2, 16, 1, d.a, 0),
    "switch": lambda d: Switch(64, (Leg(d.a, 0), Leg(d.b, 0))),
    "zero": lambda _: Zero(),
    "error": lambda _: Error(),
    "error with limits": lambda d: Error(Leg(d.a, 0)),
    "snapshot-origin": lambda d: SnapshotOrigin(d.a),
    "snapshot P": lambda d: Snapshot(d.a, d.b, "P", 8),
    "snapshot p, count 0": lambda d: Snapshot(d.a, d.b, "p", 16, ()),
    "snapshot PO": lambda d: Snapshot(d.a, d.b, "PO", 8, ("discard_zeroes_cow",)),
    "snapshot N": lambda d: Snapshot(
        d.a, d.b, "N", 2048, ("discard_passdown_origin", "discard_zeroes_cow")
    ),
    "snapshot-merge": lambda d: SnapshotMerge(d.a, d.b, "P", 8),
    "mirror core": lambda d: Mirror(CoreLog(1024), (Leg(d.a, 0), Leg(d.b, 8))),
    "mirror nosync": lambda d: Mirror(
        CoreLog(1024, "nosync"), (Leg(d.a, 0), Leg(d.b, 0)), ("handle_errors",)
    ),
    "mirror disk": lambda d: Mirror(
        DiskLog(d.c, 512, "sync"), (Leg(d.a, 0), Leg(d.b, 0)), ("keep_log", "handle_errors")
    ),
    "flakey": lambda d: Flakey(d.a, 0, 5, 1),
    "flakey count 0": lambda d: Flakey(d.a, 8, 0, 10, ()),
    "flakey error_writes": lambda d: Flakey(d.a, 0, 0, 10, ("error_writes",)),
    "flakey corrupt": lambda d: Flakey(
        d.a, 0, 0, 10, ("corrupt_bio_byte", "32", "R", "1", "0", "drop_writes")
    ),
    "delay 3": lambda d: Delay(Delayed(d.a, 0, 1)),
    "delay 6": lambda d: Delay(Delayed(d.a, 0, 1), Delayed(d.b, 8, 0)),
    "delay 9": lambda d: Delay(Delayed(d.a, 0, 1), Delayed(d.b, 8, 0), Delayed(d.c, 0, 3)),
    "log-writes": lambda d: LogWrites(d.a, d.b),
    "dust": lambda d: Dust(d.a, 0, 512),
    "ebs": lambda d: Ebs(d.a, 0, 1, 8),
    "raid1": lambda d: Raid("raid1", 0, (), (RaidLeg(None, d.a), RaidLeg(None, d.b))),
    "raid0": lambda d: Raid("raid0", 128, (), (RaidLeg(None, d.a), RaidLeg(None, d.b))),
    "raid5": lambda d: Raid(
        "raid5_ls",
        64,
        ("nosync", "min_recovery_rate", "20"),
        (RaidLeg(None, d.a), RaidLeg(None, d.b), RaidLeg(None, d.c)),
    ),
    "thin-pool": lambda d: ThinPool(d.a, d.b, 128, 4, ("skip_block_zeroing",)),
    "cache": lambda d: Cache(d.c, d.b, d.a, 64, ("writethrough",), "smq", ()),
    "writecache": lambda d: Writecache("s", d.a, d.b, 4096, ("high_watermark", "60", "cleaner")),
    "era": lambda d: Era(d.b, d.a, 64),
    "clone": lambda d: Clone(d.c, d.b, d.a, 8, ("no_hydration",)),
    "crypt": lambda d: Crypt("aes-xts-plain64", KEY, 0, d.a, 8, ("allow_discards",)),
    "verity": lambda d: Verity(1, d.a, d.b, 4096, 4096, 2048, 1, "sha256", HASH, "-"),
    "multipath": lambda d: Multipath(
        (), (), 1, (PathGroup("round-robin", (), (MultipathPath(d.a, ("1",)),)),)
    ),
    "vdo": lambda d: Vdo("V4", d.a, 4096, 4096, 32768, 16380),
    "zoned": lambda d: Zoned((ZonedDevice(d.a),)),
}
# vdo and zoned need a volume that a tool of their own formatted; Debian builds neither dust nor
# clone nor ebs.
UNFORMATTED = {"vdo", "zoned"}
LACKING = {"6.1": {"dust", "clone", "ebs", "vdo"}, "6.12": {"dust", "clone", "ebs"}}
SILENT = {"linear", "zero", "error", "flakey", "snapshot-origin", "crypt", "switch", "unstriped"}
SILENT |= {"ebs"}


def modules_lack(target: Target) -> bool:
    """Return whether this kernel is built without the target."""
    return target.name in LACKING.get(".".join(os.uname().release.split(".")[:2]), ())


@pytest.mark.parametrize("name", TARGETS)
def test_table_and_status_come_back_typed(
    mapper: KernelMapper, ioctls: IoctlMapper, disks: Disks, name: str
) -> None:
    target = TARGETS[name](disks)
    table = Table.of(LENGTH, target)
    if modules_lack(target):
        assert "unknown target type" in mapper.refusal(table)
        pytest.skip(f"this kernel has no target {target.name}")
    if name in UNFORMATTED:
        assert "unknown target type" not in mapper.refusal(table)
        pytest.skip(f"{name} needs a volume that its own tool formats")
    with ioctls.device("one", table, readonly=target.name == "verity") as device:
        echoed = device.table
        assert echoed.canonical() == numbered(table).canonical()
        assert Table.parse(str(echoed)) == echoed
        check_status(target, device.status)


def numbered(table: Table) -> Table:
    """Return `table` with devices by number, as the kernel prints them."""
    return table.with_devices(
        lambda path: Path(f"/sys/class/block/{Path(path).name}/dev").read_text().strip()
    )


def check_status(target: Target, status: Status) -> None:
    """Check that a status is typed: only a target that has nothing to say is Silent."""
    assert not isinstance(status, Unparsed | FailedStatus)
    assert isinstance(status, Silent) == (target.name in SILENT)
    assert status.trouble in ("", "corruption was found")


def test_integrity_is_formatted_and_echoes_its_defaults(mapper: KernelMapper, disks: Disks) -> None:
    target = Integrity(disks.a, 0, 4, "J", ("internal_hash:crc32c",))
    with mapper.device("format", Table.of(1, target)) as device:
        size = int(str(device.status).split()[1])
    with mapper.device("one", Table.of(size, target)) as device:
        echoed = device.table.lines[0].target
        assert isinstance(echoed, Integrity)
        assert set(target.options) < set(echoed.options)
        # What was never written has no checksum, and udev has read some of it by now.
        assert isinstance(device.status, IntegrityStatus)
        assert Table.parse(str(device.table)) == device.table


def test_thin_devices(mapper: KernelMapper, disks: Disks) -> None:
    pool_table = Table.of(LENGTH, ThinPool(disks.a, disks.b, 128, 0))
    with mapper.device("pool", pool_table) as pool:
        pool.message("create_thin", "7")
        with mapper.device("thin", Table.of(4096, Thin(pool.path, 7))) as thin:
            assert thin.table == Table.of(4096, Thin(pool.info.devno, 7))
            assert thin.status == ThinStatus(0, None)
            Path(thin.path).write_bytes(bytes(512))
            assert thin.status.mapped == 128


def test_a_snapshot_and_its_merge(mapper: KernelMapper, disks: Disks) -> None:
    with contextlib.ExitStack() as stack:
        origin = stack.enter_context(
            mapper.device("origin", Table.of(4096, SnapshotOrigin(disks.a)))
        )
        snapshot = stack.enter_context(
            mapper.device("snap", Table.of(4096, Snapshot(disks.a, disks.b, "P", 8)))
        )
        with origin.paused(lockfs=False):
            pass
        with open(origin, "r+b", buffering=0) as file:
            file.write(b"x" * 4096)
        status = snapshot.status
        assert isinstance(status, SnapshotStatus)
        assert (status.used, status.metadata) == ((24, 32768), 16)
        assert not status.empty


def test_a_mirror_tells_when_it_is_in_sync(mapper: KernelMapper, disks: Disks) -> None:
    mirror = Mirror(CoreLog(1024), (Leg(disks.a, 0), Leg(disks.b, 0)), ("handle_errors",))
    with mapper.device("mirror", Table.of(LENGTH, mirror)) as device:
        device.wait(0, timeout=120)
        status = device.status
        assert isinstance(status, MirrorStatus)
        assert (status.in_sync, status.health, status.log) == (True, "AA", ("core",))


def test_features_are_found_by_trying(mapper: KernelMapper, disks: Disks) -> None:
    release = tuple(map(int, os.uname().release.split("-")[0].split(".")[:2]))
    table = Table.of(8, Flakey(disks.a, 0, 0, 1, ("error_reads",)))
    assert (not mapper.refusal(table)) == (release >= (6, 5))
    assert "no block device /dev/nowhere" in mapper.refusal(Table.of(8, Linear("/dev/nowhere", 0)))
