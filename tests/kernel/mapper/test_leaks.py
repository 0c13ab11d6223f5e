"""Nothing is left behind: after many cycles with others opening nodes, and after a kill -9."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmcopy.ledger import Ledger
from dmcopy.mapper.kernel import KernelMapper
from dmcopy.mapper.reap import Reaper
from dmcopy.table import Linear, Table, Zero

from ..conftest import devices
from .conftest import Disks, loops

pytestmark = pytest.mark.kernel(either=True)


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
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True) as opener:
        for number in range(count):
            with mapper.device(f"cycle{number % 3}", table):
                pass
        opened, _ = opener.communicate("", timeout=30)
    assert int(opened) > count // 10


@pytest.mark.parametrize(
    "batch", [0, *(pytest.param(number, marks=pytest.mark.long) for number in range(1, 10))]
)
def test_cycles_with_somebody_opening_the_nodes(
    mapper: KernelMapper, disks: Disks, batch: int
) -> None:
    """Make and remove 50 devices; ten batches, so that each is a sign of life, make 500."""
    if batch and os.environ.get("DMCOPY_TEST") != "long":
        pytest.skip("500 cycles: only with DMCOPY_TEST=long (./scripts/test --long)")
    _cycles(mapper, disks, 50)


VICTIM = """
import contextlib, os, sys, time
from dmcopy.mapper.kernel import KernelMapper
from dmcopy.ledger import Ledger
from dmcopy.table import Linear, Table

mapper = KernelMapper(ledger=Ledger(sys.argv[1]))
with contextlib.ExitStack() as stack:
    below = sys.argv[2]
    for name in ("one", "two", "three"):
        below = stack.enter_context(mapper.device(name, Table.of(64, Linear(below, 0)))).path
    mapper.load("dmcopy-two", Table.of(8, Linear(sys.argv[2], 0)))
    mapper.suspend("dmcopy-two")
    print("ready", flush=True)
    with open(below, "rb", buffering=0) as file:  # waits for the suspended device, for ever
        time.sleep(600)
"""


@pytest.fixture
def victim(disks: Disks, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    words = [sys.executable, "-c", VICTIM, str(tmp_path / "ledger.jsonl"), disks.b]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def test_reap_after_kill_9_leaves_the_machine_as_it_was(
    mapper: KernelMapper, victim: subprocess.Popen[str], tmp_path: Path
) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    other = mapper.create("dmcopy-somebody-elses", Table.of(8, Zero()), uuid="theirs")
    mapper.ledger.drop("dm", other.name)
    assert Reaper(mapper, ledger).run().removed == []  # its owner lives
    victim.send_signal(signal.SIGKILL)
    victim.wait(10)
    assert len(ledger.entries()) == 3
    result = Reaper(mapper, ledger).run()
    names = [entry.name for entry in result.removed]
    assert names == ["dmcopy-three", "dmcopy-two", "dmcopy-one"]
    assert (result.left, ledger.entries()) == ({}, [])
    assert [info.name for info in mapper.ls()] == [other.name]
    other.remove()


def test_reap_says_who_holds_what_it_leaves(
    mapper: KernelMapper, victim: subprocess.Popen[str], tmp_path: Path
) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    victim.send_signal(signal.SIGKILL)
    victim.wait(10)
    mapper.thaw("dmcopy-two")
    with open("/dev/mapper/dmcopy-two", "rb", buffering=0):
        result = Reaper(mapper, ledger).run()
        assert [entry.name for entry in result.removed] == ["dmcopy-three"]
        assert f"process {os.getpid()}" in result.left["dmcopy-two"]
        assert "dm device dmcopy-two" in result.left["dmcopy-one"]
    deadline = time.monotonic() + 10
    while Reaper(mapper, ledger).run().left:
        assert time.monotonic() < deadline
    assert ledger.entries() == []


def test_the_command_line_reaps(
    mapper: KernelMapper, victim: subprocess.Popen[str], tmp_path: Path
) -> None:
    victim.send_signal(signal.SIGKILL)
    victim.wait(10)
    code = (
        "import sys; from pathlib import Path; from dmcopy import ledger; "
        "ledger.default_path = lambda: Path(sys.argv[1]); "
        "from dmcopy.cli.main import main; sys.exit(main(['dm', 'reap', '--json']))"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "ledger.jsonl")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert '"left": {}' in done.stdout
    assert mapper.ls() == []


STUCK = """
import contextlib, sys
from dmcopy.ledger import Ledger
from dmcopy.mapper.kernel import KernelMapper
from dmcopy.table import Linear, Table

