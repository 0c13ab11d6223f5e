"""`dmcopy snapshot` on the real kernel: on a mounted file system, under load, and killed."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dmcopy.cli.main import main
from dmcopy.errors import DmcopyError, ExitCode
from dmcopy.mapper.kernel import KernelMapper
from dmcopy.table import Delay, Linear, Table
from dmcopy.table.faults import Delayed
from dmcopy.workflows import record as records
from dmcopy.workflows.journal import Journal
from dmcopy.workflows.mirror_resync import ignore
from dmcopy.workflows.session import Session
from dmcopy.workflows.snapshot import merge, plan_drop, plan_take
from tests.kernel.programs import run

pytestmark = pytest.mark.kernel(either=True, cost=6)

MIB = 1 << 20
SMALL = 4096  # sectors


def dmcopy(*words: str, code: int = 0) -> str:
    """Run `dmcopy snapshot` in this process: a Python takes seconds to start in a guest."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["snapshot", *words]) == code
    return out.getvalue()


@pytest.fixture
def cows(scratch_disks: list[Path]) -> list[str]:
    return [str(disk) for disk in scratch_disks[1:]]


@pytest.fixture
def data(
    mapper: KernelMapper, scratch_disks: list[Path], request: pytest.FixtureRequest
) -> Iterator[Path]:
    """A mapped device `data` over the first disk; at the end it must be as it was."""
    sectors = getattr(request, "param", SMALL)
    table = Table.of(sectors, Linear(str(scratch_disks[0]), 0))
    mapper.create("data", table)
    was = str(mapper.table("data"))
    yield Path(mapper.path("data"))
    assert str(mapper.table("data")) == was
    assert not mapper.info("data").suspended
    mapper.remove("data")


def session(mapper: KernelMapper, observer: Callable[[Any], object] = ignore) -> Session:
    return Session(mapper, Journal(), observer)


def take(mapper: KernelMapper, cow: str, **options: Any) -> None:
    """Take the snapshot `snap` of `data`."""
    session(mapper).run(plan_take(mapper, "snap", "data", cow, **options))


def drop(mapper: KernelMapper) -> None:
    session(mapper).run(plan_drop(mapper, "snap"))


def fill(device: Path, byte: bytes, size: int = SMALL * 512, *, at: int = 0) -> None:
    with device.open("r+b", buffering=0) as file:
        file.seek(at)
        file.write(byte * size)
        os.fsync(file)


def content(device: str | Path, size: int = SMALL * 512) -> set[bytes]:
    with Path(device).open("rb") as file:
        whole = file.read(size)
    return {bytes([byte]) for byte in set(whole)}


