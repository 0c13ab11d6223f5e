"""Devices of the userspace engine as loop devices: file systems, verified load, broken legs."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dmcopy.errors import BusyError
from dmcopy.export.base import Place
from dmcopy.export.loop import LoopDevices
from dmcopy.io import Io, Op
from dmcopy.mapper.reap import Reaper
from dmcopy.table import Table
from tests.loop.export.conftest import Serving

pytestmark = pytest.mark.loop
MIB = 1 << 20
FIO = [
    *("fio", "--name=verify", "--direct=1", "--ioengine=libaio", "--iodepth=16"),
    *("--rw=randwrite", "--bsrange=512-64k", "--bs_unaligned=0", "--verify=crc32c"),
    *("--verify_fatal=1", "--randseed=7", "--fsync=64", "--minimal", "--verify_state_save=0"),
]
needs_fio = pytest.mark.skipif(shutil.which("fio") is None, reason="fio is not installed")


def file_system(kind: str) -> list[str]:
    if shutil.which(f"mkfs.{kind}") is None:
        pytest.skip(f"mkfs.{kind} is not installed")
    return {"ext4": ["mkfs.ext4", "-q"], "xfs": ["mkfs.xfs", "-q"]}[kind]


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_file_system_and_its_snapshot_live_side_by_side(serving: Serving, kind: str) -> None:
    """Made and filled through one, then written through both; each keeps what is its own."""
    size = 320 * MIB if kind == "xfs" else 64 * MIB
    sectors = size >> 9
    image, cow = serving.image("image", size), serving.image("cow", 64 * MIB)
    serving.make("live", f"0 {sectors} linear {image} 0")
    live = serving.loop("live")
    serving.run(*file_system(kind), live)
    on_live = serving.mount(live)
    fill = (
        'mkdir "$1/$2"; for i in $(seq 40); '
        'do head -c "$((i * 7000))" /dev/urandom > "$1/$2/$i"; done'
    )
    serving.shell(fill, on_live, "old")
    old = serving.shell('sync -f "$1"; cd "$1" && sha256sum old/*', on_live)
    serving.umount(on_live)

    then = serving.snapshot("live", image, cow, sectors)
    on_live = serving.mount(live)
    on_then = serving.mount(then, *(["-o", "nouuid"] if kind == "xfs" else []))
    serving.shell(
        'rm "$1"/old/1*; for i in 2 3 20; do head -c 300000 /dev/urandom > "$1/old/$i"; done',
        on_live,
    )
    serving.shell(fill, on_live, "new")
    new = serving.shell('sync -f "$1"; cd "$1" && sha256sum old/* new/*', on_live)
    serving.shell(fill, on_then, "own")
    assert serving.shell('cd "$1" && sha256sum old/*', on_then) == old
    assert serving.shell('ls "$1"', on_then).split() == sorted(
        {"own", "old"} | ({"lost+found"} if kind == "ext4" else set())
    )
    for point in (on_live, on_then):
        serving.umount(point)
    check = ["e2fsck", "-fn"] if kind == "ext4" else ["xfs_repair", "-n"]
    for device in (live, then):
        serving.run(*check, device)
    serving.run("mount", "-o", "ro", live, on_live)
    assert serving.shell('cd "$1" && sha256sum old/* new/*', on_live) == new
    serving.run("umount", on_live)
    assert str(serving.mapper.status("then")[0].status)[0].isdigit()  # neither Invalid nor Overflow


@needs_fio
@pytest.mark.parametrize("target", ["linear", "origin", "snapshot"])
def test_verified_load_in_mixed_sizes(serving: Serving, target: str) -> None:
    image, cow = serving.image("image", 16 * MIB), serving.image("cow", 24 * MIB)
    before = random.Random(6).randbytes(16 * MIB)
    image.write_bytes(before)
    sectors = 16 * MIB >> 9
    if target == "linear":
        serving.make("a", f"0 {sectors} linear {image} 0")
    else:
        serving.make("then", f"0 {sectors} snapshot {image} {cow} P 8")
        serving.make("live", f"0 {sectors} snapshot-origin {image}")
    name = {"linear": "a", "origin": "live", "snapshot": "then"}[target]
    serving.run(*FIO, f"--filename={serving.loop(name)}", "--size=12M")
    if target == "origin":
        assert serving.mapper.open("then").read(0, sectors) == before
    if target == "snapshot":
        assert serving.mapper.open("live").read(0, sectors) == before


@needs_fio
def test_a_mirror_goes_on_when_a_leg_fails_under_load(serving: Serving) -> None:
    sectors = 16 * MIB >> 9
    legs = [serving.image(f"leg{number}", 16 * MIB) for number in range(2)]
    for number, leg in enumerate(legs):
        serving.make(f"leg{number}", f"0 {sectors} linear {leg} 0")
    paths = " ".join(f"{serving.mapper.path(f'leg{number}')} 0" for number in range(2))
    serving.make("m", f"0 {sectors} mirror core 2 64 nosync 2 {paths} 1 handle_errors")
    writes = 0
    mirror = serving.mapper.open("m")
    take = mirror.take

    def counted(request: Io) -> None:
        nonlocal writes
        writes += request.op == Op.WRITE
        take(request)

    mirror.take = mirror.submit = counted  # type: ignore[method-assign]
    loop = serving.loop("m")
    load = serving.begin(*FIO, f"--filename={loop}", "--size=12M")
    serving.until(lambda: writes >= 100, "a hundred writes")
    serving.mapper.swap("leg0", Table.parse(f"0 {sectors} error"), flush=False)
    # The mirror tells of it, and holds the write until it is replaced, as the kernel's does.
    serving.until(lambda: "D" in str(serving.mapper.status("m")[0]), "the leg to be seen as dead")
    good = Table.parse(f"0 {sectors} linear {serving.mapper.path('leg1')} 0")
    serving.mapper.swap("m", good, flush=False)
    assert load() == 0
    assert writes > 100


def recording(serving: Serving, name: str) -> list[tuple[Op, int, int]]:
    """Note what a device is asked for."""
    seen: list[tuple[Op, int, int]] = []
    device = serving.mapper.open(name)
    submit: Callable[[Io], None] = device.submit

    def noted(request: Io) -> None:
        seen.append((request.op, request.sector, request.count))
        submit(request)

    device.submit = noted  # type: ignore[method-assign]
    return seen


def test_discards_zeroes_and_flushes_reach_the_device(serving: Serving) -> None:
    image = serving.image("image", 8 * MIB)
    image.write_bytes(random.Random(1).randbytes(8 * MIB))
    model = bytearray(image.read_bytes())
    serving.make("a", f"0 {8 * MIB >> 9} linear {image} 0")
    seen = recording(serving, "a")
    loop = serving.loop("a")
    serving.run("blkdiscard", "-o", str(MIB), "-l", str(2 * MIB), loop)
    assert (Op.DISCARD, 2048, 4096) in seen
    serving.run("blkdiscard", "-z", "-o", str(5 * MIB), "-l", str(MIB), loop)
    assert (Op.WRITE_ZEROES, 10240, 2048) in seen or (Op.DISCARD, 10240, 2048) in seen
    model[MIB : 3 * MIB] = bytes(2 * MIB)
    model[5 * MIB : 6 * MIB] = bytes(MIB)
    seen.clear()
    serving.run(
        *("dd", "if=/dev/zero", f"of={loop}", "bs=64K", "count=1", "seek=112"),
        *("oflag=direct", "conv=fsync", "status=none"),
    )
    model[7 * MIB : 7 * MIB + 65536] = bytes(65536)
    assert [op for op, *_ in seen][-1] == Op.FLUSH
    assert image.read_bytes() == model


@pytest.mark.parametrize("block", [512, 4096])
def test_the_block_size_is_that_of_the_device(serving: Serving, block: int) -> None:
    below = serving.loop_below(8 * MIB, sector_size=block)
    serving.make("a", f"0 {8 * MIB >> 9} linear {below} 0")
    loop = serving.loop("a")
    assert serving.run("blockdev", "--getss", "--getsize64", loop).split() == [
        str(block),
        str(8 * MIB),
    ]


def test_a_read_only_device_is_a_read_only_loop_device(serving: Serving) -> None:
    image = serving.image("image", MIB)
    serving.make("a", f"0 2048 linear {image} 0", readonly=True)
    loop = serving.loop("a")
    assert serving.run("blockdev", "--getro", loop) == "1\n"
    serving.run("cmp", "-n", str(MIB), loop, "/dev/zero")


def test_one_that_is_mounted_stays_until_it_is_not(serving: Serving) -> None:
    image = serving.image("image", 8 * MIB)
    serving.make("a", f"0 {8 * MIB >> 9} linear {image} 0")
    place = Place(at=str(serving.folder / "file"))
    with LoopDevices(serving.mapper.reactor, place, ledger=serving.ledger) as served:
        loop = served.add("a", serving.mapper.open("a"))
        serving.run("mkfs.ext4", "-q", loop)
        point = serving.mount(loop)
        with pytest.raises(BusyError) as caught:
            served.remove("a")
        assert str(point) in str(caught.value)
        serving.shell('echo x > "$1/y"; sync -f "$1"', point)
        serving.run("umount", point)
        served.remove("a")
        assert not Path(place.at or "").exists()
        assert serving.ledger.entries() == []


def test_one_that_is_mounted_is_cut_off_at_the_end(serving: Serving) -> None:
    image = serving.image("image", 8 * MIB)
    serving.make("a", f"0 {8 * MIB >> 9} linear {image} 0")
    served = LoopDevices(
        serving.mapper.reactor, Place(at=str(serving.folder / "file")), ledger=serving.ledger
    )
    loop = served.add("a", serving.mapper.open("a"))
    serving.run("mkfs.ext4", "-q", loop)
    point = serving.mount(loop)
    serving.shell('echo kept > "$1/file"; sync -f "$1"', point)
    with pytest.raises(BusyError, match="cut off"):
        served.close()
    served.close()
    assert not (serving.folder / "file").exists()
    serving.run("umount", point)
    result = Reaper(serving.mapper, serving.ledger, lambda _: True).run()
    assert not result.left
    assert not os.path.exists(f"/sys/block/{os.path.basename(loop)}/loop")
    serving.make("again", f"0 {8 * MIB >> 9} linear {image} 0")
    again = serving.mount(serving.loop("again"))
    assert serving.run("cat", again / "file") == "kept\n"