mapper = KernelMapper(ledger=Ledger(sys.argv[1]))
with contextlib.ExitStack() as stack:
    below = stack.enter_context(mapper.device("below", Table.of(64, Linear(sys.argv[2], 0))))
    below.suspend()
    print("ready", flush=True)
    # udev's look at it never ends
    stack.enter_context(mapper.device("top", Table.of(64, Linear(below.path, 0))))
"""


def _cookies(mapper: KernelMapper) -> list[str]:
    return mapper.dmsetup.run("udevcookies").splitlines()[1:]


def test_reap_removes_the_cookie_of_a_command_that_was_killed(
    mapper: KernelMapper, disks: Disks, tmp_path: Path
) -> None:
    assert _cookies(mapper) == []
    ledger = Ledger(tmp_path / "ledger.jsonl")
    words = [sys.executable, "-c", STUCK, str(ledger.path), disks.b]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        deadline = time.monotonic() + 30
        while "dmcopy-top" not in devices() or not _cookies(mapper):
            assert time.monotonic() < deadline
        process.kill()
    (line,) = _cookies(mapper)
    result = Reaper(mapper, ledger).run()
    found = [(entry.kind, entry.name) for entry in result.removed]
    assert found[:2] == [("dm", "dmcopy-top"), ("dm", "dmcopy-below")]
    assert [int(name, 16) for kind, name in found[2:]] == [int(line.split()[0], 16)]
    assert (result.left, _cookies(mapper)) == ({}, [])


WHOLE = """
import subprocess, sys, time
from pathlib import Path
from dmcopy.mapper.kernel import KernelMapper
from dmcopy.ledger import Ledger, identity
from dmcopy.block.loop import loop_device
from dmcopy.table import Linear, Table

folder = Path(sys.argv[2])
(folder / "disk").write_bytes(bytes(4 << 20))
(folder / "mnt").mkdir()
ledger = Ledger(sys.argv[1])
mapper = KernelMapper(ledger=ledger)
table = Table.of(8192, Linear("", 0))
process = subprocess.Popen(["sleep", "600"])
ledger.add("server", "sleep", uuid=identity(process.pid))
with loop_device(folder / "disk", ledger=ledger) as loop:
    with mapper.device("whole", table.with_devices(lambda _: loop.path)) as device:
        subprocess.run(["mkfs.ext4", "-q", device.path], check=True)
        ledger.add("mount", str(folder / "mnt"), uuid=device.path)
        subprocess.run(["mount", device.path, folder / "mnt"], check=True)
        print("ready", flush=True)
        time.sleep(600)
"""


def _machine() -> tuple[set[str], dict[str, str], str]:
    mounted = "\n".join(
        line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()
    )
    return devices(), loops(), mounted


def test_reap_removes_servers_mounts_devices_and_loops(
    mapper: KernelMapper, tmp_path: Path
) -> None:
    folder = Path("/dev/shm") / f"dmcopy-whole-{os.getpid()}"
    folder.mkdir()
    before = _machine()
    words = [sys.executable, "-c", WHOLE, str(tmp_path / "ledger.jsonl"), str(folder)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert _machine() != before
        process.kill()
    ledger = Ledger(tmp_path / "ledger.jsonl")
    result = Reaper(mapper, ledger).run()
    kinds = [entry.kind for entry in result.removed]
    assert (kinds, result.left) == (["server", "mount", "dm", "loop"], {})
    assert _machine() == before
    shutil.rmtree(folder)
