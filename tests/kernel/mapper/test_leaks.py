"""Nothing is left behind: after many cycles with others opening nodes, and after a kill -9."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dmcopy.block.loop import loop_device
from dmcopy.cli.main import main
from dmcopy.ledger import Ledger, identity
from dmcopy.mapper.kernel import KernelMapper
from dmcopy.mapper.reap import Reaper
from dmcopy.table import Linear, Table, Zero
from tests.kernel.forked import Forked
from tests.kernel.programs import run
from tests.waiting import Program

from ..conftest import devices
from .conftest import Disks, loops

pytestmark = pytest.mark.kernel(either=True, cost=3)

SECONDS = 120.0  # for what takes one or two in a guest
BATCHES = 20 if os.environ.get("DMCOPY_TEST") == "long" else 1
"""Of 25 devices each, so that each is a sign of life."""


# Opens and closes the nodes at random, as udev, blkid and others do, until its input ends. A node
# that was open for writing makes udev look at the device once more.
OPENER = """
import random, select, sys
from pathlib import Path

chance, opened = random.Random(1), 0
while not select.select([sys.stdin], [], [], chance.uniform(0, 0.2))[0]:
    for node in Path("/dev/mapper").glob("dmcopy-cycle*"):
        try:
            with open(node, chance.choice(["rb", "r+b"]), buffering=0):
                opened += 1
                select.select([], [], [], chance.uniform(0, 0.1))
        except OSError:
            continue
print(opened)
"""


def _cycles(mapper: KernelMapper, disks: Disks, count: int) -> None:
    table = Table.of(8, Linear(disks.a, 0))
    pipe = subprocess.PIPE
    words = [sys.executable, "-c", OPENER]
    with Program(words, stdin=pipe, stdout=pipe, text=True) as opener:
        for number in range(count):
            with mapper.device(f"cycle{number % 3}", table):
                pass
        opened, _ = opener.communicate("", timeout=SECONDS)
    assert int(opened) > count // 10


@pytest.mark.parametrize("batch", range(BATCHES))
def test_cycles_with_somebody_opening_the_nodes(
    mapper: KernelMapper, disks: Disks, batch: int
) -> None:
    del batch
    _cycles(mapper, disks, 25)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """The ledger of those that are killed."""
    return Ledger(tmp_path / "ledger.jsonl")


@pytest.fixture
def victim(disks: Disks, ledger: Ledger) -> Iterator[Forked]:
    def work(ready: Callable[[], object]) -> None:
        mapper = KernelMapper(ledger=ledger)
        with contextlib.ExitStack() as stack:
            below = disks.b
            for name in ("one", "two", "three"):
                table = Table.of(64, Linear(below, 0))
                below = stack.enter_context(mapper.device(name, table)).path
            mapper.load("dmcopy-two", Table.of(8, Linear(disks.b, 0)))
            mapper.suspend("dmcopy-two")
            ready()
            with open(below, "rb", buffering=0):  # waits for the suspended device, for ever
                time.sleep(600)

    with Forked(work) as process:
        yield process


def test_reap_after_kill_9_leaves_the_machine_as_it_was(
    mapper: KernelMapper, victim: Forked, ledger: Ledger
) -> None:
    other = mapper.create("dmcopy-somebody-elses", Table.of(8, Zero()), uuid="theirs")
    mapper.ledger.drop("dm", other.name)
    assert Reaper(mapper, ledger).run().removed == []  # its owner lives
    victim.kill()
    assert len(ledger.entries()) == 3
    result = Reaper(mapper, ledger).run()
    names = [entry.name for entry in result.removed]
    assert names == ["dmcopy-three", "dmcopy-two", "dmcopy-one"]
    assert (result.left, ledger.entries()) == ({}, [])
    assert [info.name for info in mapper.ls()] == [other.name]
    other.remove()


def test_reap_says_who_holds_what_it_leaves(
    mapper: KernelMapper, victim: Forked, ledger: Ledger
) -> None:
    victim.kill()
    mapper.thaw("dmcopy-two")
    with open("/dev/mapper/dmcopy-two", "rb", buffering=0):
        result = Reaper(mapper, ledger).run()
        assert [entry.name for entry in result.removed] == ["dmcopy-three"]
        assert f"process {os.getpid()}" in result.left["dmcopy-two"]
        assert "dm device dmcopy-two" in result.left["dmcopy-one"]
    deadline = time.monotonic() + SECONDS
    while left := Reaper(mapper, ledger).run().left:
        assert time.monotonic() < deadline, left
    assert ledger.entries() == []


def test_the_command_line_reaps(
    mapper: KernelMapper,
    victim: Forked,
    ledger: Ledger,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    victim.kill()
    monkeypatch.setattr("dmcopy.ledger.default_path", lambda: ledger.path)
    assert main(["dm", "reap", "--json"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert '"left": {}' in said.out
    assert mapper.ls() == []


def _cookies(mapper: KernelMapper) -> list[str]:
    return mapper.dmsetup.run("udevcookies").splitlines()[1:]


def test_reap_removes_the_cookie_of_a_command_that_was_killed(
    mapper: KernelMapper, disks: Disks, ledger: Ledger
) -> None:
    assert _cookies(mapper) == []

    def work(ready: Callable[[], object]) -> None:
        mapper = KernelMapper(ledger=ledger)
        with mapper.device("below", Table.of(64, Linear(disks.b, 0))) as below:
            below.suspend()
            ready()
            with mapper.device("top", Table.of(64, Linear(below.path, 0))):
                raise AssertionError("udev's look at it never ends")

    with Forked(work):
        deadline = time.monotonic() + SECONDS
        while "dmcopy-top" not in devices() or not _cookies(mapper):
            assert time.monotonic() < deadline, "waited for udev to be at the new device"
    (line,) = _cookies(mapper)
    result = Reaper(mapper, ledger).run()
    found = [(entry.kind, entry.name) for entry in result.removed]
    assert found[:2] == [("dm", "dmcopy-top"), ("dm", "dmcopy-below")]
    assert [int(name, 16) for kind, name in found[2:]] == [int(line.split()[0], 16)]
    assert (result.left, _cookies(mapper)) == ({}, [])


def _machine() -> tuple[set[str], dict[str, str], str]:
    mounted = "\n".join(
        line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()
    )
    return devices(), loops(), mounted


def test_reap_removes_servers_mounts_devices_and_loops(
    mapper: KernelMapper, ledger: Ledger
) -> None:
    folder = Path("/dev/shm") / f"dmcopy-whole-{os.getpid()}"
    folder.mkdir()
    (folder / "disk").write_bytes(bytes(4 << 20))
    (folder / "mnt").mkdir()
    before = _machine()

    def work(ready: Callable[[], object]) -> None:
        process = subprocess.Popen(["sleep", "600"])
        ledger.add("server", "sleep", uuid=identity(process.pid))
        with loop_device(folder / "disk", ledger=ledger) as loop:
            table = Table.of(8192, Linear(loop.path, 0))
            with KernelMapper(ledger=ledger).device("whole", table) as device:
                run("mkfs.ext4", "-q", device.path)
                ledger.add("mount", str(folder / "mnt"), uuid=device.path)
                run("mount", device.path, folder / "mnt")
                ready()
                time.sleep(600)

    with Forked(work):
        assert _machine() != before
    result = Reaper(mapper, ledger).run()
    kinds = [entry.kind for entry in result.removed]
    assert (kinds, result.left) == (["server", "mount", "dm", "loop"], {})
    assert _machine() == before
    shutil.rmtree(folder)
