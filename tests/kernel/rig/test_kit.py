"""A user's tests that wreck their guest: this runs on the host and boots three, only with --vm."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]
CACHE = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))

TESTS = """
import os, pathlib, signal, subprocess, pytest

def run(*words):
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=120).stdout

def write(device):
    with open(device, "r+b", buffering=0) as file:
        file.write(b"1" * 4096)
        os.fsync(file.fileno())
        file.write(b"2" * 4096)

def write_files(device, folder):
    run("mkfs.ext4", "-q", device)
    run("mount", device, folder)
    for name in ("kept", "lost"):
        (folder / name).write_text("content")
        if name == "kept":
            run("sync", folder / name)

def test_power(linear, scratch_disk, power_cut, tmp_path):
    device, other = linear(scratch_disk("16M", block_size=4096)), linear(scratch_disk("16M"))

    def work():
        write(device)
        write_files(other, tmp_path)

    power_cut(work)
    with device.open() as io:
        assert (io.read(0, 8)[:1], io.read(8, 8)[:1]) == (b"1", b"\\0")
    run("mount", other, tmp_path)
    try:
        assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["kept"]
    finally:
        run("umount", tmp_path)

@pytest.mark.timeout(20)
def test_hung(mirror, faulty, scratch_disk):
    leg = faulty(scratch_disk("1M"))
    made = mirror(scratch_disk("1M"), leg, sync=False, features=["handle_errors"])
    leg.write_error()
    with open(made.path, "r+b", buffering=0) as file:      # held until dmeventd would come
        file.write(bytes(4096))
        os.fsync(file.fileno())

def test_device(scratch_disk, tmp_path):
    disk = scratch_disk("8M")
    run("dmsetup", "create", "mine", "--table", f"0 8 linear {disk} 0")
    (tmp_path / "note").write_text("what it was doing")
    assert 0

def test_loop(scratch_file):
    run("losetup", "--find", scratch_file("1M"))

def test_mount(linear, scratch_disk, tmp_path):
    device = linear(scratch_disk("8M"))
    run("mkfs.ext4", "-q", device)
    run("mount", device, tmp_path)

def test_server(dm):
    from dmcopy.ledger import Ledger, identity
    process = subprocess.Popen(["sleep", "600"])
    Ledger().add("server", "dmcopy serve", uuid=identity(process.pid))
    process.returncode = 0  # nothing waits for it

def test_cookie(dm):
    run("dmsetup", "udevcreatecookie")

@pytest.mark.kernel
def test_marked(tmp_path):
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    loop = run("losetup", "--find", "--show", tmp_path / "disk").strip()
    run("dmsetup", "create", "marked", "--table", f"0 8 linear {loop} 0")

@pytest.mark.dm(disks=["96M,serial=data"], kernel=">=6.1")
def test_disk(dm):
    assert run("lsblk", "-no", "SERIAL", dm.disks[0].path).strip() == "data"
    assert run("dmsetup", "ls").split()[:1] != ["mine"]
    assert run("losetup", "--list", "--noheadings") == ""

@pytest.mark.dm(kernel="<6.1")
def test_old(): pass

def test_panic(dm):
    pathlib.Path("/dev/kmsg").write_text("<2>about to panic")
    pathlib.Path("/proc/sysrq-trigger").write_text("c")

def test_after(snapshot, scratch_disk):
    assert snapshot(scratch_disk("1M")).status().used.percent > 0

def test_killed(dm):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_each_is_the_failure_of_one_test(
    pytester: pytest.Pytester, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = pytestconfig.getoption("--vm")
    if not kernels:
        pytest.skip("boots guests: only with --vm")
    monkeypatch.setenv("XDG_CACHE_HOME", CACHE)  # it has another HOME
    monkeypatch.delenv("DMCOPY_TEST", raising=False)  # the command to repeat a test names it
    pytester.makepyfile(test_each=TESTS)
    kernel = kernels.split(",")[0]
    result = pytester.runpytest_subprocess(f"--vm={kernel}", "-rA", "--dm-strict", timeout=900)
    result.stdout.fnmatch_lines_random(
        [
            "PASSED test_each.py::test_power*",
            "FAILED test_each.py::test_hung*Timeout (>20*",
            "*a device hung*",
            "the test was not done 1 s after its limit: the I/O that waited for *mirror*",
            "*ERROR at teardown of test_device*",
            "the test has left the mapped device mine; it was removed",
            "*files of the test*",
            "*: note",
            "the test has left /dev/loop* of *file0.img; it was removed",
            "the test has left /dev/mapper/dmcopy-*-linear mounted on *; it was removed",
            "the test has left the server dmcopy serve (process *); it was removed",
            "the test has left the cookie of udev's 0x0d4d*; it was removed",
            "the test has left the mapped device marked, /dev/loop* of *disk; it was removed",
            "PASSED test_each.py::test_disk*",
            "*vm: the kernel is 6.*, and the test is for <6.1 (--dm-strict)*",
            "not run to its end: lost VM: the kernel panicked: sysrq triggered crash*",
            "*the guest's console during the test*",
            "*about to panic*",
            "PASSED test_each.py::test_after*",
            "not run to its end: pytest ended with 137 in the guest*",
            "*kernel log of the test*",
            f"pytest --vm={kernel} 'test_each.py::test_device[[]vm[]]'",
        ]
    )
    result.assert_outcomes(passed=8, failed=4, errors=7)
