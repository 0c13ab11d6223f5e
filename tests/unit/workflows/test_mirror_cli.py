"""`dmcopy mirror` over a mapper in memory: what it prints, and how it ends."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
from pathlib import Path

import pytest

from dmcopy.cli.main import main
from dmcopy.cli.mirror_map import SHADES, draw
from dmcopy.cli.mirror_show import progress_line
from dmcopy.cli.workflows import open_mapper
from dmcopy.errors import ExitCode
from dmcopy.mapper.kernel import KernelMapper
from dmcopy.ondisk.bitset import Bitset
from dmcopy.ondisk.mirror_log import MirrorLog
from dmcopy.table import Linear, Table
from dmcopy.table.record import Ratio
from dmcopy.workflows.mirror_resync import Resync

from .fake_mirrors import SECTORS, FakeMirrors


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMirrors:
    fake = FakeMirrors(tmp_path)
    monkeypatch.setattr("dmcopy.cli.workflows.open_mapper", lambda _: fake)
    monkeypatch.setattr("dmcopy.workflows.journal.default_folder", lambda: tmp_path / "journal")
    monkeypatch.setattr("dmcopy.workflows.mirror_resync._SHORTEST", 0.0)
    monkeypatch.setattr("dmcopy.block.holders.who", lambda _: [])
    monkeypatch.setattr(os, "fsync", lambda _: None)
    return fake


def mirror(*words: str, code: int = 0) -> None:
    assert main(["mirror", *words]) == code


def test_the_cookies_of_its_dmsetup_are_in_the_ledger() -> None:
    mapper = open_mapper(argparse.Namespace(dry_run=False, call_timeout=5.0))
    assert isinstance(mapper, KernelMapper)
    assert mapper.dmsetup.ledger is mapper.ledger


def test_the_script_of_a_dry_run_waits_for_the_resync(
    fake: FakeMirrors, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """What follows it calls the legs equal."""
    a, b = (fake.disk(name) for name in "ab")
    fake.create("home", Table.of(SECTORS, Linear(a, 0)))
    mirror("make", "home", "--from", "home", "--leg", b, "--dry-run")
    script = capsys.readouterr().out
    assert script.startswith("until dmsetup status -- home | awk ")
    # It runs until the status says so; here, until the third time.
    (tmp_path / "dmsetup").write_text(
        '#!/bin/sh\necho >> "$0.calls"\ndone=$(wc -l < "$0.calls")\n'
        'echo "0 8 linear 1:1 0"\n'
        'echo "8 9 mirror 2 1:1 1:2 $((done + 1))/4 1 AA 1 core"\n'
    )
    (tmp_path / "dmsetup").chmod(0o755)
    (tmp_path / "sleep").symlink_to("/bin/true")
    path = f"{tmp_path}:{os.environ['PATH']}"
    subprocess.run(
        ["sh", "-e"], input=script, text=True, check=True, env={"PATH": path}, timeout=30
    )
    assert (tmp_path / "dmsetup.calls").read_text() == "\n" * 3


def test_make_to_replace(fake: FakeMirrors, capsys: pytest.CaptureFixture[str]) -> None:
    a, b, c = (fake.disk(name) for name in "abc")
    fake.create("home", Table.of(SECTORS, Linear(a, 0)))
    fake.use("home")
    legs = ("--from", "home", "--leg", b)
    mirror("make", "home", *legs, "--region-size", "512K", "--progress=json")
    said = capsys.readouterr()
    events = [json.loads(line) for line in said.err.splitlines()]
    assert {(event["event"], event["phase"]) for event in events} == {("progress", "resync")}
    assert (events[-1]["in_sync"], events[-1]["regions"], events[-1]["name"]) == (4, 4, "home")
    assert said.out.splitlines() == [
        "home: 2 MiB, 4 of 4 regions of 1024s (512 KiB) in sync, log in memory",
        "  leg 0  /dev/mapper/home_mimage_0  alive",
        f"  leg 1  {b}  alive",
    ]
    capsys.readouterr()
    mirror("fail", "home", "1")
    said = capsys.readouterr()
    (line,) = (line for line in said.out.splitlines() if line.startswith("  leg 1  "))
    assert "; it is in a drill, all of its I/O fails: 'dmcopy mirror replace home 1 NEW" in line
    assert f"home: leg 1, {b}, is in a drill from now on" in said.err
    mirror("status", "--json", code=ExitCode.PARTIAL)
    legs = json.loads(capsys.readouterr().out)["mirrors"]["home"]["legs"]
    assert [leg["drill"] for leg in legs] == [False, True]
    fake.write()
    mirror("status", code=ExitCode.PARTIAL)
    assert "leg 1  /dev/mapper/home_mimage_1  a write failed: the leg is out of sync" in (
        capsys.readouterr().out
    )
    mirror("wait", "home", code=ExitCode.PARTIAL)
    assert "'dmcopy mirror replace home 1 NEWDEV' puts another" in capsys.readouterr().err
    mirror("replace", "home", "1", c, "--json", "--progress=none")
    facts = json.loads(capsys.readouterr().out)["home"]
    assert facts["legs"][1] == {
        "leg": 1,
        "device": c,
        "offset": 0,
        "health": "A",
        "means": "alive",
        "drill": False,
    }
    assert set(fake.devices) == {"home", "home_mimage_0"}
    mirror("split", "home", "1", "copy")
    assert capsys.readouterr().out == f"home: 0 {SECTORS} linear {a} 0\n"
    assert fake.acknowledged == fake.written


def test_the_wrong_words(fake: FakeMirrors, capsys: pytest.CaptureFixture[str]) -> None:
    fake.create("home", Table.of(SECTORS, Linear(fake.disk("a"), 0)))
    b = fake.disk("b")
    mirror("make", "other", "--from", "home", "--leg", b, code=ExitCode.USAGE)
    assert "keeps its name: dmcopy mirror make home --from home" in capsys.readouterr().err
    mirror("split", "home", "1", code=ExitCode.USAGE)
    mirror("split", "home", "1", "copy", "--drop", code=ExitCode.USAGE)
    mirror("finish", "home", code=ExitCode.USAGE)
    assert "nothing was interrupted that has to do with a mirror 'home'" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        mirror("make", "home", "--region-size", "much")


def test_a_resync_that_goes_on_by_itself(
    fake: FakeMirrors, capsys: pytest.CaptureFixture[str]
) -> None:
    legs = ("--leg", fake.disk("a"), "--leg", fake.disk("b"))
    mirror("make", "home", *legs, "--no-wait")
    assert "'dmcopy mirror wait home' ends this" in capsys.readouterr().err
    mirror("status", "--json")
    facts = json.loads(capsys.readouterr().out)
    assert facts["mirrors"]["home"]["in_sync"] < 4
    assert facts["in_progress"][0]["workflow"] == "dmcopy mirror make home"
    mirror("finish", "home", "--timeout", "0", code=ExitCode.FAILED)
    said = capsys.readouterr().err
    assert "it continues" in said
    assert "'dmcopy mirror undo home'" in said
    mirror("finish", "home")
    assert "nosync" in str(fake.table("home"))
    mirror("status")
    assert "dmcopy mirror" not in capsys.readouterr().out


def test_status_says_what_was_interrupted(
    fake: FakeMirrors, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    legs = ("--leg", fake.disk("a"), "--leg", fake.disk("b"))
    with monkeypatch.context() as patch:
        patch.setattr("dmcopy.workflows.journal.identity", lambda _: "1 0")
        mirror("make", "home", *legs, "--no-wait")
    capsys.readouterr()
    mirror("status", "home")
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == (
        "dmcopy mirror make home: was interrupted; 'dmcopy mirror finish home' ends it, "
        "'dmcopy mirror undo home' takes it back"
    )
    mirror("undo", "home")
    assert fake.devices == {}


def test_a_mirror_is_ended(fake: FakeMirrors, capsys: pytest.CaptureFixture[str]) -> None:
    """One that a device was made gives it its table back; one that was made of legs goes."""
    a, b, c = (fake.disk(name) for name in "abc")
    fake.create("home", Table.of(SECTORS, Linear(a, 0)))
    fake.use("home")
    mirror("make", "home", "--from", "home", "--leg", b)
    capsys.readouterr()
    mirror("drop", "home")
    assert capsys.readouterr().out == f"home: 0 {SECTORS} linear {a} 0\n"
    assert set(fake.devices) == {"home"}
    fake.write()
    assert fake.acknowledged == fake.written
    mirror("make", "vol", "--leg", b, "--leg", c)
    capsys.readouterr()
    mirror("drop", "vol")
    assert capsys.readouterr().out == f"vol is gone; {b}, {c} have all of its data\n"
    mirror("make", "vol", "--leg", b, "--leg", c, "--no-wait", "--force", "--progress=none")
    mirror("drop", "vol", code=ExitCode.BUSY)  # it is being made
    mirror("finish", "vol")
    mirror("fail", "vol", "1")
    mirror("drop", "vol", "--keep", "1", code=ExitCode.FAILED)
    capsys.readouterr()
    mirror("drop", "vol", "--keep", "0")
    assert capsys.readouterr().out == f"vol: 0 {SECTORS} linear {b} 0\n"
    assert set(fake.devices) == {"home", "vol"}
    mirror("drop", "vol", code=ExitCode.USAGE)
    assert "vol is not a mirror" in capsys.readouterr().err


def test_a_mirror_that_is_in_use_is_not_removed(
    fake: FakeMirrors, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror("make", "vol", "--leg", fake.disk("a"), "--leg", fake.disk("b"))
    info = fake.info("vol")
    monkeypatch.setattr(fake, "info", lambda _: dataclasses.replace(info, open_count=1))
    mirror("drop", "vol", code=ExitCode.BUSY)
    assert "'dmcopy mirror drop vol --keep 0'" in capsys.readouterr().err
    mirror("drop", "vol", "--keep", "0")


def test_a_damaged_record_is_told_of_and_forgotten(
    fake: FakeMirrors, capsys: pytest.CaptureFixture[str]
) -> None:
    mirror("make", "vol", "--leg", fake.disk("a"), "--leg", fake.disk("b"))
    (fake.folder / "journal" / "mirror-home.json").write_bytes(b"[[")
    mirror("status", code=ExitCode.MISMATCH)
    for verb in ("finish", "undo"):
        mirror(verb, "home", code=ExitCode.MISMATCH)
        assert "'dmcopy mirror forget home' puts it aside" in capsys.readouterr().err
    mirror("drop", "vol", "--keep", "0")
    mirror("forget", "home")
    assert "its record was damaged" in capsys.readouterr().err
    mirror("status")


def test_watch_draws_the_log(fake: FakeMirrors, capsys: pytest.CaptureFixture[str]) -> None:
    log = Path(fake.disk("log", 64))
    legs = ("--leg", fake.disk("a"), "--leg", fake.disk("b"))
    mirror("make", "home", *legs, "--log", str(log))
    clean = Bitset(4)
    clean.fill(1, 4, True)
    log.write_bytes(MirrorLog(clean).build().ljust(64 * 512, b"\0"))
    capsys.readouterr()
    mirror("status", "home", "--watch", "--count", "2", "--interval", "0")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert lines[3:5] == ["  ░███", "  1 of 4 regions are dirty; a cell is up to 1"]


def test_a_watch_that_is_interrupted_ends_with_130(
    fake: FakeMirrors, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror("make", "home", "--leg", fake.disk("a"), "--leg", fake.disk("b"))

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", interrupt)
    mirror("status", "--watch", code=ExitCode.INTERRUPTED)


def test_the_map_never_hides_a_dirty_region() -> None:
    clean = Bitset(1000)
    clean.fill(0, 1000, True)
    clean[0] = clean[999] = False
    clean.fill(500, 520, False)
    *rows, said = draw(Ratio(978, 1000), MirrorLog(clean), width=14)
    cells = "".join(row.strip() for row in rows)
    assert len(cells) == 160
    assert said == "  22 of 1000 regions are dirty; a cell is up to 7"
    assert (cells[0], cells[159]) == (SHADES[2], SHADES[2])
    assert cells.count(SHADES[3]) == 160 - 2 - len(cells[80:84].replace(SHADES[3], ""))
    assert SHADES[0] in cells[80:84]


def test_the_map_of_a_log_in_memory() -> None:
    bar, said = draw(Ratio(1, 4), None, width=12)
    assert bar == f"  {SHADES[3] * 2}{SHADES[0] * 6}"
    assert "not which" in said


def test_a_line_of_progress() -> None:
    text = progress_line(Resync("home", 3, 4, 3072, 4096, 6.0, 512.0, 2.0))
    assert text == "home: 3 of 4 regions in sync, 256 KiB/s, 2 s left"
    text = progress_line(Resync("home", 3, 4, 3072, 4096, 0.0, 0.0, None))
    assert text == "home: 3 of 4 regions in sync"
