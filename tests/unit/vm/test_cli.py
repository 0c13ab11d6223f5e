"""`dmcopy vm` with bad input: one sentence and the right exit code, and no guest."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Self

import pytest

from dmcopy.cli.main import main
from dmcopy.errors import ExitCode
from dmcopy.vm import debian
from dmcopy.vm import machine as qemu_machine
from dmcopy.vm.channel import Sink

from .test_kernels import VERSION, install, put_in_cache


@pytest.fixture(autouse=True)
def no_guest(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(qemu_machine, "find_qemu", lambda: "/bin/false")
    monkeypatch.setattr("dmcopy.vm.accel.choose", lambda *_: "tcg")
    monkeypatch.setattr("dmcopy.vm.initramfs.busybox", lambda: Path("/bin/true"))
    return cache


def vm_run(*words: str) -> int:
    return main(["vm", "run", *words, "--", "true"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--kernel", "9.9"), "9.9: no such kernel: use one of 6.1, 6.12"),
        (("--kernel", "/no/such"), "/no/such: no such kernel image or build tree"),
        (("--disk", "1X,serial=a"), "'1X' is not a size"),
        (("--disk", "1G,serial=a", "--disk", "1G,serial=a"), "two disks have the serial a"),
        (("--memory", "much"), "'much' is not a size"),
        (("--cpus", "0"), "0 processors: give a guest 1 to 64"),
        (("--timeout", "0"), "--timeout 0: give a number of seconds above 0"),
        (("--provider", "vagrant", "--cpus", "2"), "not for Vagrant"),
        (("--provider", "vagrant", "--kernel", "/k"), "kernel of an installed Debian, one of 6.1"),
    ],
)
def test_what_cannot_be(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert vm_run(*words) == ExitCode.USAGE
    error = capsys.readouterr().err
    assert error.startswith("dmcopy: ")
    assert said in error
    assert error.count("\n") == 1


def test_a_kernel_without_device_mapper(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = install(tmp_path / "root", without="dm-mod")
    assert vm_run("--kernel", str(image)) == ExitCode.MISSING
    assert f"kernel {VERSION} has no dm_mod" in capsys.readouterr().err


def test_no_qemu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.undo()
    monkeypatch.setattr("dmcopy.block.tools.which", lambda _: None)
    assert vm_run() == ExitCode.MISSING
    assert "no qemu-system-x86_64 here: apt-get install" in capsys.readouterr().err


def test_no_space(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(debian, "_SPACE_NEEDED", 1 << 60)
    monkeypatch.setattr("dmcopy.block.tools.which", lambda _: "/bin/true")
    assert vm_run() == ExitCode.MISSING
    assert "a kernel needs 1024 PiB: make room" in capsys.readouterr().err


def test_qemu_that_does_not_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = install(tmp_path / "root")
    assert vm_run("--kernel", str(image)) == ExitCode.MISSING
    assert "qemu-system-x86_64 did not start; it said: nothing" in capsys.readouterr().err


def test_the_list_of_kernels(no_guest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put_in_cache(no_guest, "6.1.0-50-amd64")
    assert main(["vm", "kernels", "--json"]) == ExitCode.OK
    assert json.loads(capsys.readouterr().out) == [
        {
            "kernel": "6.1",
            "version": "6.1.0-50-amd64",
            "path": f"{no_guest}/kernels/6.1.0-50-amd64/vmlinux",
        },
        {"kernel": "6.12", "version": None, "path": None},
    ]
    assert main(["vm", "kernels"]) == ExitCode.OK
    assert "6.12   -                      not fetched; Debian trixie" in capsys.readouterr().out


def test_a_shell_needs_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vm", "shell"]) == ExitCode.USAGE
    assert "vm shell needs a terminal" in capsys.readouterr().err


class Guest:
    """A guest whose command prints on both streams, and ends when it is told that nothing reads."""

    def __init__(self) -> None:
        self.signals: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def start(self, *_: object, stdout: Sink, stderr: Sink, **__: object) -> Guest:
        self.sinks = (stderr, stdout)
        return self

    def signal(self, number: int) -> None:
        self.signals.append(number)

    def wait(self, *_: object) -> SimpleNamespace:
        for sink in self.sinks:
            sink(b"some")
            sink(b"more")
        return SimpleNamespace(status=128 + self.signals[0] if self.signals else 7)


@pytest.mark.parametrize(("fd", "code"), [(1, 128 + signal.SIGPIPE), (2, 7)])
def test_a_command_is_told_that_nobody_reads_and_its_code_is_ours(
    fd: int, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = Guest()
    monkeypatch.setattr("dmcopy.cli.vm._guest", lambda _: guest)
    read, write = os.pipe()
    os.close(read)
    kept = os.dup(fd)
    os.dup2(write, fd)
    try:
        assert vm_run("-n") == code
    finally:
        os.dup2(kept, fd)
        os.close(kept)
        os.close(write)
    assert guest.signals == ([signal.SIGPIPE] if fd == 1 else [])
