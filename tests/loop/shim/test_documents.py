"""What the kernel's documents of the targets do with dmsetup, in the same words.

Documentation/admin-guide/device-mapper: linear, striped, zero, delay, dm-flakey, dm-dust,
log-writes and snapshot, of 6.12.
"""

from __future__ import annotations

import pytest

from tests.loop.conftest import LoopFactory

from .conftest import Shim

pytestmark = pytest.mark.loop
MIB = 2048


def test_linear_and_striped_and_zero_and_delay(shim: Shim, loops: LoopFactory) -> None:
    one, two = (device.path for device in loops(16 * MIB, n=2))
    out = shim.run(
        r"""
        dmsetup create stays --table '0 8 zero'  # and with it the server
        size=$(blockdev --getsz $1)
        echo "0 $size linear $1 0" | dmsetup create identity
        echo first | dd of=/dev/mapper/identity bs=512 seek=8192 conv=sync,fsync status=none
        dmsetup remove identity

        echo "0 $size linear $1 0
        $size $(blockdev --getsz $2) linear $2 0" | dmsetup create joined
        blockdev --getsz /dev/mapper/joined
        dmsetup remove joined

        # 4 MiB at a time, the last first
        for n in 0 1 2 3; do echo "$((n * 8192)) 8192 linear $1 $(((3 - n) * 8192))"; done |
            dmsetup create reverse
        dd if=/dev/mapper/reverse bs=512 skip=16384 count=1 status=none | tr -d '\0'
        dmsetup remove reverse

        echo 0 $((2 * size)) striped 2 256 $1 0 $2 0 | dmsetup create stripe_dev
        dmsetup table stripe_dev
        echo striped | dd of=/dev/mapper/stripe_dev bs=512 seek=256 conv=sync,fsync status=none
        dd if=$2 iflag=direct bs=512 count=1 status=none | tr -d '\0'
        dmsetup remove stripe_dev

        big=$(expr 10 \* 1024 \* 1024 \* 1024 \* 2)
        echo "0 $big zero" | dmsetup create zero1
        echo "0 $big snapshot /dev/mapper/zero1 $1 p 128" | \
            dmsetup create sparse1
        blockdev --getsz /dev/mapper/sparse1
        echo sparse | dd of=/dev/mapper/sparse1 bs=512 seek=20000000000 conv=sync,fsync status=none
        dd if=/dev/mapper/sparse1 iflag=direct bs=512 skip=20000000000 count=1 status=none |
            tr -d '\0'
        dmsetup remove sparse1 zero1

        dmsetup create delayed --table  "0 `blockdev --getsz $1` delay $1 0 50"
        dmsetup remove delayed
        dmsetup create delayed --table "0 $((size - 4096)) delay $1 2048 0 $2 4096 40"
        dmsetup status delayed
        dmsetup remove delayed
        dmsetup create delayed --table "0 `blockdev --getsz $1` delay $1 0 5 $2 0 10 $1 0 33"
        dmsetup table delayed
        dmsetup remove delayed
        dmsetup ls
        dmsetup remove stays
        """,
        *(one, two),
    )
    first, second = ("7:" + path.removeprefix("/dev/loop") for path in (one, two))
    assert out.splitlines() == [
        "65536",
        "first",
        f"0 65536 striped 2 256 {first} 0 {second} 0",
        "striped",
        "21474836480",
        "sparse",
        "0 28672 delay 0 0 0",
        f"0 32768 delay {first} 0 5 {second} 0 10 {first} 0 33",
        out.splitlines()[-1],
    ]
    assert out.splitlines()[-1].startswith("stays\t(7:")


def test_dust_fails_where_it_is_told_to(shim: Shim, loops: LoopFactory) -> None:
    (one,) = loops(16 * MIB)
    out = shim.run(
        """
        size=$(blockdev --getsz $1)
        dmsetup create dust1 --table "0 $size dust $1 0 512"
        dmsetup status dust1
        for block in 60 67 72; do dmsetup message dust1 0 addbadblock $block; done
        dd if=/dev/mapper/dust1 of=/dev/null bs=512 count=128 iflag=direct status=none
        dmsetup message dust1 0 enable
        dmsetup status dust1
        dd if=/dev/mapper/dust1 of=/dev/null bs=4096 count=1 skip=8 iflag=direct 2>&1 | head -1
        dd if=/dev/zero of=/dev/mapper/dust1 bs=512 count=128 oflag=direct status=none
        dd if=/dev/mapper/dust1 of=/dev/null bs=512 count=128 iflag=direct status=none
        dmsetup message dust1 0 addbadblock 88
        dmsetup message dust1 0 addbadblock 88 && exit 9
        dmsetup message dust1 0 removebadblock 87 && exit 9
        dmsetup message dust1 0 countbadblocks
        dmsetup message dust1 0 queryblock 88
        dmsetup message dust1 0 clearbadblocks
        dmsetup message dust1 0 quiet
        dmsetup status dust1
        dmsetup message dust1 0 quiet
        dmsetup message dust1 0 disable
        dmsetup status dust1
        dmsetup remove dust1
        """,
        one.path,
    )
    number = "7:" + one.path.removeprefix("/dev/loop")
    lines = [line for line in out.splitlines() if not line.startswith("dmcopy: ")]
    assert lines == [
        f"0 32768 dust {number} bypass verbose",
        f"0 32768 dust {number} fail_read_on_bad_block verbose",
        "dd: error reading '/dev/mapper/dust1': Input/output error",
        "device-mapper: message ioctl on dust1  failed: Invalid argument",
        "Command failed.",
        "device-mapper: message ioctl on dust1  failed: Invalid argument",
        "Command failed.",
        "countbadblocks: 1 badblock(s) found",
        "dust_query_block: block 88 found in badblocklist",
        "dust_clear_badblocks: badblocks cleared",
        f"0 32768 dust {number} fail_read_on_bad_block quiet",
        f"0 32768 dust {number} bypass verbose",
    ]


