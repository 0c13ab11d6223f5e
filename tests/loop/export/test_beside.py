"""Commands that hang or are killed: they hold up no other device, and leave nothing frozen."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from dmcopy.asking import VERSION
from dmcopy.runtime import control_path
from dmcopy.table import Error, Table
from tests.loop.export.here import MIB, SECONDS, Here
from tests.waiting import Program, until

pytestmark = pytest.mark.loop
SECTORS = 32 * MIB >> 9
HOUR = 3_600_000


class Asked:
    """A question that is sent, and whose answer is not waited for; closed, its client is gone."""

    def __init__(self, do: str, **words: object) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(control_path())
        request = {"version": VERSION, "do": do, **words}
        self.socket.sendall(json.dumps(request).encode() + b"\n")

    def is_answered(self) -> bool:
        return bool(select.select([self.socket], [], [], 0)[0])

    def answer(self) -> dict[str, object]:
        self.socket.settimeout(SECONDS)
        with self.socket.makefile("rb") as stream:
            found: dict[str, object] = json.loads(stream.readline())
        self.socket.close()
        return found


class Slow:
    """`slow` over `below`, whose reads are answered when it is suspended, and not before."""

    def __init__(self, here: Here, stack: ExitStack) -> None:
        self._here = here
        self._stack = stack
        self.image = here.image("disk.img", SECTORS << 9)
        self.below = here.mapper.create("below", Table.parse(f"0 {SECTORS} linear {self.image} 0"))
        self.table = Table.parse(f"0 {SECTORS} linear {self.below.path} 0")
        self.slow = here.mapper.create("slow", self.table)

    def read(self) -> subprocess.Popen[bytes]:
        """Begin a read that waits in the device below."""
        image = self.image
        self.below.swap(Table.parse(f"0 {SECTORS} delay {image} 0 {HOUR} {image} 0 0"))
        words = [f"if={self.slow.path}", "of=/dev/null", "bs=4096", "count=1", "iflag=direct"]
        reader = subprocess.Popen(["dd", *words], stderr=subprocess.DEVNULL)
        self._stack.callback(reader.wait)
        until(lambda: str(self.below.status).split()[0] != "0", "a read to come")
        return reader

    def let_go(self) -> None:
        self.below.swap(Table.parse(f"0 {SECTORS} linear {self.image} 0"))


@pytest.fixture
def slow(here: Here) -> Iterator[Slow]:
    with ExitStack() as stack:
        made = Slow(here, stack)
        try:
            yield made
        finally:
            made.let_go()
    here.dm("remove", "slow", "below")


def test_a_suspend_that_hangs_holds_up_no_other_device(here: Here, slow: Slow) -> None:
    """Its own device's resume waits for it, as in the kernel; killed, it is undone."""
    reader = slow.read()
    suspend = Asked("suspend", name="slow", flush=True)
    for words in (
        ("create", "other", "--table", "0 8 zero"),
        *(("suspend", "other"), ("resume", "other"), ("remove", "other")),
        ("load", "slow", "--table", f"0 {SECTORS} error"),
        *(("table", "slow"), ("status", "slow"), ("clear", "slow")),
    ):
        here.dm(*words)
    assert not suspend.is_answered()
    resume = Asked("resume", name="slow", flush=True)
    here.dm("info", "slow")
    assert not resume.is_answered()
    suspend.socket.close()
    assert resume.answer()["ok"]
    assert not slow.slow.info.suspended
    assert reader.poll() is None
    suspend = Asked("suspend", name="slow", flush=True)
    slow.let_go()  # by a suspend of the device below
    assert suspend.answer()["ok"]
    assert reader.wait(SECONDS) == 0
    slow.slow.resume()


