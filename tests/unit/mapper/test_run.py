"""`dmcopy dm run` in userspace; tests/kernel/mapper/test_run.py compares it with the kernel."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from dmcopy.cli import dm_run
from dmcopy.cli.main import main
from dmcopy.errors import ExitCode, UsageError
from dmcopy.mapper.engines import engine
from dmcopy.mapper.operations import parse, pattern
from dmcopy.mapper.run import Run
from dmcopy.table import ConciseDevice, Table


@pytest.fixture(autouse=True)
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of 2048 sectors, `disk` in the current directory."""
    path = tmp_path / "disk"
    path.write_bytes(bytes(1 << 20))
    monkeypatch.chdir(tmp_path)
    return path


def run(*words: str) -> int:
    return main(["dm", "run", "--engine", "user", *words])


def test_operations_in_order(capsys: pytest.CaptureFixture[str], disk: Path) -> None:
    code = run(
        "--table",
        "0 1024 linear disk 1024\n1024 8 zero",
        *("write 0 2 0x5a", "read 0 1", "verify 0 2 90", "flush", "table", "status", "sleep 0.01"),
        *("suspend", "resume", "discard 0 8", "verify 0 2 0"),
    )
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "dev: write 0 2 0x5a: ok",
        "dev: read 0 1: sha256 a863e21577e54cd7, 5a 5a 5a 5a 5a 5a 5a 5a ...",
        "dev: verify 0 2 90: ok",
        "dev: flush: ok",
        "dev: table: 0 1024 linear disk 1024",
        "dev: table: 1024 8 zero",
        "dev: status: 0 1024 linear",
        "dev: status: 1024 8 zero",
        "dev: sleep 0.01: ok",
        "dev: suspend: ok",
        "dev: resume: ok",
        "dev: discard 0 8: ok",
        "dev: verify 0 2 0: ok",
    ]
    assert disk.read_bytes() == bytes(1 << 20)


def test_devices_name_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    spec = "base,,,,0 8 linear disk 0;top,,,,0 8 linear /dev/mapper/base 0"
    words = ["write 0 8 seq:x", "base: verify 0 8 seq:x", "base: load 0 8 error", "base: resume"]
    assert run("--json", "--concise", spec, *words, "read 0 1", "top: table") == ExitCode.FAILED
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["device"] for line in lines] == ["top", "base", "base", "base", "top", "top"]
    assert [line["error"] for line in lines] == ["", "", "", "", "EIO", ""]
    assert lines[-1]["table"] == ["0 8 linear /dev/mapper/base 0"]


def test_io_that_is_held_is_given_up_after_the_timeout(capsys: pytest.CaptureFixture[str]) -> None:
    spec = "bad,,,,0 64 error;m,,,,0 64 mirror core 2 8 nosync 2 disk 0 /dev/mapper/bad 0 1"
    words = ["write 0 8 seq", "bad: load 0 64 linear disk 64", "bad: suspend", "bad: resume"]
    words += ["suspend noflush", "load 0 64 mirror core 2 8 nosync 2 disk 0 /dev/mapper/bad 0"]
    words += ["resume", "until 8/8", "verify 0 8 seq", "bad: verify 0 8 seq"]
    code = run("--call-timeout", "0.3", "--concise", f"{spec} handle_errors", *words)
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("m: write 0 8 seq: waited 0.3 s for WRITE")
    assert out[-2:] == ["m: verify 0 8 seq: ok", "bad: verify 0 8 seq: ok"]
    assert code == ExitCode.FAILED


