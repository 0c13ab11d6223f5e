"""The pytest plugin: tests marked `kernel` run in guests, one for each kernel that `--vm` names.

    pytest --vm 6.1,6.12        each marked test becomes test[6.1] and test[6.12]; one that is
                                marked kernel(either=True) becomes one of the two, by turns
    sudo pytest                 they run here, if this machine has device-mapper

Where neither is possible they are skipped, and the reason names what is missing. In a guest there
are four disks of 256 MiB, `a` to `d`: the fixture `scratch_disks` returns them, zeroed.
"""

from __future__ import annotations

import fcntl
import functools
import os
import struct
from pathlib import Path
from typing import Final

import pytest

from dmcopy.block import tools
from dmcopy.testing import guests, reporter

DISK_SIZE: Final = "256M"
DISK_SERIALS: Final = ("a", "b", "c", "d")
_BLKGETSIZE64: Final = 0x80081272
_BLKZEROOUT: Final = 0x127F


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("dmcopy", "tests on real device-mapper")
    group.addoption("--vm", metavar="KERNELS", help="run `kernel` tests in guests: 6.1,6.12 …")
    group.addoption("--vm-memory", default="2G", help="of each guest (default: %(default)s)")
    group.addoption(
        "--vm-silence",
        type=float,
        default=900.0,
        metavar="S",
        help="seconds without a result after which a guest is given up (default: %(default)s)",
    )
    group.addoption("--vm-report", action="store_true", help="(in a guest) report to the host")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "kernel(either=False): needs real device-mapper: runs in guests with --vm; "
        "either=True: in one of them, by turns, unless $DMCOPY_TEST is long",
    )
    if config.getoption("--vm-report"):
        config.pluginmanager.register(reporter.Reporter(config), "dmcopy-reporter")
    elif config.getoption("--vm"):
        config.pluginmanager.register(
            guests.Guests(config, DISK_SIZE, DISK_SERIALS), "dmcopy-guests"
        )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("kernel") is not None:
        lacking = missing_here()
        if lacking:
            pytest.skip(f"{lacking}; run it in a guest: pytest --vm 6.1")


@functools.cache
def missing_here() -> str:
    """Return what this machine lacks for tests of the kernel's device-mapper; "" if nothing."""
    if os.geteuid() != 0:
        return "not root"
    if tools.which("dmsetup") is None:
        return "no dmsetup (apt-get install dmsetup)"
    done = tools.run(["dmsetup", "version"], timeout=60)
    if done.returncode:
        return f"no device-mapper in the kernel {os.uname().release}"
    return ""


@pytest.fixture
def scratch_disks() -> list[Path]:
    """Whole disks that a test may write to, all zeroes, found by their serials.

    Outside a guest $DMCOPY_DISKS names them: serials of virtio disks, separated by blanks.
    """
    serials = os.environ.get("DMCOPY_DISKS", "").split()
    if not serials:
        pytest.skip("no disks to write to: run it in a guest (pytest --vm 6.1)")
    disks = [Path(f"/dev/disk/by-id/virtio-{serial}") for serial in serials]
    for disk in disks:
        _zero(disk)
    return disks


def _zero(disk: Path) -> None:
    fd = os.open(disk, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
    try:
        size = fcntl.ioctl(fd, _BLKGETSIZE64, bytes(8))
        fcntl.ioctl(fd, _BLKZEROOUT, bytes(8) + size)
    finally:
        os.close(fd)
    assert struct.unpack("Q", size)[0] > 0
