"""A device that `dmcopy serve` serves in the foreground, whatever driver it is of."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.kernel.export.killed import SECONDS, SECTORS, SIZE, until
from tests.kernel.programs import run
from tests.unit.export.serving import Serving


def image(path: Path) -> Path:
    with open(path, "wb") as file:
        file.truncate(SIZE)
    return path


def each_kind_of_request(via: str, folder: Path, **shown: str) -> None:
    """Have each kind of request reach a device. `shown`: what its queue says besides."""
    disk, log = image(folder / "disk"), image(folder / "log")
    with Serving("--via", via, "--table", f"0 65536 log-writes {disk} {log}") as serving:
        (node,) = serving.found
        queue = Path("/sys/block", Path(node).name, "queue")
        expected = {"write_cache": "write back", "fua": "1", "logical_block_size": "512", **shown}

        def found() -> dict[str, str]:
            return {name: (queue / name).read_text().strip() for name in expected}

        until(lambda: found() == expected, f"the queue to say {expected}")
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


def cut_off(via: str, folder: Path, numbers: Callable[[], list[int]]) -> None:
    """Kill a server with many requests under way, and end another whose device is mounted.

    The users of the first get errors, those of the second are named. `numbers`: those of the
    driver's devices.
    """
    disk, others = image(folder / "disk"), numbers()
    serving = Serving("--via", via, "--table", f"0 {SECTORS} delay {disk} 0 0 {disk} 0 30000")
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
    serving.process.communicate(timeout=SECONDS)
    assert fio.wait(SECONDS) != 0
    run(sys.executable, "-m", "dmcopy", "dm", "reap")
    assert numbers() == others
    serving = Serving("--via", via, disk)
    run("mkfs.ext4", "-q", *serving.found)
    (folder / "mnt").mkdir()
    run("mount", *serving.found, folder / "mnt")
    code, said = serving.end()
    for stream in (serving.process.stdout, serving.process.stderr):
        assert stream is not None
        stream.close()
    assert code == 6
    assert f"{folder}/mnt" in said
    assert "they were cut off" in said
    run("umount", folder / "mnt")
    until(lambda: numbers() == others, "the device to go with its last user")
