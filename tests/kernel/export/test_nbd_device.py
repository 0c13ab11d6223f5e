"""Devices of the userspace engine as block devices of the kernel's nbd driver, by netlink."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmcopy.io.nbd import NbdControl
from dmcopy.ledger import Ledger
from tests.kernel.export.killed import SECONDS, Writer, kill, until
from tests.kernel.programs import run
from tests.loop.export.here import MIB, Here, of_its_own
from tests.unit.export.serving import Serving

pytestmark = pytest.mark.timeout(900)

SIZE = 48 * MIB
SECTORS = SIZE >> 9


@pytest.fixture(autouse=True)
def _driver() -> Iterator[None]:
    """The driver, with one device, which is another's: more are made as they are needed."""
    until(unloaded, "the driver to go that another test had")
    assert "(modprobe nbd)" in NbdControl().why_not()
    assert not Path("/sys/module/nbd").exists()  # to ask does not load it
    run("modprobe", "nbd", "nbds_max=1")
    assert NbdControl().why_not() == ""
    run("udevadm", "settle")  # it looks at the new device, which is not free meanwhile
    ours, theirs = socket.socketpair()
    with ours, theirs:
        number = NbdControl().connect(
            "another's", theirs.fileno(), sectors=0, block_size=512, flags=1, wait=False
        )
        if number == 0:
            yield
        left = [NbdControl().mark(number) for number in NbdControl().numbers()]
        for number in NbdControl().numbers():
            NbdControl().disconnect(number)
    assert (number, left) == (0, ["another's"])
    until(unloaded, "the driver to go, as it does when nothing is connected")


def unloaded() -> bool:
    """Take the driver away, unless it is in use, if only by udev."""
    subprocess.run(["modprobe", "-r", "nbd"], check=False, capture_output=True)
    return not Path("/sys/module/nbd").exists()


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Here]:
    monkeypatch.setenv("DMCOPY_RUNTIME_DIR", "")  # it is set again, and put back at the end
    monkeypatch.setenv("DMCOPY_ENGINE", "user")
    with of_its_own() as made:
        yield made


@pytest.mark.kernel(cost=60)
def test_a_file_system_stays_mounted_while_its_server_is_killed_and_resumed(here: Here) -> None:
    """It is written all the time, and has a snapshot: nothing flushed is lost, in neither."""
    image, cow = here.image("image", SIZE), here.image("cow", SIZE)
    here.dm("create", "data", "--table", f"0 {SECTORS} linear {image} 0")
    node = here.mapper.path("data")
    device = os.path.realpath(node)
    assert device == "/dev/nbd1"
    here.run("mkfs.ext4", "-q", node)
    point = here.mounted(node)
    (point / "old").write_bytes(os.urandom(MIB))
    old = (point / "old").read_bytes()
    here.dmcopy("snapshot", "take", "then", "data", cow)
    writer = Writer(point)
    writer.start()
    try:
        writer.until(10)
        kill(here)
        assert writer.error is None  # it waits
        told = here.dmcopy("serve", "--resume")
        assert told.splitlines() == [here.mapper.path(one.name) for one in here.mapper.ls()]
        assert os.path.realpath(node) == device
        (point / "old").write_bytes(bytes(MIB))
        writer.until(10)
        writer.stop = True
        writer.join(SECONDS)
        assert not writer.is_alive()
    finally:
        writer.stop = True
    assert str(point) in here.dm("remove", "data", code=6)
    writer.check()
    here.run("umount", point)
    here.run("e2fsck", "-fn", node)
    then = here.mounted(here.mapper.path("then"))
    assert (then / "old").read_bytes() == old
    here.run("umount", then)
    here.dmcopy("snapshot", "drop", "then")
    with open(node, "rb") as file:  # in use, it follows its table
        here.dm("load", "data", "--table", f"0 {SECTORS // 2} linear {image} 0")
        here.dm("resume", "data")
        assert file.seek(0, os.SEEK_END) == SIZE // 2
    here.dm("remove", "data")