class Writer(threading.Thread):
    """Appends lines to a file and syncs it, until told to stop."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.path = path
        self.lines = 0
        self.stop = threading.Event()

    def run(self) -> None:
        with self.path.open("w") as file:
            while not self.stop.is_set():
                file.write(f"{self.lines}\n")
                file.flush()
                os.fsync(file.fileno())
                self.lines += 1
                self.stop.wait(0.03)  # or the workflow hardly gets a turn in a guest


@pytest.mark.parametrize("data", [16 * 2048], indirect=True)
def test_a_mounted_file_system_under_load(
    mapper: KernelMapper, data: Path, cows: list[str], tmp_path: Path
) -> None:
    run("mkfs.ext4", "-q", "-E", "nodiscard", str(data))
    point, old = tmp_path / "now", tmp_path / "old"
    point.mkdir()
    old.mkdir()
    run("mount", str(data), str(point))
    try:
        (point / "file").write_text("old")
        writer = Writer(point / "log")
        writer.start()
        while writer.lines < 3:
            writer.join(0.01)
            assert writer.is_alive()
        before = writer.lines
        out = dmcopy("take", "snap", "data", cows[0], "--chunk-size", "4K")
        assert out == "/dev/mapper/snap is data as it is now\n"
        (point / "file").write_text("new")
        after = writer.lines
        while writer.lines < after + 3:  # it continues: nothing is suspended any more
            writer.join(0.01)
            assert writer.is_alive()
        writer.stop.set()
        writer.join(60)
        run("sync", "-f", str(point))
        (state,) = json.loads(dmcopy("status", "--json", "snap"))
        assert (state["state"], state["origin"], state["chunk_size"]) == ("active", "data", 8)
        assert state["used"] > state["metadata"]
        run("e2fsck", "-f", "-n", mapper.path("snap"))
        run("mount", "-o", "ro,noload", mapper.path("snap"), str(old))
        try:
            assert (old / "file").read_text() == "old"
            lines = (old / "log").read_text().split()
            assert before <= len(lines) <= after + 1
            assert lines == [str(number) for number in range(len(lines))]
        finally:
            run("umount", str(old))
        dmcopy("merge", "snap", code=6)  # it is mounted
        dmcopy("drop", "snap")
        assert (point / "file").read_text() == "new"
    finally:
        run("umount", str(point))
    run("e2fsck", "-f", "-n", str(data))


def test_merge_rolls_back_and_tells_how_far_it_is(
    mapper: KernelMapper, data: Path, cows: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    fill(data, b"a")
    assert main(["snapshot", "take", "snap", "data", cows[0]]) == 0
    assert main(["snapshot", "take", "other", "data", cows[1]]) == 0
    fill(data, b"b")
    capsys.readouterr()
    assert main(["snapshot", "merge", "snap", "--progress=json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert {line["phase"] for line in lines} == {"merge"}
    assert (lines[0]["total"], lines[-1]["sectors"]) == (SMALL, SMALL)
    assert content(data) == {b"a"}
    assert content(mapper.path("other")) == {b"a"}
    assert sorted(info.name for info in mapper.ls()) == ["data", "data-real", "other", "other-cow"]
    assert main(["snapshot", "drop", "other"]) == 0
    # The COW of one that was merged is wiped; that of one that was dropped keeps its content.
    assert content(cows[0], 4) == {b"\0"}
    assert main(["snapshot", "take", "snap", "data", cows[1]]) == 2
    assert "the store of an earlier snapshot on it: --force" in capsys.readouterr().err


def test_a_dry_run_can_be_replayed_by_hand(
    mapper: KernelMapper, data: Path, cows: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    def replay(*words: str) -> None:
        before = [(info.name, str(mapper.table(info.name))) for info in mapper.ls()]
        script = dmcopy(*words, "--dry-run")
        assert before == [(info.name, str(mapper.table(info.name))) for info in mapper.ls()]
        run("sh", "-ec", script)

    fill(data, b"a")
    replay("take", "snap", "data", cows[0])
    fill(data, b"b")
    replay("merge", "snap")
    assert content(data) == {b"a"}
    assert Journal().records() == []
    assert "snapshot" not in capsys.readouterr().err


def test_a_device_that_is_not_mapped(mapper: KernelMapper, scratch_disks: list[Path]) -> None:
    disk = scratch_disks[0]
    file = Path("/dev/shm") / f"dmcopy-test-{os.getpid()}.img"
    file.touch()
    os.truncate(file, 8 * MIB)
    try:
        fill(disk, b"a")
        out = dmcopy("take", "snap", str(disk), str(file))
        origin = Path(mapper.path(f"{disk.name}-origin"))
        assert f"use {origin} instead of {disk} from now on" in out
        fill(origin, b"b")
        assert content(mapper.path("snap")) == {b"a"}
        dmcopy("extend", "snap", "+8M")
        (state,) = json.loads(dmcopy("status", "--json"))
        assert (state["total"], state["cow"]) == (16 * MIB // 512, str(file))
        assert file.stat().st_size == 16 * MIB
        dmcopy("merge", "snap")
        assert content(disk) == {b"a"}
        assert str(file) not in run("losetup", "--list")
    finally:
        file.unlink()
    assert mapper.ls() == []


class Victim(KernelMapper):
    """Is killed just before a call, with the ioctls before it done."""

    fatal: tuple[str, str] = ("", "")

    def _change(self, action: str, name: str, *words: str, **options: object) -> str:
        if (words[0], name) == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._change(action, name, *words, **options)  # type: ignore[arg-type]


def kill(mapper: KernelMapper, at: tuple[str, str], verb: Callable[[KernelMapper], object]) -> None:
    """Run `verb` in a process that is killed at a command of dmsetup."""
    child = os.fork()
    if not child:
        try:
            victim = Victim(ledger=mapper.ledger)
            victim.fatal = at
            verb(victim)
        finally:
            os._exit(1)  # it was to be killed before
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL, f"it was not killed: {status}"


def test_killed_while_the_origin_is_suspended(
    mapper: KernelMapper, data: Path, cows: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    fill(data, b"a")

    def killed(at: tuple[str, str]) -> None:
        kill(mapper, at, lambda victim: take(victim, cows[0]))

    killed(("resume", "data"))
    assert mapper.info("data").suspended
    (state,) = json.loads(dmcopy("status", "--json"))
    assert (state["state"], state["interrupted"]) == ("suspended", "dmcopy snapshot take snap")
    assert "'dmcopy snapshot undo snap' takes it back" in state["advice"]
    assert main(["snapshot", "take", "snap", "data", cows[0]]) == 1
    assert "was interrupted: 'dmcopy snapshot finish snap' ends it" in capsys.readouterr().err
    dmcopy("undo", "snap")
    assert [info.name for info in mapper.ls()] == ["data"]
    assert content(data) == {b"a"}

    killed(("resume", "snap"))
    dmcopy("finish", "snap")
    fill(data, b"b")
    assert content(mapper.path("snap")) == {b"a"}

    kill(mapper, ("suspend", "data"), drop)
    assert main(["snapshot", "undo", "snap"]) == 1  # the snapshot is gone already
    dmcopy("finish", "snap")
    assert content(data) == {b"b"}


SLOW = range(576, 992)
"""Sectors of a COW that udev does not read: blkid looks at the first 256 KiB and the last 1.6 MiB
of a device, and at a block at 512 KiB, 1, 2 and 4 MiB (strace and blktrace of 2.38)."""


def test_a_merge_that_is_killed(mapper: KernelMapper, data: Path, cows: list[str]) -> None:
    fast = Table.of(16384, Linear(cows[0], 0))
    mapper.create("slow", fast)
    fill(data, b"a")
    take(mapper, "slow")
    # Of the origin, too, only what udev does not read is in the COW: 32 to 1024 there.
    fill(data, b"b", 960 * 512, at=2112 * 512)
    # Reading a part of that takes the kernel a minute, or until the device is suspended.
    start, length = SLOW.start, len(SLOW)
    delay = Delay(Delayed(cows[0], start, 60_000), Delayed(cows[0], start, 0))
    rest = Linear(cows[0], SLOW.stop)
    parts = [(start, Linear(cows[0], 0)), (length, delay), (16384 - SLOW.stop, rest)]
    mapper.swap("slow", Table.concat(parts))

    def killed(victim: KernelMapper) -> None:
        merge(session(victim, lambda _: os.kill(os.getpid(), signal.SIGKILL)), "snap")

    kill(mapper, ("never", ""), killed)
    (state,) = json.loads(dmcopy("status", "--json"))
    assert (state["state"], state["interrupted"]) == ("merging", "dmcopy snapshot merge snap")
    assert state["advice"] == "'dmcopy snapshot finish snap' ends it"
    dmcopy("undo", "snap", code=1)
    mapper.swap("slow", fast)
    dmcopy("merge", "snap")
    assert content(data) == {b"a"}
    mapper.remove("slow")
    assert [info.name for info in mapper.ls()] == ["data"]


def test_a_merge_that_goes_on_after_a_restart(
    mapper: KernelMapper,
    data: Path,
    scratch_disks: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fill(data, b"a")
    take(mapper, str(scratch_disks[1]))
    fill(data, b"b")
    kill(mapper, ("resume", "data"), lambda victim: merge(session(victim), "snap"))
    for name in ("snap", "data", "data-real", "snap-cow"):
        mapper.remove(name)
    monkeypatch.setattr(records, "boot_id", lambda: "another boot")
    mapper.create("data", Table.of(SMALL, Linear(str(scratch_disks[0]), 0)))
    assert content(data) == {b"b"}
    dmcopy("finish", "snap")
    assert content(data) == {b"a"}
    assert [info.name for info in mapper.ls()] == ["data"]
    with pytest.raises(DmcopyError):
        session(mapper).finish("snapshot", "snap")


def merge_of_a_cow_cut_short(
    mapper: KernelMapper, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Begin a merge whose data the COW has lost: it fails."""
    fill(data, b"a")
    take(mapper, "little", chunk_size=8, force=True)
    fill(data, b"b", 160 * 1024)
    mapper.swap("little", Table.of(64, mapper.table("little").lines[0].target))
    with pytest.raises(DmcopyError, match="the merge into data stopped") as caught:
        merge(Session(mapper, Journal(owner="1 0")), "snap")  # as by a process that has ended since
    capsys.readouterr()
    said = "\n".join(caught.value.__notes__)
    assert "'dmcopy snapshot finish snap' ends it; 'dmcopy snapshot forget snap'" in said