def test_the_logical_volumes_of_the_document_on_snapshots(shim: Shim, loops: LoopFactory) -> None:
    (disk,) = loops(96 * MIB)
    out = shim.run(
        r"""
        length=65536 cow=32768
        # the four devices, in the order of the document
        dmsetup create volumeGroup-base-real --table "0 $length linear $1 384"
        dmsetup create volumeGroup-base --table "0 $length linear $1 384"
        mkfs.ext4 -q /dev/mapper/volumeGroup-base
        mount /dev/mapper/volumeGroup-base $mnt
        echo before > $mnt/file
        dmsetup create volumeGroup-snap-cow --table "0 $cow linear $1 $((384 + length))"
        dmsetup create volumeGroup-snap --notable
        dmsetup load volumeGroup-base --table \
            "0 $length snapshot-origin /dev/mapper/volumeGroup-base-real"
        dmsetup suspend volumeGroup-base
        echo "0 $length snapshot /dev/mapper/volumeGroup-base-real \
            /dev/mapper/volumeGroup-snap-cow P 16" | dmsetup load volumeGroup-snap
        dmsetup resume volumeGroup-snap
        dmsetup resume volumeGroup-base
        dmsetup table | grep volumeGroup | sed 's/7:[0-9]*/N/g'
        ls -lL /dev/mapper/volumeGroup-* | cut -c 1

        echo after > $mnt/file
        dd if=/dev/urandom of=$mnt/more bs=64k count=32 conv=fsync status=none
        dmsetup status volumeGroup-snap | grep -qEx '0 65536 snapshot [0-9]+/32768 [0-9]+'
        mkdir $DMCOPY_RUNTIME_DIR/old
        mount -o ro /dev/mapper/volumeGroup-snap $DMCOPY_RUNTIME_DIR/old
        cat $DMCOPY_RUNTIME_DIR/old/file $mnt/file
        umount $DMCOPY_RUNTIME_DIR/old $mnt

        # and back
        dmsetup suspend volumeGroup-base
        dmsetup remove volumeGroup-snap
        dmsetup rename volumeGroup-snap-cow volumeGroup-base-cow
        dmsetup load volumeGroup-base --table "0 $length snapshot-merge \
            /dev/mapper/volumeGroup-base-real /dev/mapper/volumeGroup-base-cow P 16"
        dmsetup resume volumeGroup-base
        mount /dev/mapper/volumeGroup-base $mnt
        cat $mnt/file
        tries=0
        until dmsetup status volumeGroup-base |
            awk '{ split($4, a, "/"); exit a[1] != $5 }'; do
            tries=$((tries + 1)); test $tries -lt 500; sleep 0.05
        done
        dmsetup suspend volumeGroup-base
        dmsetup load volumeGroup-base --table "0 $length linear $1 384"
        dmsetup resume volumeGroup-base
        dmsetup remove volumeGroup-base-cow volumeGroup-base-real
        umount $mnt
        fsck.ext4 -fn /dev/mapper/volumeGroup-base > /dev/null 2>&1
        dmsetup remove volumeGroup-base
        """,
        disk.path,
    )
    assert out.splitlines() == [
        "volumeGroup-base: 0 65536 snapshot-origin N",
        "volumeGroup-base-real: 0 65536 linear N 384",
        "volumeGroup-snap: 0 65536 snapshot N N P 16",
        "volumeGroup-snap-cow: 0 32768 linear N 65920",
        *"bbbb",
        "before",
        "after",
        "before",
    ]


def test_writes_are_logged_with_marks(shim: Shim, loops: LoopFactory) -> None:
    disk, log = (device.path for device in loops(32 * MIB, n=2))
    out = shim.run(
        """
        TABLE="0 $(blockdev --getsz $1) log-writes $1 $2"
        dmsetup create log --table "$TABLE"
        mkfs.ext4 -q /dev/mapper/log
        dmsetup message log 0 mark mkfs
        mount /dev/mapper/log $mnt
        echo kept > $mnt/foo
        sync $mnt/foo
        dmsetup message log 0 mark fsync
        echo lost > $mnt/foo
        umount $mnt
        dmsetup status log | cut -d ' ' -f 1-3
        dmsetup remove log
        """,
        *(disk, log),
    )
    assert out == "0 65536 log-writes\n"
