"""Devices of the userspace engine as block devices of the kernel's ublk driver."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmcopy.io.ublk import UblkControl
from tests.kernel.export.foreground import cut_off, each_kind_of_request
from tests.kernel.export.killed import SECONDS, SECTORS, SIZE, given_up, resumed
from tests.kernel.programs import run
from tests.loop.export.here import Here, of_its_own

pytestmark = [pytest.mark.kernel(cost={"6.12": 11}), pytest.mark.timeout(900)]


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
    node, _ = resumed(here, times=3)
    assert os.path.realpath(node).startswith("/dev/ublkb")
    here.dm("remove", "data")


def test_what_a_killed_server_left_is_given_up(here: Here) -> None:
    control = UblkControl()
    another = control.add("00000000000000aa", depth=4, max_bytes=4096, recoverable=True)
    given_up(here)
    assert [control.info(one).mark for one in control.numbers()] == [another.mark]
    control.delete(another.number)


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
    # A driver that cannot change a size: one that is not in use is made anew.
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
    each_kind_of_request("ublk", tmp_path, nr_requests="63")


def test_one_that_is_served_in_the_foreground(tmp_path: Path) -> None:
    cut_off("ublk", tmp_path, UblkControl().numbers)
