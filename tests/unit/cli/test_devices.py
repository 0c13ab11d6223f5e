"""`dmcopy devices` and `dmcopy doctor`: output, exit codes, typos."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dmcopy.block import discovery, tools
from dmcopy.block.info import DeviceInfo
from dmcopy.cli import checks
from dmcopy.cli.checks import Check
from dmcopy.cli.main import main

_DISK = DeviceInfo(
    name="sda",
    node="/dev/sda",
    devno=(8, 0),
    type="disk",
    sectors=2048,
    serial="S1",
    label="\x1b[31mred",
    fstype="ext4",
    mounts=("/mnt",),
)


@pytest.fixture
def one_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "list_devices", lambda **_: [_DISK])


@pytest.mark.usefixtures("one_disk")
def test_the_list_is_plain_columns_where_no_terminal_is(capsys: Any) -> None:
    assert main(["devices"]) == 0
    bare = capsys.readouterr()
    head, row = bare.out.splitlines()
    assert head.split() == ["DEVICE", "SIZE", "TYPE", "CONTENT", "UUID", "SERIAL", "USED", "BY"]
    assert row.split() == ["/dev/sda", "1", "MiB", "disk", "ext4", r"\x1b[31mred", "S1", "/mnt"]
    assert main(["devices", "list"]) == 0
    assert capsys.readouterr() == bare


@pytest.mark.usefixtures("one_disk")
def test_the_table_on_a_terminal_shows_no_escape_of_a_disk(
    capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["devices"]) == 0
    assert r"\x1b[31mred" in capsys.readouterr().out


@pytest.mark.usefixtures("one_disk")
@pytest.mark.parametrize("words", [["--json"], ["list", "--json"], ["--json", "list"]])
def test_json_before_and_after_the_verb(capsys: Any, words: list[str]) -> None:
    assert main(["devices", *words]) == 0
    (disk,) = json.loads(capsys.readouterr().out)
    assert (disk["node"], disk["devno"], disk["sectors"]) == ("/dev/sda", "8:0", 2048)


def test_who(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "disk.img"
    file.write_text("")
    assert main(["devices", "who", str(file)]) == 0
    assert capsys.readouterr().err.startswith(f"nothing uses {file}")
    with open(file, "rb"):
        assert main(["devices", "who", str(file), "--json"]) == 0
    (user,) = json.loads(capsys.readouterr().out)
    assert user["kind"] == "process"
    assert "this process" in user["text"]


def test_who_of_nothing(capsys: Any) -> None:
    assert main(["devices", "who", "no-such-device"]) == 2
    assert "dmcopy: no-such-device: no block device has this name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lst"], "did you mean 'list'"),
        (["list", "--jsn"], "did you mean '--json'"),
        (["watch", "--timeou", "1"], "did you mean '--timeout'"),
        (["watch", "--timeout", "soon"], "'soon' is not a number of seconds"),
        (["watch", "--timeout", "-1"], "'-1' is not a number of seconds"),
        (["who"], "required: DEV"),
    ],
)
def test_typos(words: list[str], message: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["devices", *words])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def _group(*found: Check) -> tuple[Callable[[], list[Check]], ...]:
    return (lambda: list(found),)


def test_the_doctor_ends_with_5_only_for_what_is_needed(
    capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    optional = Check("nbd", False, "", "modprobe nbd")
    monkeypatch.setattr("dmcopy.cli.checks.CHECKS", _group(optional))
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["missing", "nbd", "modprobe", "nbd"]
    needed = Check("python", False, needed=True)
    monkeypatch.setattr("dmcopy.cli.checks.CHECKS", _group(optional, needed))
    assert main(["doctor", "--json"]) == 5
    shown = capsys.readouterr()
    assert json.loads(shown.out)["ok"] is False
    assert shown.err.splitlines() == ["dmcopy: copying cannot work here without: python"]


def test_the_checks_look_at_this_machine(capsys: Any) -> None:
    assert main(["doctor", "--json"]) == 0
    found = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert found["Python 3.11"]["ok"]
    assert found["I/O back end"]["ok"]
    assert all(check["fix"] for check in found.values() if not check["ok"])


def test_a_missing_tool_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "which", lambda _program: None)
    found = checks._tool("qemu-system-x86_64")
    assert (found.ok, found.fix) == (False, "apt-get install qemu-system-x86")
