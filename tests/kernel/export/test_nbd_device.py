"""Devices of the userspace engine as block devices of the kernel's nbd driver, by netlink."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmcopy.io.nbd import NbdControl
from tests.kernel.export.foreground import cut_off, each_kind_of_request
from tests.kernel.export.killed import SECTORS, SIZE, given_up, resumed, until
from tests.kernel.programs import run
from tests.loop.export.here import Here, of_its_own
from tests.unit.export.serving import Serving

pytestmark = pytest.mark.timeout(900)


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


@pytest.mark.kernel(cost=13)
def test_a_file_system_stays_mounted_while_its_server_is_killed_and_resumed(here: Here) -> None:
    node, image = resumed(here, times=1)
    assert os.path.realpath(node) == "/dev/nbd1"
    with open(node, "rb") as file:  # in use, it follows its table
        here.dm("load", "data", "--table", f"0 {SECTORS // 2} linear {image} 0")
        here.dm("resume", "data")
        assert file.seek(0, os.SEEK_END) == SIZE // 2
    run("udevadm", "settle")  # it reads what has another size
    here.dm("remove", "data")


@pytest.mark.kernel(either=True, cost=5)
def test_what_a_killed_server_left_is_given_up(here: Here) -> None:
    given_up(here)


@pytest.mark.kernel(either=True, cost=19)
def test_one_that_is_served_in_the_foreground(tmp_path: Path) -> None:
    each_kind_of_request("nbd-device", tmp_path)
    with Serving("--via", "nbd-device", "--read-only", tmp_path / "disk") as serving:
        assert run("blockdev", "--getro", *serving.found).strip() == "1"
        run("udevadm", "settle")
    cut_off("nbd-device", tmp_path, NbdControl().numbers)