@pytest.mark.kernel(either=True, cost=15)
def test_what_a_killed_server_left_is_given_up(here: Here) -> None:
    """Who waits gets an error then, and what is mounted can be unmounted."""
    image = here.image("image", SIZE)
    here.dm("create", "data", "--table", f"0 {SECTORS} linear {image} 0")
    node = here.mapper.path("data")
    here.run("mkfs.ext4", "-q", node)
    point = here.mounted(node)
    writer = Writer(point)
    writer.start()
    writer.until(5)
    kill(here)
    kept = writer.kept
    time.sleep(1)
    assert writer.error is None
    assert writer.kept <= kept + 1
    here.dm("reap")
    until(lambda: not writer.is_alive(), "the writer to end")
    assert writer.error is not None
    here.run("umount", point)
    assert Ledger().entries() == []
    here.run("e2fsck", "-fy", image, code=None)
    run("mount", image, point)
    try:
        writer.check()
    finally:
        run("umount", point)


@pytest.mark.kernel(either=True, cost=25)
def test_one_that_is_served_in_the_foreground(tmp_path: Path) -> None:
    """Each kind of request reaches it; killed, its users get errors, whatever is under way."""
    disk, log = tmp_path / "disk", tmp_path / "log"
    for path in (disk, log):
        with open(path, "wb") as file:
            file.truncate(SIZE)
    with Serving("--via", "nbd-device", "--table", f"0 65536 log-writes {disk} {log}") as serving:
        (node,) = serving.found
        queue = Path("/sys/block", Path(node).name, "queue")
        names = ("write_cache", "fua", "logical_block_size")
        shown = [(queue / name).read_text().strip() for name in names]
        assert shown == ["write back", "1", "512"]
        run("dd", "if=/dev/urandom", f"of={node}", "bs=1M", "count=4", "oflag=direct")
        run("dd", "if=/dev/zero", f"of={node}", "bs=4k", "count=1", "seek=3", "oflag=direct,dsync")
        run("blkdiscard", "-o", 1 << 20, "-l", 1 << 20, node)
        run("blkdiscard", "--zeroout", "-o", 2 << 20, "-l", 1 << 20, node)
        with open(node, "r+b") as file:
            os.fsync(file.fileno())
        run("udevadm", "settle")  # it reads what was written to
        assert serving.end() == (0, "")
    content = disk.read_bytes()
    assert content[12288:16384] == bytes(4096)
    assert content[2 << 20 : 3 << 20] == bytes(1 << 20)
    assert any(content[: 1 << 20])
    assert any(content[3 << 20 : 4 << 20])
    dumped = json.loads(run(sys.executable, "-m", "dmcopy", "write-log", "dump", "--json", log))
    kinds = {entry["kind"] for entry in dumped["entries"]}
    assert {"write", "write fua", "flush", "discard"} <= kinds
    with Serving("--via", "nbd-device", "--read-only", disk) as serving:
        assert run("blockdev", "--getro", *serving.found).strip() == "1"
        run("udevadm", "settle")
    table = f"0 {SECTORS} delay {disk} 0 0 {disk} 0 30000"
    serving = Serving("--via", "nbd-device", "--table", table)
    (node,) = serving.found
    words = "--rw=randwrite --bs=4k --size=4M --iodepth=100 --ioengine=libaio --direct=1"
    fio = subprocess.Popen(
        ["fio", "--name=x", f"--filename={node}", *words.split()],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    flying = Path("/sys/block", Path(node).name, "inflight")
    until(lambda: int(flying.read_text().split()[1]) > 40, "many requests under way")
    serving.process.kill()
    serving.process.communicate()
    assert fio.wait(SECONDS) != 0
    run(sys.executable, "-m", "dmcopy", "dm", "reap")
    assert NbdControl().numbers() == [0]
    serving = Serving("--via", "nbd-device", disk)
    run("mkfs.ext4", "-q", *serving.found)
    (tmp_path / "mnt").mkdir()
    run("mount", *serving.found, tmp_path / "mnt")
    code, said = serving.end()
    for stream in (serving.process.stdout, serving.process.stderr):
        assert stream is not None
        stream.close()
    assert code == 6
    assert f"{tmp_path}/mnt" in said
    assert "they were cut off" in said
    run("umount", tmp_path / "mnt")
    until(lambda: NbdControl().numbers() == [0], "the device to go with its last user")
