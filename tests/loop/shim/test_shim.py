"""The shim's words on devices that do I/O, what it does without a server, and where it is put."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dmcopy.cli.main import main
from tests.loop.conftest import LoopFactory

from .conftest import Shim

pytestmark = pytest.mark.loop
MIB = 2048


def test_the_examples_of_dmsetups_own_page(shim: Shim, loops: LoopFactory) -> None:
    one, two = (device.path for device in loops(4 * MIB, n=2))
    out = shim.run(
        r"""
        n() { sed 's/7:[0-9]*/N/g'; }
        dmsetup create stays --table '0 8 zero'
        printf '# A table to join two disks together\n0 4096 linear %s 0\n4096 8192 linear %s 0\n' \
            $1 $2 > $mnt/table
        dmsetup create disks $mnt/table -u an-uuid
        dmsetup -u an-uuid table | n
        dmsetup remove --retry disks
        printf '0 8192 striped 2 32 %s 0 %s 0\n8192 4096 linear %s 4096\n' $1 $2 $2 |
            dmsetup create both
        dmsetup table both | n
        dmsetup info -c --noheadings -o name,segments,open,attr both
        dmsetup remove both
        dmsetup create --concise "test-linear-small,,,ro,0 4096 linear $1 0,4096 4096 linear $2 0"
        dmsetup create --concise \
            "small,,,,0 2048 linear $1 0;large,,,,0 2048 linear $1 2048, 2048 2048 linear $2 0"
        dmsetup table --concise large | sed 's/,[0-9]*,rw/,M,rw/' | n
        dmsetup info test-linear-small | sed -n 2p
        dd if=/dev/zero of=/dev/mapper/test-linear-small count=1 2>&1 | head -1
        dmsetup ls --exec echo | sort
        dmsetup remove small large test-linear-small
        dmsetup splitname a--b-c-d
        dmsetup create 'with blank' --notable
        ls /dev/mapper
        echo '0 8 zero' | dmsetup load 'with\x20blank'
        dmsetup resume 'with blank'
        ls /dev/mapper
        dmsetup remove '/dev/mapper/with\x20blank' stays
        """,
        *(one, two),
    )
    assert out.splitlines() == [
        "0 4096 linear N 0",
        "4096 8192 linear N 0",
        "0 8192 striped 2 32 N 0 N 0",
        "8192 4096 linear N 4096",
        "both:2:0:L--w",
        r"large,,M,rw,0 2048 linear N 2048,2048 2048 linear N 0",
        "State:             ACTIVE (READ-ONLY)",
        "dd: writing to '/dev/mapper/test-linear-small': Operation not permitted",
        "/dev/mapper/large",
        "/dev/mapper/small",
        "/dev/mapper/stays",
        "/dev/mapper/test-linear-small",
        "VG   LV   LVLayer",
        "a-b  c    d      ",
        "stays",
        "stays",
        r"with\x20blank",
    ]


def test_devices_come_and_go_under_load(shim: Shim, loops: LoopFactory) -> None:
    (disk,) = loops(16 * MIB)
    out = shim.run(
        r"""
        dmsetup create base --table "0 32768 linear $1 0"
        mkfs.ext4 -q /dev/mapper/base
        mount /dev/mapper/base $mnt
        dmsetup remove base && exit 9
        dmsetup info -c --noheadings -o open base
        truncate -s 1M $mnt/img; loop=$(losetup -f --show $mnt/img)
        dmsetup create onto --table "0 8 linear $loop 0" && exit 9
        losetup -d $loop
        dmsetup create onto --table "0 8 linear $mnt/img 0" && exit 9
        file=$(cat /sys/block/$(basename $(realpath /dev/mapper/base))/loop/backing_file)
        dmsetup create onto --table "0 8 linear $file 0" && exit 9
        mkdir -p $mnt.x; mount -t tmpfs /dev/mapper/base $mnt.x; truncate -s 1M $mnt.x/img
        dmsetup create onto --table "0 8 linear $mnt.x/img 0" && exit 9
        umount $mnt.x
        dmsetup remove --deferred base
        dmsetup info base | sed -n 1,2p
        umount $mnt
        tries=0
        while dmsetup info base > /dev/null 2>&1; do
            tries=$((tries + 1)); test $tries -lt 500; sleep 0.05
        done
        dmsetup create base --table "0 32768 linear $1 0"
        dmsetup create top --table "0 32768 linear /dev/mapper/base 0"
        dmsetup ls --tree -o ascii,nodevice
        dmsetup wipe_table -f top
        dmsetup table top
        dmsetup rename top other
        ls /dev/mapper
        dmsetup suspend base
        dmsetup info -c --noheadings -o attr base
        dmsetup resume base
        dmsetup wait nothing && exit 9
        dmsetup create mirror --table "0 2048 mirror core 1 512 2 $1 0 $1 4096"
        dmsetup wait mirror
        dmsetup status mirror | cut -d ' ' -f 3,7-
        dmsetup remove_all
        dmsetup ls
        """,
        disk.path,
    )
    lines = [line for line in out.splitlines() if not line.startswith("dmcopy: ")]
    assert lines == [
        "device-mapper: remove ioctl on base  failed: Device or resource busy",
        "Command failed.",
        "1",
        *("device-mapper: reload ioctl on onto  failed: Device or resource busy", "Command failed.")
        * 4,
        "Name:              base",
        "State:             ACTIVE (DEFERRED REMOVE)",
        "top",
        " `-base",
        "0 32768 error ",
        "base",
        "other",
        "L-sw",
        "device-mapper: waitevent ioctl on nothing  failed: No such device or address",
        "Command failed.",
        "mirror 4/4 1 AA 1 core",
        "No devices found",
    ]


def test_nothing_that_is_there_is_overwritten(shim: Shim) -> None:
    out = shim.run(
        """
        ln -s /dev/null /dev/mapper/link; echo mine > /dev/mapper/file
        dmsetup create link --table '0 8 zero' && exit 9
        dmsetup create file --table '0 8 zero' && exit 9
        dmsetup create other --table '0 8 zero'
        dmsetup rename other file && exit 9
        dmsetup info -c --noheadings -o name
        dmsetup remove other
        readlink /dev/mapper/link; cat /dev/mapper/file; ls /dev/mapper
        """
    )
    lines = [line for line in out.splitlines() if not line.startswith("dmcopy: ")]
    assert lines == [
        "device-mapper: reload ioctl on link  failed: File exists",
        "Command failed.",
        "device-mapper: reload ioctl on file  failed: File exists",
        "Command failed.",
        "device-mapper: rename ioctl on other  failed: File exists",
        "Command failed.",
        "other",
        "/dev/null",
        "mine",
        "file",
        "link",
    ]


def test_without_a_server_there_are_no_devices(shim: Shim) -> None:
    for words, code, out in (
        (["ls"], 0, "No devices found\n"),
        (["status"], 0, "No devices found\n"),
        (["info", "x"], 1, ""),
        (["remove", "x"], 1, ""),
        (["version"], 0, None),
    ):
        done = subprocess.run(["dmsetup", *words], capture_output=True, text=True, check=False)
        assert done.returncode == code
        assert out in (None, done.stdout)
    assert not (shim.folder / "server,control").exists()


def test_a_reader_that_has_gone_ends_it(shim: Shim) -> None:
    done = subprocess.run(
        ["bash", "-c", 'dmsetup version; dmsetup version | true; echo "${PIPESTATUS[0]}"'],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] in ("0", "141")
    assert done.stderr == ""
    assert shim.bin.exists()


def test_where_it_is_put(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "bin"
    assert main(["dm", "shim", str(folder)]) == 0
    assert os.access(folder / "dmsetup", os.X_OK)
    assert capsys.readouterr().out == f"{folder}/dmsetup\n"
    assert main(["dm", "shim", str(folder)]) == 0  # again
    assert main(["dm", "shim", "--remove", str(folder)]) == 0
    assert list(folder.iterdir()) == []
    assert main(["dm", "shim", "--remove", str(folder)]) == 2
    (folder / "dmsetup").write_text("#!/bin/sh\n")
    for words in (["dm", "shim", str(folder)], ["dm", "shim", "--remove", str(folder)]):
        assert main(words) == 2
        assert "is not dmcopy's" in capsys.readouterr().err
    assert (folder / "dmsetup").read_text() == "#!/bin/sh\n"
    with pytest.MonkeyPatch.context() as patch:  # a folder that a shebang line cannot name
        (tmp_path / "with blank").symlink_to(Path(sys.executable).parent)
        patch.setattr("sys.executable", str(tmp_path / "with blank" / "python"))
        assert main(["dm", "shim", str(tmp_path / "other")]) == 0
    told = subprocess.run([tmp_path / "other" / "dmsetup", "splitname", "a-b"], check=True)
    assert told.returncode == 0
    (tmp_path / "file").touch()
    assert main(["dm", "shim", str(tmp_path / "file")]) == 1
    assert main(["dm", "shim", "/proc"]) == 1
