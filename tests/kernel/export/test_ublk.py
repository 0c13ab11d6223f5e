"""Devices of the userspace engine as block devices of the kernel's ublk driver."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmcopy.io.ublk import UblkControl
from dmcopy.ledger import Ledger
from tests.kernel.export.killed import SECONDS, Writer, kill, until
from tests.kernel.programs import run
from tests.loop.export.here import MIB, Here, of_its_own
from tests.unit.export.serving import Serving

pytestmark = [pytest.mark.kernel(cost={"6.12": 20}), pytest.mark.timeout(900)]

SIZE = 48 * MIB
SECTORS = SIZE >> 9


@pytest.fixture(autouse=True)
def _driver() -> Iterator[None]:
    done = subprocess.run(["modprobe", "ublk_drv"], check=False, capture_output=True)
    if done.returncode:
        assert "(modprobe ublk_drv)" in UblkControl().why_not()
        pytest.skip("this kernel has no ublk driver")  # as Debian 12's 6.1
    assert UblkControl().why_not() == ""
    yield
    left = UblkControl().numbers()
    for number in left:  # so that no other test fails by it
        UblkControl().stop(number)
        UblkControl().delete(number, wait=False)
    assert left == []
    run("modprobe", "-r", "ublk_drv")  # other tests go without; and it is in no use


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Here]:
    monkeypatch.setenv("DMCOPY_RUNTIME_DIR", "")  # it is set again, and put back at the end
    monkeypatch.setenv("DMCOPY_ENGINE", "user")
    with of_its_own() as made:
        yield made


def test_a_file_system_stays_mounted_while_its_server_is_killed_and_resumed(here: Here) -> None:
    """It is written all the time, and has a snapshot: nothing flushed is lost, in neither."""
    image, cow = here.image("image", SIZE), here.image("cow", SIZE)
    here.dm("create", "data", "--table", f"0 {SECTORS} linear {image} 0")
    node = here.mapper.path("data")
    device = os.path.realpath(node)
    assert device.startswith("/dev/ublkb")
    here.run("mkfs.ext4", "-q", node)
    point = here.mounted(node)
    (point / "old").write_bytes(os.urandom(MIB))
    old = (point / "old").read_bytes()
    here.dmcopy("snapshot", "take", "then", "data", cow)
    writer = Writer(point)
    writer.start()
    try:
        for _ in range(3):
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
    point = here.mounted(node)
    writer.check()
    then = here.mounted(here.mapper.path("then"))
    assert (then / "old").read_bytes() == old
    here.run("umount", then)
    here.run("umount", point)
    here.dmcopy("snapshot", "drop", "then")
    here.dm("remove", "data")


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
    # Another's is left alone.
    other = UblkControl().add("00000000000000aa", depth=4, max_bytes=4096, recoverable=True)
    here.dm("reap")
    until(lambda: not writer.is_alive(), "the writer to end")
    assert writer.error is not None
    here.run("umount", point)
    assert Ledger().entries() == []
    assert [UblkControl().info(one).mark for one in UblkControl().numbers()] == ["00000000000000aa"]
    UblkControl().delete(other.number)
    here.run("e2fsck", "-fy", image, code=None)
    run("mount", image, point)
    try:
        writer.check()
    finally:
        run("umount", point)


def test_tables_change_while_it_is_written(here: Here) -> None:
    image = here.image("image", SIZE)
    half = SECTORS // 2
    one = f"0 {SECTORS} linear {image} 0"
    two = f"0 {half} linear {image} 0\n{half} {half} linear {image} {half}"
    here.dm("create", "data", "--table", one)
    node = here.mapper.path("data")
    words = "--rw=randrw --bsrange=512-64k --size=24M --iodepth=16 --ioengine=libaio --direct=1"
    fio = subprocess.Popen(
        ["fio", "--name=x", f"--filename={node}", *words.split(), "--verify=crc32c"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    changes = 0
    while fio.poll() is None:
        changes += 1
        here.dm("suspend", "data")
        here.dm("load", "data", "--table", (one, two)[changes % 2])
        here.dm("resume", "data")
        time.sleep(0.2)
    said = fio.communicate(timeout=SECONDS)[0]
    assert fio.returncode == 0, said
    assert changes > 2
    # A driver that cannot change a size: one that nobody uses is made anew.
    smaller = f"0 {half} linear {image} 0"
    with open(node, "rb"):
        here.dm("load", "data", "--table", smaller)
        here.dm("resume", "data")
        if not UblkControl().can_resize:
            assert size(node) == SIZE
    here.dm("load", "data", "--table", one)
    here.dm("resume", "data")
    here.dm("load", "data", "--table", smaller)
    here.dm("resume", "data")
    assert size(node) == SIZE // 2
    assert here.mapper.info("data").number == (
        os.major(os.stat(node).st_rdev),
        os.minor(os.stat(node).st_rdev),
    )
    here.dm("remove", "data")


def size(node: str) -> int:
    return int(run("blockdev", "--getsize64", node))


def test_each_kind_of_request_reaches_the_device(tmp_path: Path) -> None:
    disk, log = tmp_path / "disk", tmp_path / "log"
    for path in (disk, log):
        with open(path, "wb") as file:
            file.truncate(SIZE)
    with Serving("--via", "ublk", "--table", f"0 65536 log-writes {disk} {log}") as serving:
        (node,) = serving.found
        queue = Path("/sys/block", Path(node).name, "queue")
        shown = {
            name: (queue / name).read_text().strip()
            for name in ("write_cache", "fua", "logical_block_size", "nr_requests")
        }
        assert shown == {
            "write_cache": "write back",
            "fua": "1",
            "logical_block_size": "512",
            "nr_requests": "63",
        }
        run("dd", "if=/dev/urandom", f"of={node}", "bs=1M", "count=4", "oflag=direct")
        run("dd", "if=/dev/zero", f"of={node}", "bs=4k", "count=1", "seek=3", "oflag=direct,dsync")
        run("blkdiscard", "-o", 1 << 20, "-l", 1 << 20, node)
        run("blkdiscard", "--zeroout", "-o", 2 << 20, "-l", 1 << 20, node)
        with open(node, "r+b") as file:
            os.fsync(file.fileno())
        assert serving.end() == (0, "")
    content = disk.read_bytes()
    assert content[12288:16384] == bytes(4096)
    assert content[2 << 20 : 3 << 20] == bytes(1 << 20)
    assert any(content[: 1 << 20])
    assert any(content[3 << 20 : 4 << 20])
    dumped = json.loads(run(sys.executable, "-m", "dmcopy", "write-log", "dump", "--json", log))
    kinds = {entry["kind"] for entry in dumped["entries"]}
    assert {"write", "write fua", "flush", "discard"} <= kinds


def test_one_that_is_served_in_the_foreground(tmp_path: Path) -> None:
    """Killed, its users get errors, with however much under way; ended, it names them."""
    disk = tmp_path / "disk"
    with open(disk, "wb") as file:
        file.truncate(SIZE)
    serving = Serving("--via", "ublk", "--table", f"0 {SECTORS} delay {disk} 0 0 {disk} 0 30000")
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
    assert UblkControl().numbers() == []
    serving = Serving("--via", "ublk", disk)
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
    until(lambda: UblkControl().numbers() == [], "the device to go with its last user")
