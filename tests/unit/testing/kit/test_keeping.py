"""What is left behind, what hangs, and what the report of a failure says."""

from __future__ import annotations

import os
import re
import subprocess
import textwrap
from pathlib import Path

import pytest

from dmcopy import ledger as ledgers
from dmcopy.block import file_mounts, sysfs
from dmcopy.ledger import Ledger, identity
from dmcopy.mapper import cookies
from dmcopy.mapper.cookies import Cookie
from dmcopy.testing import facts, keeping
from dmcopy.testing.kit import leaks, watchdog
from dmcopy.testing.kit.leaks import Leaks, Present
from tests.waiting import Program

pytest_plugins = ["pytester"]

as_root = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/loop-control"), reason="takes root and loop"
)
served = pytest.mark.skipif(bool(file_mounts.why_not()), reason=file_mounts.why_not())


@pytest.fixture(autouse=True)
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    for name in ("PYTEST_ADDOPTS", "DMCOPY_TEST"):  # which the command to repeat a test names
        monkeypatch.delenv(name, raising=False)
    made = Ledger(tmp_path / "ledger.jsonl")
    monkeypatch.setattr(ledgers, "default_path", lambda: made.path)
    return made


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a machine without disks and mounts: its block devices, and self/mountinfo.

    Of the real one everything is "what the test left" in a guest, also what other tests make.
    """
    place = tmp_path / "machine"
    (place / "self").mkdir(parents=True)
    (place / "self/mountinfo").touch()
    monkeypatch.setattr(leaks, "_BLOCK", place)
    monkeypatch.setattr(sysfs, "LIVE", sysfs.LIVE._replace(proc=str(place)))
    return place


def run(pytester: pytest.Pytester, *args: str) -> pytest.RunResult:
    return pytester.runpytest_inprocess("-p", "no:cacheprovider", *args)


@served
@as_root
def test_each_leak_is_the_error_of_the_test_that_left_it(
    pytester: pytest.Pytester, ledger: Ledger
) -> None:
    pytester.makepyfile(
        """
        import subprocess
        import pytest

        processes = []

        @pytest.fixture(autouse=True, scope="session")
        def reaped():
            yield
            for process in processes:
                process.wait(60)

        def run(*words): return subprocess.run(words, check=True, capture_output=True, text=True)

        def test_loop(scratch_file):
            run("losetup", "--find", scratch_file("1M"))

        def test_mount(linear, scratch_disk, tmp_path):
            device = linear(scratch_disk("8M"))
            run("mkfs.ext4", "-q", device)
            run("mount", device, tmp_path)

        def test_server(dm):
            from dmcopy.ledger import Ledger, identity
            processes.append(subprocess.Popen(["sleep", "600"]))
            Ledger().add("server", "dmcopy serve", uuid=identity(processes[0].pid))

        def test_clean(linear, scratch_disk, tmp_path):
            device = linear(scratch_disk("8M"))
            run("mkfs.ext4", "-q", device)
            run("mount", device, tmp_path)
            run("umount", tmp_path)
        """
    )
    result = run(pytester, "-v")
    result.assert_outcomes(passed=4, errors=3)
    result.stdout.fnmatch_lines(
        [
            "*test_loop*PASSED*",
            "*test_loop*ERROR*",
            "*the test has left /dev/loop* of /*file0.img; it was removed",
            "the test has left /dev/loop* mounted on /*test_mount_model_0; it was removed",
            "the test has left the server dmcopy serve (process *); it was removed",
        ]
    )
    result.stdout.no_fnmatch_line("*test_clean*ERROR*")
    assert ledger.entries() == []
    assert "test_mount0" not in Path("/proc/self/mounts").read_text()
    file = re.search(r"/dev/loop\d+ of (\S+)/file0\.img; it", result.stdout.str())
    assert file is not None
    loops = subprocess.run(["losetup", "--list"], capture_output=True, text=True, check=True)
    assert file[1] not in loops.stdout


@served
@as_root
def test_what_keeps_a_device_in_use_is_the_error_of_its_test(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import subprocess
        import pytest

        kept = []

        @pytest.fixture(autouse=True, scope="session")
        def ended():
            yield
            for one in kept:
                with one:
                    one.kill()

        def test_lock(scratch_disk):
            disk = scratch_disk("1M")
            words = ["flock", "--no-fork", disk.path, "sh", "-c", "echo; exec sleep 600"]
            kept.append(subprocess.Popen(words, stdout=subprocess.PIPE))
            kept[0].stdout.readline()

        def test_next(linear, scratch_disk):
            with linear(scratch_disk("1M")).open() as io:
                io.read(0, 1)
        """
    )
    result = run(pytester)
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(
        [
            "*ERROR at teardown of test_lock*",
            "a device of the test cannot be removed: /dev/loop* is in use by process * (sleep)*",
        ]
    )


