"""Tests of a user in a Debian that Vagrant brings up: power cut, panic, what comes behind them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dmcopy.errors import DmcopyError
from dmcopy.vm import vagrant

pytest_plugins = ["pytester"]
CACHE = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))

TESTS = """
import os, pathlib, pytest

def write(device):
    with open(device, "r+b", buffering=0) as file:
        file.write(b"1" * 4096)
        os.fsync(file.fileno())
        file.write(b"2" * 4096)

def test_power(linear, scratch_disk, power_cut):
    device = linear(scratch_disk("8M"))
    power_cut(write, device)
    with device.open() as io:
        assert (io.read(0, 1)[:1], io.read(8, 1)[:1]) == (b"1", b"\\0")

@pytest.mark.kernel
def test_panic():
    pathlib.Path("/proc/sysrq-trigger").write_text("c")

@pytest.mark.dm(disks=["96M,serial=data"])
def test_after(dm):
    assert pathlib.Path("/proc/1/comm").read_text() == "systemd\\n"
    assert dm.disks[0].path == os.path.realpath("/dev/disk/by-id/virtio-data")
"""


@pytest.mark.long
@pytest.mark.skipif(os.environ.get("DMCOPY_TEST") != "long", reason="minutes: only with --long")
def test_each_is_the_failure_of_one_test(
    pytester: pytest.Pytester, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not pytestconfig.getoption("--vm"):
        pytest.skip("boots guests: only with --vm")
    try:
        vagrant.check("6.1")
    except DmcopyError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("XDG_CACHE_HOME", CACHE)  # it has another HOME
    monkeypatch.delenv("DMCOPY_TEST", raising=False)  # the command to repeat a test names it
    pytester.makepyfile(test_each=TESTS)
    result = pytester.runpytest_subprocess("--vm=6.1", "--vm-provider=vagrant", "-rA", timeout=1700)
    result.stdout.fnmatch_lines_random(
        [
            "PASSED test_each.py::test_power*",
            "not run to its end: lost VM: the kernel panicked: sysrq triggered crash*",
            "PASSED test_each.py::test_after*",
            "pytest --vm=6.1 --vm-provider=vagrant test_each.py::test_panic",
            "vm 6.1: kernel 6.1.*, dm 4.*, dmsetup 1.*, udev *, linear 1.*",
        ]
    )
    result.assert_outcomes(passed=2, failed=1)
