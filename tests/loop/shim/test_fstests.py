"""What the functions of xfstests do with dmsetup: common/dmflakey, common/dmerror, common/dmdelay.

Suspend without freezing, load a table, resume: under a file system in use, which so loses its disk.
"""

from __future__ import annotations

import pytest

from tests.loop.conftest import LoopFactory

from .conftest import Shim

pytestmark = pytest.mark.loop
MIB = 2048

# As in common/rc; `mknodes` behind each, and a target is there if `targets` begins a line with it.
FUNCTIONS = """
made() { dmsetup create "$@" && dmsetup mknodes > /dev/null; }
gone() { dmsetup remove "$@" > /dev/null 2>&1 || :; dmsetup mknodes > /dev/null 2>&1; }
has() { dmsetup targets | grep -q "^$1"; }
# exchange NAME TABLE [OPTION...]: the table on standard input, as for tables of many lines
exchange() {
    name=$1 table=$2; shift 2
    dmsetup suspend "$@" $name && echo -e "$table" | dmsetup load $name && dmsetup resume $name
}
size=$(blockdev --getsz $1)
"""


def test_writes_that_are_dropped_are_lost_in_a_crash(shim: Shim, loops: LoopFactory) -> None:
    (disk,) = loops(32 * MIB)
    out = shim.run(
        FUNCTIONS
        + r"""
        has flakey && has error && has delay && ! has thin
        name=flakey-test.001
        up="0 $size flakey $1 0 180 0"
        drop="0 $size flakey $1 0 0 180 1 drop_writes"
        fail="0 $size flakey $1 0 0 180 1 error_writes"
        mkfs.ext4 -q $1
        made $name --table "$up"
        mount /dev/mapper/$name $mnt
        echo synced > $mnt/kept
        sync -f $mnt
        echo unsynced > $mnt/lost
        exchange $name "$drop" --nolockfs
        umount $mnt
        exchange $name "$up" --nolockfs
        mount /dev/mapper/$name $mnt
        cat $mnt/kept; test ! -s $mnt/lost
        # frozen and written out before the power goes: nothing is lost
        echo frozen > $mnt/frozen
        exchange $name "$drop"
        umount $mnt
        exchange $name "$up" --nolockfs
        mount /dev/mapper/$name $mnt
        cat $mnt/frozen
        exchange $name "$fail" --nolockfs
        dd if=/dev/zero of=$mnt/no bs=4k count=1 conv=fsync 2>&1 | grep -o 'Input/output error'
        exchange $name "$up" --nolockfs
        dmsetup resume $name
        umount $mnt
        gone $name
        e2fsck -fy $1 > /dev/null 2>&1 || test $? -lt 4
        """,
        disk.path,
    )
    assert out == "synced\nfrozen\nInput/output error\n"


def test_a_disk_that_fails_and_works_again(shim: Shim, loops: LoopFactory) -> None:
    (disk,) = loops(32 * MIB)
    out = shim.run(
        FUNCTIONS
        + r"""
        linear="0 $size linear $1 0"
        mkfs.ext4 -q $1
        gone error-test
        made error-test --table "$linear"
        mount /dev/mapper/error-test $mnt
        echo there > $mnt/file; sync -f $mnt
        dmsetup suspend --nolockfs error-test
        dmsetup load error-test --table "0 $size error $1 0"
        dmsetup resume error-test
        dd if=/dev/zero of=$mnt/no bs=4k count=1 conv=fsync 2>&1 |
            grep -oE 'Input/output error|Read-only file system' | head -1
        exchange error-test "$linear" --nolockfs
        umount $mnt
        # some sectors only, the lines joined by \n
        exchange error-test "0 8 linear $1 0\n8 8 error $1 8\n16 $((size - 16)) linear $1 16"
        part="dd if=/dev/mapper/error-test of=/dev/null bs=4096 count=1 iflag=direct"
        $part status=none
        $part skip=1 2>&1 | head -1
        dmsetup table error-test | cut -d ' ' -f 1-3
        exchange error-test "$linear"
        gone error-test
        e2fsck -fp $1 > /dev/null
        """,
        disk.path,
    )
    assert out.splitlines()[1:] == [
        "dd: error reading '/dev/mapper/error-test': Input/output error",
        "0 8 linear",
        "8 8 error",
        f"16 {32 * MIB - 16} linear",
    ]
    assert out.startswith(("Input/output error\n", "Read-only file system\n"))


def test_reads_that_are_late(shim: Shim, loops: LoopFactory) -> None:
    (disk,) = loops(32 * MIB)
    out = shim.run(
        FUNCTIONS
        + """
        name=delay-test.001
        made $name --table "0 $size delay $1 0 0"
        dmsetup suspend --nolockfs $name; dmsetup resume --nolockfs $name
        dmsetup suspend --nolockfs $name
        dmsetup load $name --table "0 $size delay $1 0 300 $1 0 0"
        dmsetup resume $name
        start=$(date +%s%N)
        dd if=/dev/mapper/$name of=/dev/null bs=4096 count=1 iflag=direct status=none
        test $((($(date +%s%N) - start) / 1000000)) -ge 300
        gone $name
        """,
        disk.path,
    )
    assert out == ""
