"""The power is cut in the middle of a resync, and of a write load: what is copied again.

These run on the host and boot guests of their own, whose disks outlive them.
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path

import pytest

from dmcopy import vm
from dmcopy.mirror.logfile import read_log

KERNELS = ("6.1", "6.12")
SECTORS = 65536
REGION = 512
REGIONS = SECTORS // REGION
BLOCK = 4096
COMMON = f"""
import json, mmap, os, sys, time
from dmcopy.mapper.kernel import KernelMapper
from dmcopy.table import Table
from dmcopy.workflows.journal import Journal
from dmcopy.workflows.mirror import Mirror
from dmcopy.workflows.mirror_make import MirrorOptions, plan_from_legs
from dmcopy.workflows.session import Session

a, b, log = ("/dev/disk/by-id/virtio-" + serial for serial in ("a", "b", "log"))
mapper = KernelMapper()
session = Session(mapper, Journal(sys.argv[1]))
options = MirrorOptions(log=log, region_size={REGION}, reuse_log="reuse" in sys.argv)

def written():
    name = os.path.basename(os.path.realpath(b))
    return int(open(f"/sys/block/{{name}}/stat").read().split()[6])
"""
# The second leg takes 50 ms for each write, so that the cut comes long before the last region.
RESYNC = f"""
mapper.create("slow", Table.read("0 {SECTORS} delay " + b + " 0 0 " + b + " 0 50"), keep=True)
session.run(plan_from_legs(mapper, "home", [a, "/dev/mapper/slow"], options), wait=False)
while Mirror.read(mapper, "home").status.sync.used < 20:
    time.sleep(0.05)
print(json.dumps(Mirror.read(mapper, "home").status.sync.used), flush=True)
time.sleep(600)
"""
AGAIN = """
record = session.interrupted("mirror", "home")
advice = session.advice(record) if record else ""
if record:
    session.undo("mirror", "home")
before = written()
session.run(plan_from_legs(mapper, "home", [a, b], options), timeout=300)
print(json.dumps({"written": written() - before, "advice": advice}), flush=True)
"""
LOAD = f"""
disk = os.open("/dev/mapper/home", os.O_RDWR | os.O_DIRECT)
block = mmap.mmap(-1, {BLOCK})
for number in range(1, 10**6):
    block[:] = number.to_bytes(8, "little") * ({BLOCK} // 8)
    os.pwrite(disk, block, number * 37 % {REGIONS} * {REGION} * 512)
    os.fdatasync(disk)
    print(number, flush=True)
"""


class Machine:
    """Three disks in files and a journal, and guests that are switched off without a warning."""

    def __init__(self, folder: Path, kernel: str) -> None:
        self.kernel = kernel
        self.shared = folder / "shared"
        self.shared.mkdir()
        self.paths = {serial: folder / serial for serial in ("a", "b", "log")}
        size = {"a": SECTORS * 512, "b": SECTORS * 512, "log": 1 << 20}
        self.disks = [vm.Disk(size[name], name, path) for name, path in self.paths.items()]
        self.paths["a"].write_bytes(random.Random(0).randbytes(SECTORS * 512))

    def run(self, script: str, *words: str, stop: int = 0, cut: bool = False) -> list[str]:
        """Run a script in a new guest until it ends, or has said `stop` lines; cut the power."""
        said = bytearray()
        with vm.guest(kernel=self.kernel, disks=self.disks, share=[self.shared]) as guest:
            argv = [sys.executable, "-c", COMMON + script, str(self.shared / "journal"), *words]
            errors = bytearray()
            command = guest.start(argv, stdout=said.extend, stderr=errors.extend)
            deadline = time.monotonic() + 600
            while (status := guest.poll(command, 0.5)) is None:
                if stop and said.count(b"\n") >= stop:
                    break
                assert time.monotonic() < deadline, errors.decode()
            assert status in (None, 0), errors.decode()
            if cut:
                # Tears the writes of the legs, and loses those of the log: regions stay dirty.
                guest.kill(random.Random(5))
        return bytes(said).decode().splitlines()

    def dirty(self) -> set[int]:
        return set(read_log(str(self.paths["log"])).dirty())

    def leg(self, name: str) -> bytes:
        return self.paths[name].read_bytes()


def region(data: bytes, number: int) -> bytes:
    return data[number * REGION * 512 : (number + 1) * REGION * 512]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_power_cut_costs_what_is_dirty(
    request: pytest.FixtureRequest, tmp_path: Path, kernel: str
) -> None:
    if kernel not in str(request.config.getoption("--vm") or "").split(","):
        pytest.skip(f"boots guests: only with --vm {kernel}")
    machine = Machine(tmp_path, kernel)
    (in_sync,) = machine.run(RESYNC, stop=1, cut=True)
    dirty = machine.dirty()
    assert int(in_sync) - 1 <= REGIONS - len(dirty) < REGIONS - 10, "cut in the middle"
    clean = set(range(REGIONS)) - dirty
    a, b = machine.leg("a"), machine.leg("b")
    assert all(region(a, number) == region(b, number) for number in clean)

    lines = machine.run(AGAIN + LOAD, "reuse", stop=30, cut=True)
    facts, *numbers = lines
    assert json.loads(facts)["written"] == len(dirty) * REGION
    assert "the machine was restarted since" in json.loads(facts)["advice"]
    flushed = {number * 37 % REGIONS: number for number in map(int, numbers)}

    dirty = machine.dirty()
    assert 0 < len(dirty) < REGIONS // 2
    a, b = machine.leg("a"), machine.leg("b")
    differing = {n for n in range(REGIONS) if region(a, n) != region(b, n)}
    assert differing <= dirty

    (facts,) = machine.run(AGAIN, "reuse")
    assert json.loads(facts)["written"] == len(dirty) * REGION
    assert machine.leg("a") == machine.leg("b")
    assert not machine.dirty()
    for number, value in flushed.items():
        there = int.from_bytes(region(machine.leg("a"), number)[:8], "little")
        assert there >= value
