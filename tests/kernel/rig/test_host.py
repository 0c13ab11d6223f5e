"""The rig as its user has it: these run on the host and boot guests, so only with --vm."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmcopy import vm
from dmcopy.errors import ClosedError, DeadlineError, ExitCode, LostVMError

VM_RUN = [sys.executable, "-m", "dmcopy", "vm", "run"]
WRITER = """
import mmap, os
fd = os.open("/dev/disk/by-id/virtio-crash", os.O_RDWR | os.O_DIRECT)
block = mmap.mmap(-1, 65536)
block[:] = b"1" * 65536
os.pwritev(fd, [block], 0)
os.fsync(fd)
block[:] = b"2" * 65536
os.pwritev(fd, [block], 0)
print("written", flush=True)
"""


@pytest.fixture(autouse=True)
def with_vm(request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--vm"):
        pytest.skip("boots guests: only with --vm")


@pytest.fixture
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder of our own for every guest, which must be empty in the end."""
    folder = tmp_path / "t"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    mounts = Path("/proc/self/mounts").read_text()
    yield folder
    deadline = time.monotonic() + 30
    while (left := leftovers(folder)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left
    assert Path("/proc/self/mounts").read_text() == mounts


def leftovers(folder: Path) -> list[str]:
    """Files in the folder, locks in the cache, processes with the folder in their arguments."""
    from dmcopy.vm.cache import cache_dir

    left = [str(path) for path in folder.iterdir()]
    left += [str(path) for path in cache_dir().rglob(".lock")]
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            try:
                words = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if str(folder).encode() in words:
                left.append(words.replace(b"\0", b" ").decode(errors="replace"))
    return left


@pytest.mark.parametrize("kernel", ["6.1", "6.12"])
@pytest.mark.usefixtures("clean")
def test_vm_run_answers_within_a_minute(kernel: str) -> None:
    began = time.monotonic()
    argv = [*VM_RUN, "--kernel", kernel, "--disk", "1G,serial=a", "--", "sh", "-c"]
    script = "uname -r; readlink /dev/disk/by-id/virtio-a; touch here && cat; exit 7"
    done = subprocess.run([*argv, script], input=b"word", capture_output=True, timeout=120)
    assert time.monotonic() - began < 60
    assert done.returncode == 7
    assert done.stdout.startswith(kernel.encode() + b".")
    assert done.stdout.endswith(b"\n../../vda\nword")
    assert b"accelerator" in done.stderr
    assert not Path("here").exists(), "the guest wrote to the host"


@pytest.mark.usefixtures("clean")
def test_many_commands_in_one_boot(tmp_path: Path) -> None:
    tmp_path = tmp_path / "\u65e5 d\xe4ten"
    tmp_path.mkdir()
    with vm.guest(share=[tmp_path]) as guest:
        assert guest.run(["no-such-command"]).status == 127
        assert len(guest.run(["head", "-c", "100M", "/dev/zero"]).stdout) == 100 << 20
        data = random.Random(0).randbytes(2 << 20)
        assert guest.run(["cat"], stdin=data).stdout == data
        with pytest.raises(DeadlineError, match="sleep: not done within 1 s"):
            guest.run(["sleep", "1000"], timeout=1)
        assert guest.run(["sh", "-c", f"echo shared >'{tmp_path}/file'"]).status == 0
        assert (tmp_path / "file").read_text() == "shared\n"
        setuid = f"cd '{tmp_path}'; ln -s file link; chmod 755 file; chmod u+s file; mknod n c 1 3"
        assert guest.run(["sh", "-c", setuid]).status == 1
        assert (tmp_path / "file").stat().st_mode & 0o7777 == 0o755
        assert sorted(os.listdir(tmp_path)) == ["file", "link"]
        assert guest.run(["udevadm", "control", "--ping"]).status == 0
        assert guest.run(["pwd"]).text == f"{Path.cwd()}\n"
    with pytest.raises(ClosedError):
        guest.run(["true"])


@pytest.mark.usefixtures("clean")
def test_a_guest_that_panics_is_lost_with_its_last_words() -> None:
    with vm.guest() as guest, pytest.raises(LostVMError) as caught:
        guest.run(["sh", "-c", "echo c >/proc/sysrq-trigger"], timeout=60)
    assert "lost VM: the kernel panicked: sysrq triggered crash; whole" in str(caught.value)
    log = Path(caught.value.log)
    assert "sysrq triggered crash" in log.read_text()
    log.unlink()


@pytest.mark.usefixtures("clean")
def test_a_guest_that_does_not_boot_in_time_is_lost() -> None:
    with pytest.raises(LostVMError, match="it did not boot within 1 s, and QEMU is") as caught:
        vm.guest(timeout=1)
    Path(caught.value.log).unlink()


@pytest.mark.usefixtures("clean")
def test_a_power_cut_takes_what_was_not_flushed(tmp_path: Path) -> None:
    disks = [vm.Disk("64M", serial="crash", path=tmp_path / "disk")]
    with vm.guest(disks=disks) as guest:
        assert guest.run([sys.executable, "-c", WRITER]).text == "written\n"
        guest.kill()
    assert (tmp_path / "disk").read_bytes()[:65536] == b"1" * 65536
    with vm.guest(disks=disks) as guest:
        done = guest.run(["head", "-c", "65536", "/dev/disk/by-id/virtio-crash"])
        assert done.stdout == b"1" * 65536
        assert guest.run([sys.executable, "-c", WRITER]).status == 0
        guest.kill(random.Random(2))  # tears the writes of the first disk by block
    after = (tmp_path / "disk").read_bytes()[:65536]
    assert {after[at : at + 512] for at in range(0, 65536, 512)} == {b"1" * 512, b"2" * 512}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_ended_leaves_nothing(clean: Path, number: signal.Signals) -> None:
    with start_run() as run:
        try:
            assert run.stdout is not None
            assert run.stdout.readline() == b"up\n"
            assert leftovers(clean)
            run.send_signal(number)
            run.communicate(timeout=60)
        finally:
            run.kill()  # what fails here must not run on beside the next tests
    assert run.returncode == (ExitCode.INTERRUPTED if number == signal.SIGINT else -number)


def test_one_that_is_ended_while_it_boots_leaves_nothing(clean: Path) -> None:
    """Even where stderr is full."""
    with start_run() as run:
        try:
            deadline = time.monotonic() + 60
            while not any("qemu-system" in line for line in leftovers(clean)):
                assert run.poll() is None, "it ended by itself"
                assert time.monotonic() < deadline, "waited 60 s for QEMU to start"
                time.sleep(0.02)
            assert run.stderr is not None
            fill(run.stderr.fileno())
            run.send_signal(signal.SIGHUP)
            assert run.wait(60) == ExitCode.INTERRUPTED
        finally:
            run.kill()


def fill(fd: int) -> None:
    """Fill a pipe, from its reading end."""
    write = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(write, bytes(65536))
    os.close(write)


TWINS = """
import os, subprocess, sys
twins = [name for name in sorted(os.listdir("/sys/block")) if name.startswith("vd")
         and open(f"/sys/block/{name}/serial").read() == "twin"]
one, other = (f"/dev/{name}" for name in twins)
data = os.urandom(1 << 20)
with open("/dev/shm/data", "wb") as file:
    file.write(data)
for node in (one, other, one):
    words = ["copy", "--map", "/dev/shm/map", "/dev/shm/data", node]
    done = subprocess.run([sys.executable, "-m", "dmcopy", *words], capture_output=True, text=True)
    with open(node, "rb") as disk:
        print(done.returncode, disk.read(len(data)) == data, done.stderr.strip())
"""


@pytest.mark.usefixtures("clean")
def test_two_disks_of_one_serial_are_told_apart() -> None:
    """What a map says of one of them is not taken for the other's."""
    disks = [vm.Disk("16M", serial="twin"), vm.Disk("16M", serial="twin", twin=True)]
    with vm.guest(disks=disks) as guest:
        said = guest.run([sys.executable, "-c", TWINS], timeout=120).text.splitlines()
    assert [line.split(" ", 2)[:2] for line in said] == [
        *(["0", "True"], [str(int(ExitCode.USAGE)), "False"], ["0", "True"])
    ], said


def start_run(seconds: str = "600") -> subprocess.Popen[bytes]:
    script = f"echo up; exec sleep {seconds}"
    # A job that a shell starts in the background ignores SIGINT, and hands that down.
    return subprocess.Popen(
        [
            "env",
            "--default-signal=INT",
            *VM_RUN,
            "--disk",
            "64M,serial=a",
            "-n",
            "--",
            "sh",
            "-c",
            script,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.long
@pytest.mark.usefixtures("clean")
@pytest.mark.skipif(os.environ.get("DMCOPY_TEST") != "long", reason="20 boots: only with --long")
@pytest.mark.timeout(1500)
def test_twenty_runs_five_of_them_killed_half_way() -> None:
    chance = random.Random(20)
    for number in range(20):
        run = start_run(seconds="0")
        if number % 4 == 3:
            time.sleep(chance.uniform(0.5, 8))
            run.send_signal(chance.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
            run.communicate(timeout=120)
            assert run.returncode != ExitCode.OK
        else:
            out, said = run.communicate(timeout=120)
            assert (run.returncode, out) == (ExitCode.OK, b"up\n"), said