@as_root
def test_who_has_a_file_of_a_mount_is_told_and_not_waited_for(
    tmp_path: Path, ledger: Ledger
) -> None:
    leaks = Leaks(ledger, [tmp_path], alone=False)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path], check=True)
    with Program(["sleep", "600"], cwd=tmp_path) as process:
        try:
            left = leaks.find()
            assert [mount.point for mount in left.mounts] == [str(tmp_path)]
            said = leaks.remove(left)
        finally:
            process.kill()
    assert said == [f"process {process.pid} (sleep) has a file open"]
    assert leaks.patience == 0
    assert str(leaks.find()) == ""


@as_root
def test_what_is_anothers_is_no_leak(
    tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    leaks = Leaks(ledger, [mine], alone=False)
    nodes = []
    for folder in (mine, theirs):
        folder.mkdir()
        file = folder / "disk.img"
        file.write_bytes(bytes(1 << 20))
        words = ["losetup", "--find", "--show", str(file)]
        nodes.append(
            subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
        )
    other = subprocess.Popen(["sleep", "600"])
    try:
        ledger.add("server", "theirs", uuid=identity(other.pid))
        entry = ledger.entries()[0]
        text = ledger.path.read_text().replace(entry.owner, identity(1))
        ledger.path.write_text(text)  # made by a process that lives
        left = leaks.find()
        assert [f"/dev/{loop}" for loop in left.loops] == nodes[:1]
        assert left.servers == []
        assert leaks.remove(left) == []
        assert str(leaks.find()) == ""
        present = Present.now()  # other tests work here, too
        monkeypatch.setattr(Present, "now", lambda: present)
        kept = Leaks(ledger, [], alone=True)
        assert str(kept.find()) == ""
    finally:
        other.kill()
        other.wait(60)
        subprocess.run(["losetup", "--detach", nodes[1]], check=True)


@pytest.mark.usefixtures("machine")
def test_in_a_guest_all_that_is_new_is_left(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new, noted = (Cookie(0x0D4D0000 + number, number) for number in (1, 2, 3))
    removed: list[str] = []
    monkeypatch.setattr(Cookie, "remove", lambda cookie: removed.append(cookie.option))
    monkeypatch.setattr(cookies, "present", lambda: [old])
    guest, host = (Leaks(ledger, [], alone=alone) for alone in (True, False))
    monkeypatch.setattr(cookies, "present", lambda: [old, new, noted])
    ledger.add("cookie", noted.option)
    left = guest.find()
    assert str(left) == f"the cookie of udev's {noted.option}, the cookie of udev's {new.option}"
    assert host.find().semaphores == []
    left.cookies = []
    assert guest.remove(left) == []
    assert removed == [new.option]


def test_a_loop_device_that_goes_by_itself_is_no_leak(machine: Path, ledger: Ledger) -> None:
    guest = Leaks(ledger, [], alone=True)
    for name, text in (("loop0", "1\n"), ("loop1", "0\n")):
        (machine / name / "loop").mkdir(parents=True)
        (machine / name / "loop/autoclear").write_text(text)
    assert guest.find().loops == ["loop1"]


def test_a_mapped_device_is_the_tests_that_lies_on_its_disks(machine: Path, ledger: Ledger) -> None:
    here, guest = (Leaks(ledger, [], alone=alone) for alone in (False, True))
    for disk, name, below in (
        ("dm-0", "top", "dm-2"),
        ("dm-1", "another's", "sda"),
        ("dm-2", "a\\x20b", "loop7"),
    ):
        (machine / disk / "dm").mkdir(parents=True)
        (machine / disk / "dm/name").write_text(f"{name}\n")
        (machine / disk / "slaves" / below).mkdir(parents=True)
    assert list(here.find(["/dev/loop7"]).devices.values()) == ["a b", "top"]
    left = leaks.Left(devices=guest.find().devices)
    assert str(left) == "the mapped device another's, the mapped device a b, the mapped device top"


def test_what_the_machine_mounts_at_a_first_use_is_no_leak(machine: Path, ledger: Ledger) -> None:
    guest = Leaks(ledger, [], alone=True)
    (machine / "self/mountinfo").write_text(
        "40 1 0:30 / /run/netns rw shared:5 - tmpfs tmpfs rw\n"
        "41 40 0:4 net:[4026532177] /run/netns/far rw shared:6 - nsfs nsfs rw\n"
        "42 1 0:31 / /sys/kernel/debug/tracing rw - tracefs tracefs rw\n"
        "43 1 0:32 / /run/scratch rw - tmpfs tmpfs rw\n"
        "44 1 8:0 / /sys/fs/mine rw - ext4 /dev/sda rw\n"
    )
    assert [one.point for one in guest.find().mounts] == [
        "/sys/fs/mine",
        "/run/scratch",
        "/run/netns/far",
    ]


def test_what_a_fixture_of_a_wider_scope_makes_meanwhile_is_no_leak(
    machine: Path, ledger: Ledger
) -> None:
    guest = Leaks(ledger, [], alone=True)

    def attach(name: str) -> None:
        (machine / name / "loop").mkdir(parents=True)
        (machine / name / "loop/autoclear").write_text("0\n")

    attach("loop0")
    with guest.apart():
        attach("loop1")
    attach("loop2")
    assert guest.find().loops == ["loop0", "loop2"]


def test_a_test_that_hangs_ends_a_second_after_its_limit(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "LATER_SECONDS", 0.0)
    pytester.makepyfile(
        """
        import pytest, time

        @pytest.mark.timeout(1, method="thread", func_only=True)
        def test_slow(faulty, scratch_disk, request):
            from dmcopy.testing.options import KEEPER
            device = faulty(scratch_disk("1M"))
            deadline = time.monotonic() + 30
            while not request.node.stash[KEEPER].watch.said and time.monotonic() < deadline:
                time.sleep(0.01)
            with device.open() as io:
                io.read(0, 1)
        """
    )
    result = run(pytester, "-p", "no:timeout")  # it would end the whole process
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*DeviceError*Input/output error*", "*a device hung*", "*dmcopy-*-faulty was ended with*"]
    )


def test_the_report_of_a_failure(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DMCOPY_SEED", "7 8")
    pytester.makepyfile(
        """
        import pytest
        @pytest.mark.parametrize("x", ["a b"])
        def test_it(snapshot, scratch_disk, x):
            made = snapshot(scratch_disk("1M"))
            made.suspend()
            assert 0
        """
    )
    result = run(pytester, "--junitxml=junit.xml")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*devices of the test*",
            "dmcopy-*-snapshot:",
            "  table (suspended): 0 2048 snapshot /*/disk0 /*/disk1 P 8",
            "  status: 0 2048 snapshot 16/4096 16",
            "dmcopy-*-origin:",
            "  table: 0 2048 snapshot-origin /*/disk0",
            "*run it alone*",
            "DMCOPY_SEED='7 8' pytest --dm=model 'test_the_report_of_a_failure.py::test_it[[]*]'",
            "model: dmcopy *, linear *, snapshot *",
        ]
    )
    assert '<property name="dmcopy model"' in (pytester.path / "junit.xml").read_text()