def test_two_hang_and_each_ends_by_itself(here: Here, slow: Slow) -> None:
    """The one above waits for the one below, which is resumed."""
    slow.below.suspend()
    words = [f"if={slow.slow.path}", "of=/dev/null", "bs=4096", "count=1", "iflag=direct"]
    with Program(["dd", *words], stderr=subprocess.DEVNULL) as reader:
        until(lambda: _in_flight(slow.slow.path), "a read to come")
        asked = Asked("suspend", name="slow", flush=True)
        wiped = Table.of(SECTORS, Error())
        here.mapper.load("slow", wiped)
        slow.below.resume()
        assert asked.answer()["ok"]
        assert reader.wait(SECONDS) == 0
    slow.slow.resume()
    assert slow.slow.table == wiped
    slow.slow.swap(slow.table)


def _in_flight(node: str) -> bool:
    name = os.path.basename(os.path.realpath(node))
    return sum(map(int, Path(f"/sys/block/{name}/inflight").read_text().split())) > 0


KILLED = """
import os, signal, socket, sys
from dmcopy.asking import ask
from dmcopy.block import freezing
from dmcopy.mapper.served import ServedMapper
from dmcopy.runtime import control_path
from dmcopy.shim.served import ServedDevices

def killed(*words):
    os.kill(os.getpid(), signal.SIGKILL)

def killed_behind(call):
    return lambda *words: (call(*words), killed())

moment, client = sys.argv[1:]
if moment == "told":
    freezing.freeze = killed
elif moment == "frozen":
    freezing.freeze = killed_behind(freezing.freeze)
elif moment == "asked":
    sendall = socket.socket.sendall

    def sent(self, data):
        sendall(self, data)
        if b'"suspend"' in data:
            ask(control_path(), {"do": "ls"})  # which is read behind the other
            killed()

    socket.socket.sendall = sent
{"mapper": ServedMapper, "shim": ServedDevices}[client]().suspend("slow", flush=True, lockfs=True)
killed()
"""


@pytest.mark.parametrize("client", ["mapper", "shim"])
def test_a_client_is_killed_and_nothing_stays_frozen(here: Here, slow: Slow, client: str) -> None:
    # Otherwise the kernel's ext4lazyinit writes tables later, holds the file system meanwhile, and
    # what it writes waits for the suspend, which waits for the file system.
    here.run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", slow.slow.path)
    point = here.mounted(slow.slow.path)
    reader = None
    for moment in ("told", "frozen", "suspended", "asked"):
        if moment == "asked":  # the suspend then waits for this
            reader = slow.read()
        words = [sys.executable, "-c", KILLED, moment, client]
        assert subprocess.run(words, check=False).returncode == -signal.SIGKILL
        assert slow.slow.info.suspended == (moment == "suspended")
        if moment == "suspended":
            slow.slow.resume()
        here.run("dd", "if=/dev/zero", f"of={point}/{moment}", "bs=4096", "count=1", "conv=fsync")
    assert reader is not None
    assert reader.poll() is None
    slow.let_go()
    assert reader.wait(SECONDS) == 0
    here.run("umount", point)


def test_a_node_that_is_slow_to_make_holds_up_no_other_device(here: Here) -> None:
    """A loop device has what is below it flushed when it is made.

    To make another loop device is held up by the kernel: both find the same one free.
    """
    image, other = here.image("disk.img", SECTORS << 9), here.image("other.img", SECTORS << 9)
    linear = Table.parse(f"0 {SECTORS} linear {image} 0")
    below = here.mapper.create("below", linear)
    here.dm("create", "other", "--table", f"0 {SECTORS} linear {other} 0")
    below.swap(Table.parse(f"0 {SECTORS} delay {image} 0 0 {image} 0 0 {image} 0 {HOUR}"))
    asked = Asked("create", name="slow", table=f"0 {SECTORS} linear {below.path} 0", uuid="")
    until(lambda: str(below.status).split()[2] != "0", "a flush to come")
    here.dm("suspend", "other")
    here.dm("load", "other", "--table", f"0 {SECTORS} linear {other} 0")
    here.dm("resume", "other")
    here.dm("rename", "other", "another")
    assert not asked.is_answered()
    below.swap(linear)
    assert asked.answer()["ok"]
    for name in ("slow", "below", "another"):
        here.dm("remove", name)