def remove_by_hand(mapper: KernelMapper) -> None:
    """Remove the devices of a merge, and make its origin as it was."""
    plain = mapper.table("data-real")
    for name in ("data", "data-real", "snap-cow"):
        mapper.remove(name)
    mapper.create("data", plain)


def test_a_merge_that_failed_and_was_removed_by_hand(
    mapper: KernelMapper, data: Path, cows: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """It continues once its COW is whole again, or is given up; neither is a dead end."""
    whole = Table.of(512, Linear(cows[0], 0))
    mapper.create("little", whole)
    merge_of_a_cow_cut_short(mapper, data, capsys)
    remove_by_hand(mapper)
    dmcopy("take", "next", "data", cows[1], code=1)
    assert "'dmcopy snapshot finish snap' ends it" in capsys.readouterr().err
    dmcopy("undo", "snap", code=1)
    assert "'dmcopy snapshot finish snap' ends it" in capsys.readouterr().err
    dmcopy("finish", "snap", code=1)
    assert "'dmcopy snapshot forget snap' gives it up" in capsys.readouterr().err
    assert [info.name for info in mapper.ls() if not info.suspended] == ["data", "little"]
    mapper.swap("little", whole)
    dmcopy("finish", "snap")
    assert content(data) == {b"a"}

    merge_of_a_cow_cut_short(mapper, data, capsys)
    remove_by_hand(mapper)
    dmcopy("forget", "snap")
    assert "data is rolled back in part" in capsys.readouterr().err
    dmcopy("take", "next", "data", cows[1])
    dmcopy("drop", "next")
    mapper.remove("little")
    assert [info.name for info in mapper.ls()] == ["data"]


def test_a_merge_that_failed_and_was_forgotten(
    mapper: KernelMapper, data: Path, cows: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """It is found by its devices, and continues once its COW is whole again, or is dropped."""
    whole = Table.of(512, Linear(cows[0], 0))
    mapper.create("little", whole)
    merge_of_a_cow_cut_short(mapper, data, capsys)
    dmcopy("forget", "snap")
    assert "'dmcopy snapshot drop snap' ends it" in capsys.readouterr().err
    dmcopy("take", "next", "data", cows[1], code=2)
    assert "as 'dmcopy snapshot merge data' does" in capsys.readouterr().err
    mapper.swap("little", whole)
    dmcopy("merge", "snap")
    assert content(data) == {b"a"}

    merge_of_a_cow_cut_short(mapper, data, capsys)
    dmcopy("forget", "snap")
    dmcopy("drop", "snap")
    mapper.remove("little")
    assert [info.name for info in mapper.ls()] == ["data"]


def test_a_take_that_was_killed_and_whose_names_are_others_by_now(
    mapper: KernelMapper, data: Path, cows: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """What carries the name of a device of ours and another table is not removed."""
    plain = mapper.table("data")
    kill(mapper, ("suspend", "data"), lambda victim: take(victim, cows[0]))
    mapper.clear("data")
    for name in ("snap", "snap-cow"):
        mapper.remove(name)
    mapper.create("snap", Table.of(8, Linear(cows[1], 0)))
    for verb in ("finish", "undo"):
        dmcopy(verb, "snap", code=1)
        assert "snap has another table than 'dmcopy snapshot take snap'" in capsys.readouterr().err
    mapper.remove("snap")
    dmcopy("undo", "snap")
    assert [info.name for info in mapper.ls()] == [data.name]
    assert mapper.table("data") == plain
    # Only a disk with a store on it is wiped: this one is used for something else by now.
    kill(mapper, ("suspend", "data"), lambda victim: take(victim, cows[0]))
    mapper.clear("data")
    for name in ("snap", "data-real", "snap-cow"):
        mapper.remove(name)
    fill(Path(cows[0]), b"c", 4096)
    dmcopy("undo", "snap")
    assert content(cows[0], 4096) == {b"c"}


class Watcher:
    """`dmcopy snapshot watch` in a process of its own. It ends with the snapshot."""

    def __init__(self, *words: str) -> None:
        self._out, out = os.pipe()
        self._process = os.fork()
        if not self._process:
            code = 99
            try:
                with os.fdopen(out, "w") as file, contextlib.redirect_stdout(file):
                    code = main(["snapshot", "watch", *words])
            finally:
                os._exit(code)
        os.close(out)

    def lines(self) -> Iterator[list[dict[str, Any]]]:
        """Yield what it has printed since the last time, waiting for a line; until its end."""
        rest = b""
        while data := os.read(self._out, 1 << 16):
            *lines, rest = (rest + data).split(b"\n")
            if lines:
                yield [json.loads(line) for line in lines]
        os.close(self._out)

    def code(self) -> int:
        """Return the exit code; `lines` must have come to its end."""
        return os.waitstatus_to_exitcode(os.waitpid(self._process, 0)[1])


def take_little(mapper: KernelMapper, data: Path, cows: list[str]) -> None:
    """Take `snap` of `data`, which is all "a", with a COW `little` of 256 KiB."""
    mapper.create("little", Table.of(512, Linear(cows[0], 0)))
    fill(data, b"a")
    take(mapper, "little", chunk_size=8)


def test_watch_extends_before_it_overflows(
    mapper: KernelMapper, data: Path, cows: list[str], tmp_path: Path
) -> None:
    take_little(mapper, data, cows)
    said = tmp_path / "said"
    words = ["snap", "--at", "50", "--interval", "0.5", "--extend", "+4M", "--with", cows[1]]
    watcher = Watcher(*words, "--run", "sh", "-c", f"echo $DMCOPY_SNAPSHOT >{said}")
    seen: list[dict[str, Any]] = []
    written = 0
    batches = watcher.lines()
    # Before another look has been told of, at most a tenth of the COW is written, while the watch
    # continues: two such steps between two looks and one during the extension are less than the
    # half that the threshold leaves.
    for lines in batches:
        seen += lines
        looks = [line for line in lines if line["event"] == "level"]
        if looks and written == SMALL:
            break
        step = min(looks[-1]["total"] // 80 * 8, SMALL - written) if looks else 0
        fill(data, b"b", step * 512, at=written * 512)
        written += step
    acts = [line for line in seen if line["event"] != "level"]
    assert [line["event"] for line in acts] == ["threshold", "extended", "command"]
    threshold, extended, command = acts
    assert 50 <= threshold["percent"] < 80
    assert (threshold["total"], extended["total"]) == (512, 512 + 8192)
    assert command["message"] == "sh: exit 0"
    assert said.read_text() == "snap\n"
    assert seen[-1]["used"] > 8 * 512  # without it, it would have been lost
    assert content(data) == {b"b"}
    assert content(mapper.path("snap")) == {b"a"}
    drop(mapper)
    assert [line["event"] for lines in batches for line in lines][-1] == "gone"
    assert watcher.code() == 0
    mapper.remove("little")


def test_watch_says_that_it_came_too_late(
    mapper: KernelMapper, data: Path, cows: list[str]
) -> None:
    take_little(mapper, data, cows)
    watcher = Watcher("snap", "--at", "50", "--interval", "60")
    batches = watcher.lines()
    assert next(batches)[0]["event"] == "level"
    fill(data, b"b")  # eight times as much as there is room for
    last = [line for lines in batches for line in lines][-1]
    assert (last["event"], last["percent"]) == ("lost", None)
    assert re.search(r" lost: .*; \d+\.\d s before, it was \d+\.\d% full", last["message"])
    assert watcher.code() == 1
    (state,) = json.loads(dmcopy("status", "--json", "snap", code=ExitCode.MISMATCH))
    assert state["state"] == "invalid"
    drop(mapper)
    mapper.remove("little")
