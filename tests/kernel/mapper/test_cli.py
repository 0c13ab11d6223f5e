"""`dmcopy dm` as a program, on the real kernel."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys

import pytest

from dmcopy.cli.main import main
from dmcopy.mapper.kernel import KernelMapper
from dmcopy.table import Linear, Snapshot, Table

from .conftest import Disks

pytestmark = pytest.mark.kernel(either=True, cost=2)


def dm(*words: str, code: int = 0, stdin: str = "") -> str:
    """Run `dmcopy dm` in this process: a Python takes seconds to start in a guest."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setattr("sys.stdin", io.StringIO(stdin))
        assert main(["dm", *words]) == code
    return out.getvalue()


def test_the_six_lines_that_fingers_know(mapper: KernelMapper, disks: Disks) -> None:
    dm("create", "base", stdin=f"0 8192 snapshot-origin {disks.a}\n")
    dm("create", "snap", "--table", f"0 8192 snapshot {disks.a} {disks.b} P 8")
    assert dm("status", "snap") == "0 8192 snapshot 16/32768 16\n"
    dm("suspend", "base")
    dm("resume", "base")
    (line,) = json.loads(dm("status", "--json", "snap"))["snap"]
    assert line["values"]["used"] == {"used": 16, "total": 32768}
    assert dm("ls").count("\t(") == 2
    reloaded = dm("table", "base")
    dm("reload", "base", "--table", reloaded)
    assert dm("table", "--inactive", "base") == reloaded
    dm("clear", "base")
    dm("remove", "snap", "base")
    assert mapper.ls() == []


# What fingers type, word for word.
DMSETUPS_OWN = """\
ls --target linear
ls --tree -o ascii,uuid
info
info -C -O -name -o +blkdevname,devs_used
info -c --noheadings --separator | --rows --nameprefixes --unquoted -o name,open,uuid
info -c -S segments=1
info -u UUID-1
status
status --target zero
table --concise
table --inactive low
table --target linear top low
deps -o devname top
target-version linear"""


def test_what_dmsetup_prints_is_what_is_printed(mapper: KernelMapper, disks: Disks) -> None:
    number = mapper.create("low", Table.parse("0 8 zero"), uuid="UUID-1").info.devno.split(":")
    mapper.load("low", Table.parse(f"0 8 linear {disks.a} 0"))
    mapper.create("top", Table.parse(f"0 8 linear /dev/mapper/low 0\n8 8 linear {disks.a} 0"))
    mapper.create("a b", Table.parse("0 8 zero"))
    for line in [*DMSETUPS_OWN.splitlines(), "status -j {} -m {}".format(*number)]:
        words = line.split()
        assert dm(*words) == mapper.dmsetup.run(*words), line
    dm("info", "-c", "-o", "nosuch", code=2)
    dm("info", "-c", "-S", "nosuch=1", code=2)
    dm("deps", "-o", "nosuch", code=2)
    assert dm("info", "low", "nobody", code=1).startswith("Name:              low\n")
    assert [one["name"] for one in json.loads(dm("info", "--json", "-S", "segments=2"))] == ["top"]
    dm("suspend", "-S", "segments=2")
    assert mapper.info("top").suspended
    dm("resume", "-u", mapper.info("top").uuid)
    dm("remove", "top")
    dm("remove", "-S", "name!=nosuch")
    assert mapper.ls() == []
    for name in ("low", "top", "a b"):  # the command removed them, and it has a ledger of its own
        mapper.ledger.drop("dm", name)


def test_a_snapshot_that_waits_for_a_handover_shows_no_chunk_size(
    mapper: KernelMapper, disks: Disks
) -> None:
    # Which is why what a kernel prints is read without a check.
    table = Table.parse(f"0 8192 snapshot {disks.a} {disks.b} N 8")
    with mapper.device("snap", table) as device:
        device.load(table)
        waiting = mapper.table(device.name, inactive=True).lines[0].target
        assert isinstance(waiting, Snapshot)
        assert (waiting.store, waiting.chunk_size) == ("N", 0)
        mapper.clear(device.name)


def test_a_dry_run_can_be_replayed_by_hand(mapper: KernelMapper, disks: Disks) -> None:
    table = f"0 8 linear {disks.a} 0\n8 8 zero\n"
    script = dm("create", "a 'name'", "--dry-run", stdin=table)
    assert mapper.ls() == []
    subprocess.run(["sh", "-e"], input=script, text=True, check=True, timeout=60)
    (made,) = mapper.ls()
    assert made.name == "a 'name'"
    assert len(mapper.table(made.name).lines) == 2
    script = dm("remove", "--dry-run", made.name)
    subprocess.run(["sh", "-e"], input=script, text=True, check=True, timeout=60)
    assert mapper.ls() == []


def test_a_command_has_the_device_for_as_long_as_it_runs(
    mapper: KernelMapper, disks: Disks
) -> None:
    command = ["sh", "-c", "test -b $DMCOPY_DEVICE && cat /sys/block/dm-*/dm/name && exit 3"]
    words = ["with", "work", "--table", f"0 8 linear {disks.a} 0", "--", *command]
    argv = [sys.executable, "-m", "dmcopy", "dm", *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "work\n", "")
    assert mapper.ls() == []


def test_tree_and_events(mapper: KernelMapper, disks: Disks) -> None:
    argv = [sys.executable, "-m", "dmcopy", "dm", "events", "--follow", "--timeout", "60"]
    pipe = subprocess.PIPE
    with (
        mapper.device("low", mapper_table(disks.a)) as low,
        subprocess.Popen(argv, stdout=pipe, stderr=pipe, text=True) as follower,
    ):
        assert follower.stdout is not None
        assert follower.stderr is not None
        assert follower.stderr.readline() == "watching for events\n"
        with mapper.device("top", mapper_table(low.path)):
            lines = dm("tree").splitlines()
            assert lines[0].startswith("dmcopy-top (")
            assert lines[1].startswith(" └─dmcopy-low (")
        seen = []
        while ("gone", "dmcopy-top") not in seen:
            event = json.loads(follower.stdout.readline())
            seen.append((event["what"], event["device"]))
        assert ("appeared", "dmcopy-top") in seen
        follower.terminate()


def mapper_table(device: str) -> Table:
    return Table.of(8, Linear(device, 0))


def test_errors_name_the_thing_and_what_to_do(disks: Disks) -> None:
    dm("create", "x", "--table", f"0 8 snapshot {disks.a} {disks.b} P 3", code=2)
    dm("remove", "nothing-of-that-name", code=1)
