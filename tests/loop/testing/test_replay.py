"""Logs that other programs write, and disks that are in use."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from dmcopy.block import tools
from dmcopy.cli.main import main
from dmcopy.errors import ExitCode
from dmcopy.export.write_log import WriteLog
from dmcopy.testing.logfile import LogFile
from dmcopy.testing.replay import Replay
from tests.loop.conftest import LoopFactory

SIZE = 4 << 20


def test_a_log_of_qemu_makes_the_disk_that_it_is_of(tmp_path: Path) -> None:
    if tools.which("qemu-io") is None:
        pytest.skip("no qemu-io (apt-get install qemu-utils)")
    disk, again, log = (tmp_path / name for name in ("disk", "again", "log"))
    for path, size in ((disk, SIZE), (again, SIZE), (log, 2 * SIZE)):
        path.write_bytes(bytes(size))
    script = ["write -P 1 0 4k", "write -f -P 2 8k 4k", "flush", "discard 0 4k"]
    script += ["write -z 16k 8k", "write -P 3 1M 64k", "flush", "write -P 4 1M 512"]
    words = [word for line in script for word in ("-c", line)]
    options = f"driver=blklogwrites,file.driver=file,file.filename={disk},log.driver=file"
    image = f"{options},log.filename={log},log-sector-size=512"
    subprocess.run(["qemu-io", *words, "--image-opts", image], check=True, capture_output=True)
    with LogFile(str(log)) as found:
        replay = Replay(found, str(again), found.entries())
        assert list(replay.run()) == []
    assert again.read_bytes() == disk.read_bytes()
    assert disk.read_bytes()[1 << 20] == 4


def test_a_loop_device_is_written_to_and_one_in_use_is_not(
    loops: LoopFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (disk,) = loops(4096)
    path = str(tmp_path / "log")
    log = WriteLog(path, 512)
    log.write(8, b"x" * 512)
    log.flush()
    log.discard(8, 8)
    log.write(9, b"y" * 512)
    log.close()
    look = f"cmp -n 512 -i 4096:0 {{}} {path}"
    words = ["write-log", "check", path, disk.path, "--at", "1", "--fsck", look]
    assert main(words) == ExitCode.MISMATCH
    backing = loops.folder / "disk0.img"
    assert backing.read_bytes()[4096] == ord("x")
    assert main(["write-log", "replay", path, disk.path]) == ExitCode.OK
    assert backing.read_bytes()[4096:5120] == bytes(512) + b"y" * 512
    holder = loops(8)[0].path
    before = backing.read_bytes()
    with open(disk.path, "rb"):  # a mere reader stops nothing
        assert main(["write-log", "replay", path, disk.path]) == ExitCode.OK
    assert main(["write-log", "replay", path, str(backing)]) == ExitCode.BUSY
    assert backing.read_bytes() == before
    assert main(["write-log", "replay", path, holder]) == ExitCode.USAGE
    assert "give it a disk as large" in capsys.readouterr().err
