"""`dmcopy snapshot` on the real kernel: on a mounted file system, under load, and killed."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dmcopy.cli.main import main
from dmcopy.errors import DmcopyError
from dmcopy.mapper.kernel import KernelMapper
from dmcopy.table import Delay, Linear, SnapshotMerge, Table
from dmcopy.table.faults import Delayed
from dmcopy.workflows import journal as journals
from dmcopy.workflows.journal import Journal
from dmcopy.workflows.nodes import Nodes
from dmcopy.workflows.snapshot import Snapshots
from dmcopy.workflows.snapshot_request import Request
from dmcopy.workflows.snapshot_watch import Threshold, watch
from tests.kernel.marks import long_only

pytestmark = pytest.mark.kernel

MIB = 1 << 20
SMALL = 4096  # sectors


def run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


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


def snapshots(mapper: KernelMapper, owner: str = "") -> Snapshots:
    return Snapshots(mapper, nodes=Nodes(mapper.ledger), journal=Journal(owner=owner))


def fill(device: Path, byte: bytes, size: int = SMALL * 512) -> None:
    with device.open("r+b", buffering=0) as file:
        file.write(byte * size)
        os.fsync(file)


def content(device: str | Path, size: int = SMALL * 512) -> set[bytes]:
    with Path(device).open("rb") as file:
        whole = file.read(size)
    return {bytes([byte]) for byte in whole}


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


@pytest.mark.parametrize("data", [64 * 2048], indirect=True)
def test_a_mounted_file_system_under_load(
    mapper: KernelMapper, data: Path, cows: list[str], tmp_path: Path
) -> None:
    run("mkfs.ext4", "-q", str(data))
    point, old = tmp_path / "now", tmp_path / "old"
    point.mkdir()
    old.mkdir()
    run("mount", str(data), str(point))
    try:
        (point / "file").write_text("old")
        writer = Writer(point / "log")
        writer.start()
        while writer.lines < 3:
            assert writer.is_alive()
        before = writer.lines
        out = dmcopy("take", "snap", "data", cows[0], "--chunk-size", "4K")
        assert out == "/dev/mapper/snap is data as it is now\n"
        (point / "file").write_text("new")
        after = writer.lines
        while writer.lines < after + 3:  # it goes on: nothing is suspended any more
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
    assert (lines[0]["total"], lines[-1]["left"], lines[-1]["percent"]) == (SMALL, 0, 100.0)
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


def kill(mapper: KernelMapper, at: tuple[str, str], verb: Callable[[Snapshots], object]) -> None:
    """Run `verb` in a process that is killed at a command of dmsetup."""
    child = os.fork()
    if not child:
        try:
            victim = Victim(ledger=mapper.ledger)
            victim.fatal = at
            verb(snapshots(victim))
        finally:
            os._exit(1)  # it was to be killed before
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL, f"it was not killed: {status}"


def test_killed_while_the_origin_is_suspended(
    mapper: KernelMapper, data: Path, cows: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    fill(data, b"a")

    def take(snapshots: Snapshots) -> None:
        snapshots.take(Request("snap", "data", cows[0]))

    kill(mapper, ("resume", "data"), take)
    assert mapper.info("data").suspended
    (state,) = json.loads(dmcopy("status", "--json"))
    assert (state["state"], state["interrupted"]) == ("suspended", "dmcopy snapshot take snap")
    assert "'dmcopy snapshot undo snap' takes it back" in state["advice"]
    assert main(["snapshot", "take", "snap", "data", cows[0]]) == 1
    assert "was interrupted: 'dmcopy snapshot finish snap' ends it" in capsys.readouterr().err
    dmcopy("undo", "snap")
    assert [info.name for info in mapper.ls()] == ["data"]
    assert content(data) == {b"a"}

    kill(mapper, ("resume", "snap"), take)
    dmcopy("finish", "snap")
    fill(data, b"b")
    assert content(mapper.path("snap")) == {b"a"}

    kill(mapper, ("suspend", "data"), lambda snapshots: snapshots.drop("snap"))
    assert main(["snapshot", "undo", "snap"]) == 1  # the snapshot is gone already
    dmcopy("finish", "snap")
    assert content(data) == {b"b"}


@long_only
def test_a_merge_that_is_killed(mapper: KernelMapper, data: Path, cows: list[str]) -> None:
    mapper.create("slow", Table.of(16384, Linear(cows[0], 0)))
    fill(data, b"a")
    snapshots(mapper).take(Request("snap", "data", "slow"))
    fill(data, b"b")
    # The kernel cannot read the last chunks in the next minute: it is not done before it is looked
    # at. What udev reads, the beginning and the end, is as quick as ever.
    delay = Delay(Delayed(cows[0], 2048, 60_000), Delayed(cows[0], 2048, 0))
    ends = Linear(cows[0], 0), Linear(cows[0], 8192)
    mapper.swap("slow", Table.concat([(2048, ends[0]), (6144, delay), (8192, ends[1])]))

    def merge(snapshots: Snapshots) -> None:
        snapshots.merge("snap", progress=lambda _: os.kill(os.getpid(), signal.SIGKILL))

    kill(mapper, ("never", ""), merge)
    (state,) = json.loads(dmcopy("status", "--json"))
    assert (state["state"], state["interrupted"]) == ("merging", "dmcopy snapshot merge snap")
    assert state["advice"] == "'dmcopy snapshot finish snap' ends it"
    dmcopy("undo", "snap", code=1)
    mapper.swap("slow", Table.of(16384, Linear(cows[0], 0)))
    dmcopy("merge", "snap")
    assert content(data) == {b"a"}
    mapper.remove("slow")
    assert [info.name for info in mapper.ls()] == ["data"]


@long_only
def test_a_merge_that_goes_on_after_a_restart(
    mapper: KernelMapper,
    data: Path,
    scratch_disks: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fill(data, b"a")
    snapshots(mapper).take(Request("snap", "data", str(scratch_disks[1])))
    fill(data, b"b")
    kill(mapper, ("resume", "data"), lambda snapshots: snapshots.merge("snap"))
    for name in ("snap", "data", "data-real", "snap-cow"):
        mapper.remove(name)
    monkeypatch.setattr(journals, "boot_id", lambda: "another boot")
    mapper.create("data", Table.of(SMALL, Linear(str(scratch_disks[0]), 0)))
    assert content(data) == {b"b"}
    dmcopy("finish", "snap")
    assert content(data) == {b"a"}
    assert [info.name for info in mapper.ls()] == ["data"]
    with pytest.raises(DmcopyError):
        snapshots(mapper).finish("snap")


@long_only
def test_watch_extends_before_it_overflows(
    mapper: KernelMapper, data: Path, cows: list[str]
) -> None:
    mapper.create("little", Table.of(512, Linear(cows[0], 0)))
    fill(data, b"a")
    mine = snapshots(mapper)
    mine.take(Request("snap", "data", "little", chunk_size=8))

    def load() -> None:
        with data.open("r+b", buffering=0) as file:
            for _ in range(SMALL // 8):
                file.write(b"b" * 4096)
                os.fsync(file)

    writer = threading.Thread(target=load, daemon=True)
    events = []
    writer.start()
    # Only the room that the first extension adds is on the disk that is given.
    spare = Threshold(50, ("test", "snap", "=", "snap"), extend=SMALL * 2, more=cows[1])
    for level in watch(mine, "snap", interval=0.1, threshold=spare):
        events.append(level.event)
        if not writer.is_alive():
            break
    writer.join(60)
    assert [event for event in events if event != "level"] == ["threshold", "extended", "command"]
    (state,) = json.loads(dmcopy("status", "--json"))
    assert (state["state"], state["total"]) == ("active", 512 + SMALL * 2)
    assert state["used"] > 512  # without it, it would have been lost
    assert content(mapper.path("snap")) == {b"a"}
    mine.drop("snap")
    mapper.remove("little")
    assert not isinstance(mapper.table("data").lines[0].target, SnapshotMerge)
