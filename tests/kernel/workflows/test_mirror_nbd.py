"""A leg on another machine: a stock NBD server in another network namespace, lost and found.

The commands are those of the guide, where the far machine is called so.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmcopy.cli.main import main
from dmcopy.errors import PartialError
from dmcopy.table import Linear, Table
from dmcopy.workflows.mirror import Mirror
from dmcopy.workflows.mirror_resync import Waiter
from tests.docs.blocks import read_block
from tests.kernel.programs import run

from .mirror_rig import DEADLINE, SECTORS, Rig, content, eventually

pytestmark = [pytest.mark.kernel(either=True, cost=30), pytest.mark.timeout(900)]

SERVE, CONNECT, MAKE, CONNECT_AGAIN, REPLACE = (
    shlex.split(line.partition("# ")[2], comments=True)
    for line in read_block("dmcopy/guide/mirrors.md").splitlines()
)
REGION = 1024
SPACE = "dmcopy-far"
ADDRESS = "10.99.0.2"
PORT = SERVE[-1]


class Far:
    """The other machine: a network namespace with a server of one disk."""

    def __init__(self, folder: Path, disk: str) -> None:
        self._config = folder / "nbd.conf"
        self._config.write_text(
            f"[generic]\n[leg]\nexportname = {disk}\nflush = true\nfua = true\n"
        )
        self._disk = disk
        self.server: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        words = [str(self._config) if word == self._config.name else word for word in SERVE]
        words[:1] = ["ip", "netns", "exec", SPACE, words[0], "-d"]
        self.server = subprocess.Popen(words, stderr=subprocess.DEVNULL, start_new_session=True)
        eventually(self._answers, "the NBD server answers")

    def _answers(self) -> bool:
        words = ["ip", "netns", "exec", SPACE, "ss", "-Hltn", f"sport = :{PORT}"]
        return bool(run(*words))

    def freeze(self) -> None:
        """Let it take no more requests, and answer none."""
        self._signal(signal.SIGSTOP)

    def cut_off(self) -> None:
        self._signal(signal.SIGKILL)
        assert self.server is not None
        self.server.wait(30)
        self.server = None

    def _signal(self, number: signal.Signals) -> None:
        assert self.server is not None
        os.killpg(self.server.pid, number)  # it has a process for each client


@pytest.fixture
def far(rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Far]:
    monkeypatch.setattr("dmcopy.ledger.default_path", lambda: rig.mapper.ledger.path)
    monkeypatch.setattr("dmcopy.workflows.journal.default_folder", lambda: tmp_path / "journal")
    for program in ("nbd-server", "nbd-client", "ip"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program} (apt-get install nbd-server nbd-client iproute2)")
    run("modprobe", "nbd", "nbds_max=4")
    run("modprobe", "veth")
    run("ip", "netns", "add", SPACE)
    run("ip", "link", "add", "near", "type", "veth", "peer", "name", "far", "netns", SPACE)
    run("ip", "addr", "add", "10.99.0.1/24", "dev", "near")
    run("ip", "link", "set", "near", "up")
    for words in (f"addr add {ADDRESS}/24 dev far", "link set far up", "link set lo up"):
        run("ip", "-n", SPACE, *words.split())
    found = Far(tmp_path, rig.b)
    found.start()
    yield found
    for number in (0, 1):
        subprocess.run(["nbd-client", "-d", f"/dev/nbd{number}"], check=False, timeout=60)
    if found.server is not None:
        found.cut_off()
    run("ip", "netns", "delete", SPACE)


def connect(words: list[str]) -> None:
    # Without a timeout what was on its way when the server died never ends (nbd_xmit_timeout).
    assert words[words.index("-timeout") + 1] == "10"
    run(*({"far": ADDRESS, "10": "3"}.get(word, word) for word in words))
    node = words[-1]
    eventually(lambda: int(sectors(node)) == SECTORS, f"{node} has its size")


def sectors(node: str) -> str:
    return (Path("/sys/block") / Path(node).name / "size").read_text()


def sectors_written(node: str) -> int:
    return int((Path("/sys/block") / Path(node).name / "stat").read_text().split()[6])


class Writer(threading.Thread):
    """One write, past the page cache, which may be held."""

    def __init__(self, at: int) -> None:
        super().__init__(daemon=True)
        self._at = at
        self.start()

    def run(self) -> None:
        fd = os.open("/dev/mapper/home", os.O_RDWR | os.O_DIRECT)
        with mmap.mmap(-1, 4096) as block, contextlib.closing(os.fdopen(fd, "r+b", 0)):
            block[:] = os.urandom(4096)
            with contextlib.suppress(OSError):  # when the test has failed
                os.pwrite(fd, block, self._at * REGION * 512)


def write(*regions: int) -> None:
    for number in regions:
        writer = Writer(number)
        writer.join(DEADLINE)
        assert not writer.is_alive()


def test_a_leg_over_the_network_is_cut_off_mid_write_and_comes_back(rig: Rig, far: Far) -> None:
    mapper = rig.mapper
    connect(CONNECT)
    mapper.create("home", Table.of(SECTORS, Linear(rig.a, 0)), keep=True)
    make = [rig.c if word == "/dev/sdc" else word for word in MAKE[1:]]
    assert main([*make, f"--region-size={REGION}"]) == 0
    write(3, 7, 12)
    eventually(lambda: not dirty(rig), "the log is all clean: nothing is being written")

    far.freeze()
    held = Writer(9)
    eventually(lambda: dirty(rig) == {9}, "the write is on its way")
    far.cut_off()
    eventually(lambda: Mirror.read(mapper, "home").failed == (1,), "degraded")
    assert Mirror.read(mapper, "home").status.health == "AD"
    with pytest.raises(PartialError, match="leg 1, /dev/nbd0: a write failed"):
        Waiter(mapper).wait("home", DEADLINE)
    more = Writer(12)  # held as well: a leg has failed
    time.sleep(0.5)
    assert held.is_alive()

    far.start()
    connect(CONNECT_AGAIN)
    before, lost = sectors_written("/dev/nbd1"), dirty(rig)
    assert 9 in lost
    assert len(lost) <= 2
    assert main(REPLACE[1:]) == 0
    for writer in (held, more):
        writer.join(DEADLINE)
        assert not writer.is_alive()
    eventually(lambda: not dirty(rig), "the log is all clean again")
    assert Mirror.read(mapper, "home").status.health == "AA"
    held_writes = 2 * 4096 // 512
    assert sectors_written("/dev/nbd1") - before <= len(lost) * REGION + held_writes
    assert main(["mirror", "drop", "home"]) == 0
    rig.remove("home")
    assert content(rig.a) == content(rig.b)


def dirty(rig: Rig) -> set[int]:
    log = Mirror.read(rig.mapper, "home").read_log()
    assert log is not None
    return set(log.dirty())