def test_what_a_machine_says_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {
        "dmsetup version": "Library version:   1.02.185 (2022-05-18)\nDriver version:    4.47.0\n",
        "dmsetup targets": "mirror           v1.14.0\nlinear           v1.4.0\n",
        "udevadm --version": "252 (252.39)\n",
    }
    monkeypatch.setattr(facts, "_said", lambda argv: said[" ".join(argv)])
    assert facts.machine().partition(", ")[2] == (
        "dm 4.47.0, dmsetup 1.02.185, udev 252, linear 1.4.0, mirror 1.14.0"
    )
    monkeypatch.setattr(facts, "_said", lambda _: "")
    assert facts.machine().endswith("dm none, dmsetup none, udev none")


def test_the_kernel_log_is_that_of_the_test() -> None:
    class Log:
        def records(self) -> list[str]:
            return ["3,1,2,-;device-mapper: first", "6,2,3,-;second; and more"]

    class Item:
        config = type("Config", (), {"getoption": lambda *_: True, "pluginmanager": None})()

    Item.config.pluginmanager = type("Manager", (), {"getplugin": lambda *_: None})()
    report = pytest.TestReport("x", ("x", 0, "x"), {}, "failed", None, "call")
    keeping.Keeper(None, Log()).describe(Item(), report)  # type: ignore[arg-type]
    title, text = report.sections[0]
    assert title == "kernel log of the test"
    assert text == textwrap.dedent("device-mapper: first\nsecond; and more")
