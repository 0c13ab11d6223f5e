"""`dmcopy dm run`: both engines print the same for the same table and the same operations."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmcopy.cli.main import main
from dmcopy.mapper.udev import Udev, choose

from ..conftest import devices
from .conftest import loops

pytestmark = [pytest.mark.kernel(either=True), pytest.mark.usefixtures("files")]
SECTORS = 8192


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Plain files A and B in memory, in the current directory; nothing may be left afterwards."""
    folder = Path("/dev/shm") / f"dmcopy-run-{os.getpid()}"
    folder.mkdir()
    monkeypatch.chdir(folder)
    before = devices(), loops()
    yield
    assert (devices(), loops()) == before
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


def run(engine: str, *words: str) -> tuple[int, str, str]:
    """Run `dmcopy dm run` on fresh files."""
    for name in "AB":
        with open(name, "wb") as file:
            file.truncate(SECTORS * 512)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["dm", "run", "--engine", engine, *words])
    return code, out.getvalue(), err.getvalue()


def same(*words: str, code: int = 0) -> list[str]:
    """Run on both engines; return what both printed."""
    kernel, user = run("kernel", *words), run("user", *words)
    assert kernel[1].splitlines() == user[1].splitlines()
    assert kernel[0] == user[0] == code
    return kernel[1].splitlines()


def test_linear_striped_and_zero() -> None:
    lines = same(
        "--table",
        "0 1024 linear A 8\n1024 1024 striped 2 16 A 2048 B 0\n2048 512 zero",
        "write 0 2048 seq:a",
        "verify 0 2048 seq:a",
        "write 1000 100 0x5a",
        "read 990 120",
        "write 2048 8 0xff",
        "read 2040 16",
        "flush",
        "table",
        "status",
        "read 2552 9",
        "message 0 hello",
        "suspend",
        "read 0 8",
        "resume",
        "verify 1100 900 seq:a",
        code=1,
    )
    assert "dev: table: 0 1024 linear A 8" in lines
    assert lines[-1] == "dev: verify 1100 900 seq:a: ok"


@pytest.mark.kernel(either=False)
def test_discards() -> None:
    # Not over a zero target: 6.1 refuses a discard of the whole device then, 6.12 does not.
    words = ["write 0 64 1", "discard 8 16", "read 0 32", "write 8 8 2", "read 0 32"]
    same("--table", "0 64 linear A 8\n64 64 linear B 0", *words)


def test_a_stack_that_meets_an_error() -> None:
    lines = same(
        *("--concise", "base,,,,0 1024 linear A 0;top,,,,0 1024 linear /dev/mapper/base 0"),
        "write 0 64 seq",
        "base: load 0 32 linear A 0",
        "base: load 0 1024 error",
        "base: suspend",
        "base: resume",
        "read 0 8",
        "write 0 8 1",
        "base: status",
        "base: load 0 1024 linear A 0",
        "base: suspend noflush",
        "base: resume",
        "verify 0 64 seq",
        "top: table",
        code=1,
    )
    assert [line for line in lines if line.endswith("EIO")] == [
        *("top: read 0 8: EIO", "top: write 0 8 1: EIO")
    ]
    assert lines[-1] == "top: table: 0 1024 linear /dev/mapper/base 0"


def test_part_of_a_device_that_fails() -> None:
    same(
        "--table",
        "0 16 linear A 0\n16 16 error\n32 16 linear A 32",
        *("write 0 16 1", "write 8 16 1", "read 8 16", "verify 32 8 0", "write 32 8 7"),
        *("verify 32 8 7", "verify 32 16 7", "flush"),
        code=4,
    )


def test_a_snapshot() -> None:
    lines = same(
        "--concise",
        "base,,,,0 4096 snapshot-origin A;snap,,,,0 4096 snapshot A B P 8",
        "base: suspend",
        "base: resume",
        "status",
        "base: write 0 8 seq:new",
        "verify 0 8 0",
        "base: verify 0 8 seq:new",
        "write 100 5 0x77",
        "read 96 16",
        "base: read 96 16",
        "flush",
        "status",
        "table",
    )
    assert "snap: status: 0 4096 snapshot 16/8192 16" in lines
    assert "snap: status: 0 4096 snapshot 40/8192 16" in lines
    assert lines[-1] == "snap: table: 0 4096 snapshot A B P 8"


def test_a_merge_goes_back_into_the_origin() -> None:
    lines = same(
        "--concise",
        "base,,,,0 4096 snapshot-origin A;snap,,,,0 4096 snapshot A B P 8",
        *("base: suspend", "base: resume", "write 0 24 seq:new", "flush", "status"),
        *("suspend", "base: load 0 4096 snapshot-merge A B P 8", "base: suspend"),
        *("base: resume", "base: until 16/8192", "base: status", "base: verify 0 24 seq:new"),
        *("base: verify 24 8 0", "base: table"),
    )
    assert "snap: status: 0 4096 snapshot 40/8192 16" in lines
    assert "base: status: 0 4096 snapshot-merge 16/8192 16" in lines


def test_a_mirror() -> None:
    lines = same(
        "--table",
        "0 4096 mirror core 2 1024 nosync 2 A 0 B 0 1 handle_errors",
        *("write 0 64 seq", "verify 0 64 seq", "read 60 8", "flush", "status", "table"),
    )
    assert "dev: status: 0 4096 mirror 2 A B 4/4 1 AA 1 core" in lines
    assert lines[-1] == "dev: table: 0 4096 mirror core 2 1024 nosync 2 A 0 B 0 1 handle_errors"


@pytest.mark.kernel(either=False)  # flakey is another in each kernel
def test_targets_that_misbehave() -> None:
    same(
        "--table",
        "0 64 flakey A 0 0 60 1 error_writes\n64 64 flakey A 64 0 60 1 drop_writes\n"
        "128 64 delay A 128 0\n192 64 flakey A 192 60 0",
        *("write 0 8 1", "read 0 8", "write 64 8 1", "verify 64 8 0", "write 128 8 1"),
        *("verify 128 8 1", "write 192 8 2", "verify 192 8 2", "write 60 8 3", "read 56 80"),
        "flush",
        code=1,
    )


def test_a_read_only_device() -> None:
    spec = "base,,,,0 64 linear A 0;view,,,ro,0 64 linear /dev/mapper/base 0"
    same(
        *("--concise", spec, "base: write 0 8 seq", "verify 0 8 seq", "write 0 8 1", "read 0 16"),
        code=1,
    )


def test_json_and_loop_devices() -> None:
    words = ("--json", "--table", "0 64 linear A 0", "write 0 8 1", "read 0 8", "status")
    code, out, err = run("kernel", *words)
    assert (code, out) == run("user", *words)[:2]
    assert "A is /dev/loop" in err
    assert [json.loads(line)["error"] for line in out.splitlines()] == ["", "", ""]


def test_what_the_kernel_refuses_leaves_nothing() -> None:
    assert choose() is Udev.COOKIES
    for engine in ("kernel", "user"):
        spec = f"one,,,,0 64 zero;two,,,,0 {SECTORS + 8} linear A 0"
        code, out, err = run(engine, "--concise", spec, "read 0 8")
        assert (code, out) == (1, "")
        assert "too small for target" in err