def test_the_whole_has_a_limit(
    capsys: pytest.CaptureFixture[str], disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter((0.0, 29.0, 31.0))
    monkeypatch.setattr(dm_run, "time", SimpleNamespace(monotonic=times.__next__))
    words = ["write 0 8 0x5a", "write 0 8 0xff"]
    assert run("--timeout", "30", "--table", "0 8 linear disk 0", *words) == ExitCode.FAILED
    said = "'write 0 8 0xff' was not begun: the operations before it took 30 s, see --timeout\n"
    assert capsys.readouterr().err == f"dmcopy: {said}"
    assert disk.read_bytes()[:8] == b"\x5a" * 8


def test_what_differs_is_named_and_is_exit_4(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--table", "0 8 linear disk 0", "write 3 1 1", "verify 0 8 0") == ExitCode.MISMATCH
    assert "verify 0 8 0: differs at sector 3, byte 0: 0x01 instead of 0x00" in (
        capsys.readouterr().out
    )


def test_the_table_may_be_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "table").write_text("0 8 zero # nothing\n")
    assert run("table", "--", "verify 0 8 0", "read 0 8") == 0
    assert capsys.readouterr().out.startswith("dev: verify 0 8 0: ok\n")


def test_a_dry_run_changes_nothing(capsys: pytest.CaptureFixture[str], disk: Path) -> None:
    spec = "a,,,,0 8 linear disk 0;b,,,,0 8 linear /dev/mapper/a 0"
    assert run("--dry-run", "--concise", spec, "write 0 8 1", "a: read 0 8") == 0
    assert capsys.readouterr().out.splitlines() == [
        *("create a: 0 8 linear disk 0", "create b: 0 8 linear /dev/mapper/a 0"),
        *("b: write 0 8 1", "a: read 0 8", "remove b", "remove a"),
    ]
    assert disk.read_bytes() == bytes(1 << 20)


def test_what_would_wait_for_ever_or_lies_outside_is_not_tried(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["suspend", "read 0 1", "resume", "read 7 2", "write 8 1 0", "read 0 0"]
    assert run("--table", "0 8 zero", *words) == ExitCode.FAILED
    out = capsys.readouterr().out.splitlines()
    assert out[1] == "dev: read 0 1: suspended: its I/O would wait until it is resumed"
    assert [line.endswith("not within the 8 sectors of the device") for line in out[3:]] == [
        True
    ] * 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--table", "0 8 zero"], "say what to do"),
        ([], "say a table"),
        (["--table", "0 8 zero", "--concise", "a,,,,0 8 zero", "flush"], "either --table or"),
        (["--concise", ";", "flush"], "there is no device"),
        (["--concise", "a,,,,0 8 zero;a,,,,0 8 zero", "flush"], "two devices have the same name"),
        (["--table", " ", "flush"], "the table has no lines"),
        (["--table", "0 8 snapshot a b P 3", "flush"], "power of two"),
        (["--table", "0 8 zero", "raed 0 8"], "'raed' is not an operation; known: read, write"),
        (["--table", "0 8 zero", "read 0"], "write it as 'read SECTOR COUNT'"),
        (["--table", "0 8 zero", "flush 0"], "write it as 'flush'"),
        (["--table", "0 8 zero", " "], "is no operation"),
        (["--table", "0 8 zero", "x: flush"], "'x' is not a device here; known: dev"),
        (["--table", "0 8 zero", "read 0 x"], "'x' is not a size"),
        (["--table", "0 8 zero", "write 0 8 300"], "'300' is not a pattern"),
        (["--table", "0 8 zero", "write 0 8 seq:"], "'seq:' is not a pattern"),
        (["--table", "0 8 zero", "suspend now"], "write 'suspend' or 'suspend noflush'"),
        (["--table", "0 8 zero", "until x -1"], "'-1' is not a number of seconds"),
        (["--table", "0 8 zero", "sleep now"], "'now' is not a number of seconds"),
        (["--table", "0 8 zero", "load 0 8 snapshot a b P 3"], "power of two"),
    ],
)
def test_wrong_words_are_named(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert run(*words) == ExitCode.USAGE
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_read_only_device_is_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["read 0 8", "write 0 8 1", "discard 0 8", "flush"]
    assert run("--concise", "dev,,,ro,0 8 linear disk 0", *words) == ExitCode.FAILED
    out = capsys.readouterr().out.splitlines()
    assert out[1:3] == ["dev: write 0 8 1: read-only", "dev: discard 0 8: read-only"]
    assert (out[0][:12], out[3]) == ("dev: read 0 ", "dev: flush: ok")


def test_a_device_may_grow_and_shrink(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["load 0 16 linear disk 0", "read 8 8", "resume", "read 8 8", "load 0 4 zero", "resume"]
    assert run("--table", "0 8 linear disk 0", *words, "read 4 1", "read 3 1") == ExitCode.FAILED
    out = capsys.readouterr().out.splitlines()
    assert out[1] == "dev: read 8 8: not within the 8 sectors of the device"
    assert out[3].startswith("dev: read 8 8: sha256")
    assert out[6] == "dev: read 4 1: not within the 4 sectors of the device"
    assert out[7].startswith("dev: read 3 1: sha256")


def test_until_waits_for_the_status(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["until linear 0", "until 8/16 0.1"]
    assert run("--table", "0 8 linear disk 0", *words) == ExitCode.FAILED
    assert capsys.readouterr().out.splitlines() == [
        *("dev: until linear 0: ok", "dev: until 8/16 0.1: not within 0.1 s")
    ]


def test_what_the_engine_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--table", "0 9999 linear disk 0", "flush") == ExitCode.FAILED
    assert "too small for target" in capsys.readouterr().err
    assert run("--table", "0 8 tomorrow x", "flush") == ExitCode.FAILED
    assert "has no target 'tomorrow'" in capsys.readouterr().err
    assert run("--table", "0 8 linaer disk 0", "flush") == ExitCode.FAILED
    assert "'linaer' (did you mean 'linear'?)" in capsys.readouterr().err
    assert run("--table", "0 8 linear nowhere 0", "flush") == ExitCode.USAGE
    assert "nowhere: there is no such device or file" in capsys.readouterr().err


def test_a_pattern_tells_each_sector_from_the_others() -> None:
    content = pattern("seq:s", 5, 3)
    assert content[:20] == b"s                5\ns"
    assert len({content[place : place + 512] for place in (0, 512, 1024)}) == 3
    assert pattern("seq:s", 6, 1) == content[512:1024]
    assert pattern("0x10", 0, 1) == b"\x10" * 512


def test_a_run_from_python() -> None:
    devices = [ConciseDevice("one", Table.parse("0 8 linear disk 0"))]
    with engine("user") as started, Run(started, devices) as running:
        assert running.run(parse("write 0 8 seq")).text == "one: write 0 8 seq: ok"
        assert not running.run(parse("one: verify 0 8 seq")).error
        with pytest.raises(UsageError, match="'two' is not a device here"):
            running.run(parse("two: flush"))
    assert started.mapper.ls() == []


def test_a_code_in_a_path_is_the_character_in_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    spec = r"c d,,,,0 8 linear disk 0;cx20d,,,,0 8 linear disk 8"
    spec += r";top,,,,0 8 linear /dev/mapper/c\\x20d 0"
    assert run("--concise", spec, "write 0 8 7", "verify 0 8 7", "cx20d: verify 0 8 0") == 0
    assert capsys.readouterr().err == ""
