"""dmcopy copy as a program, on loop devices: kill -9, signals, disks that fail, and refusals."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dmcopy.block.loop import loop_device

pytestmark = pytest.mark.loop

MIB = 1 << 20
DEADLINE = 60.0
ENGINES = ("threads", "uring")


def dmcopy(*words: object) -> list[str]:
    return [sys.executable, "-m", "dmcopy", *(os.fspath(word) for word in words)]  # type: ignore[call-overload]


def run(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(dmcopy(*words), capture_output=True, text=True, timeout=DEADLINE)


def facts(*words: object) -> tuple[int, dict[str, Any]]:
    done = run(*words, "--json")
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def fill(*loops: Any, byte: bytes = b"") -> None:
    """Fill the backing files: with one byte, or at random. Through the device, so it sees them."""
    for loop in loops:
        size = os.stat(loop.backing).st_size
        with open(loop.path, "wb") as file:
            file.write(byte * size if byte else os.urandom(size))


def content(loop: Any) -> bytes:
    """Return what the device holds: what is in its page cache may be older."""
    subprocess.run(["blockdev", "--flushbufs", loop.path], check=True)
    return Path(loop.path).read_bytes()


@pytest.mark.parametrize("io", ENGINES)
def test_one_to_three_on_both_back_ends(loops: Any, io: str) -> None:
    source, *dests = loops(16 * 2048 + 8, 4)
    fill(source)
    code, told = facts("copy", source, *dests, "--io", io, "--verify")
    assert (code, told["backend"]) == (0, io)
    assert all(dest["verified"] and dest["direct"] for dest in told["destinations"])
    assert {content(dest) for dest in dests} == {content(source)}


@pytest.mark.parametrize("io", ENGINES)
def test_blocks_of_4096_bytes_and_nothing_beyond_the_range(loops: Any, io: str) -> None:
    (source,) = loops(4096)
    (dest,) = loops(4096, sector_size=4096)
    fill(source)
    fill(dest, byte=b"\xff")
    words = ["copy", source, dest, "--from", "3", "--to", "8", "--io", io, "--verify"]
    assert run(*words, "--count", "800").returncode == 0
    wanted = content(source)[3 * 512 : 803 * 512]
    assert content(dest) == b"\xff" * 4096 + wanted + b"\xff" * (4096 - 808) * 512
    done = run(*words, "--count", "801")
    assert done.returncode == 2
    assert "not on whole blocks" in done.stderr


def test_zero_and_sparse(loops: Any) -> None:
    source, one, two = loops(8 * 2048, 3)
    with open(source.path, "r+b") as file:
        file.seek(MIB + 4096)
        file.write(os.urandom(MIB))
    fill(one, two, byte=b"\xff")
    assert run("zero", one, "--verify").returncode == 0
    assert content(one) == bytes(8 * MIB)
    assert run("copy", source, two, "--sparse", "--verify").returncode == 0
    assert content(two) == content(source)


@contextmanager
def full_disk(folder: Path, mib: int) -> Iterator[Path]:
    """A tmpfs that is full when `mib` MiB are written: loop devices on it then fail with EIO."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "dmcopy-test", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no tmpfs can be mounted here: {error.stderr!r}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("io", ENGINES)
def test_three_destinations_one_of_which_fails_part_way(loops: Any, io: str) -> None:
    source, one, two = loops(24 * 2048, 3)
    fill(source)
    with full_disk(loops.folder / "full", 8) as folder:
        file = folder / "disk.img"
        file.touch()
        os.truncate(file, 24 * MIB)
        with loop_device(file) as failing:
            code, told = facts("copy", source, one, failing, two, "--verify", "--io", io)
    assert code == 3
    assert [dest["ok"] for dest in told["destinations"]] == [True, False, True]
    assert [dest["verified"] for dest in told["destinations"]] == [True, None, True]
    # Kernels differ in what a loop device on a full file system says.
    assert told["destinations"][1]["error"] in ("EIO", "ENOSPC")
    assert told["destinations"][1]["failed"][0]["errno"] in ("EIO", "ENOSPC")
    assert 0 < told["destinations"][1]["sectors_written"] <= 8 * 2048
    assert content(one) == content(two) == content(source)


@pytest.mark.parametrize("io", ENGINES)
def test_a_source_that_ends_half_way(loops: Any, io: str) -> None:
    source, dest = loops(8 * 2048, 2)
    fill(source)
    fill(dest, byte=b"\xff")
    os.truncate(source.backing, 4 * MIB + 1536)  # the device still says 8 MiB
    code, told = facts("copy", source, dest, "--io", io)
    assert (code, told["source"]["read_errors"][0]["errno"]) == (1, "EIO")
    words = ["copy", source, dest, "--io", io, "--on-error", "skip", "--count", "5M"]
    code, told = facts(*words, "--piece", "64K", "--map", loops.folder / "map")
    assert code == 3
    kept = 4 * 2048 + 3
    (bad,) = told["source"]["read_errors"]
    # The loop driver may read a file's last page whole.
    assert kept <= bad["sector"] <= 4 * 2048 + 8
    assert bad["sector"] + bad["count"] == 5 * 2048
    assert Path(loops.folder / "map").read_text().splitlines()[-1].endswith("-")
    assert content(dest)[bad["sector"] * 512 :] == b"\xff" * (8 * MIB - bad["sector"] * 512)


class TestRefusals:
    """What would harm a user's data is refused, with the reason."""

    def test_a_mounted_destination(self, loops: Any, tmp_path: Path) -> None:
        source, dest = loops(16384, 2)
        subprocess.run(["mkfs.ext4", "-q", "-F", dest.path], check=True)
        subprocess.run(["mount", dest.path, str(tmp_path)], check=True)
        try:
            done = run("copy", source, dest)
        finally:
            subprocess.run(["umount", str(tmp_path)], check=True)
        assert (done.returncode, done.stdout) == (6, "")
        assert f"{dest.path} is in use by the file system mounted on {tmp_path}" in done.stderr

    def test_a_device_and_the_file_that_it_is_made_of(self, loops: Any) -> None:
        (loop,) = loops(2048)
        done = run("copy", loop.backing, loop)
        assert done.returncode == 2
        assert "it is the same storage" in done.stderr
        done = run("copy", loop, loop.backing)
        assert done.returncode == 6
        assert f"loop device {loop.path}" in done.stderr

    def test_a_disk_and_its_own_partition(self, loops: Any) -> None:
        (loop,) = loops(16384)
        fill(loop)
        before = content(loop)
        subprocess.run(["addpart", loop.path, "1", "2048", "8192"], check=True)
        try:
            part = f"{loop.path}p1"
            refused = run("copy", loop, part, "--count", "8192")
            allowed = run("copy", loop, part, "--from", "10240", "--count", "1024")
        finally:
            subprocess.run(["delpart", loop.path, "1"], check=True)
        assert (refused.returncode, allowed.returncode) == (2, 0), allowed.stderr
        assert "it is the same storage" in refused.stderr
        moved = before[10240 * 512 : 11264 * 512]
        assert content(loop) == before[: 2048 * 512] + moved + before[3072 * 512 :]

    def test_destinations_that_lie_over_each_other(self, loops: Any) -> None:
        (source,), (disk,) = loops(1024), loops(16384)
        fill(source)
        parts = [(0, 4096), (512, 4096), (8192, None)]
        with contextlib.ExitStack() as stack:
            one, two, apart = (
                stack.enter_context(loop_device(disk.path, offset=offset, size=size))
                for offset, size in parts
            )
            done = run("copy", source, one, two, "--to", "2048")
            assert (done.returncode, done.stdout) == (2, "")
            assert "overlaps another destination" in done.stderr
            assert content(disk) == bytes(16384 * 512)
            # These parts of them do not.
            assert run("copy", source, one, two, "--count", "512").returncode == 0
            assert run("zero", one, apart).returncode == 0
        subprocess.run(["addpart", disk.path, "1", "2048", "8192"], check=True)
        try:
            for pair in ((disk.path, f"{disk.path}p1"), (f"{disk.path}p1", disk.path)):
                done = run("copy", source, *pair)
                assert done.returncode == 2
                assert "are the same storage: give one of them" in done.stderr
        finally:
            subprocess.run(["delpart", disk.path, "1"], check=True)

    def test_a_partition_of_a_disk_that_a_loop_device_is_made_of(self, loops: Any) -> None:
        (source,), (disk,) = loops(1024), loops(16384)
        subprocess.run(["addpart", disk.path, "1", "2048", "8192"], check=True)
        part = f"{disk.path}p1"
        try:
            with loop_device(disk.path) as over:
                done = run("copy", source, part)
                assert done.returncode == 6
                phrase = f"loop device {over.path} (whole disk {disk.name})"
                assert phrase in done.stderr
                assert phrase in run("devices", "who", part).stdout
            with loop_device(disk.path, offset=2048 + 8192):  # behind the partition
                assert run("copy", source, part).returncode == 0
        finally:
            subprocess.run(["delpart", disk.path, "1"], check=True)

    def test_a_device_by_two_names(self, loops: Any) -> None:
        (loop,) = loops(2048)
        link = loops.folder / "link"
        link.symlink_to(loop.path)
        done = run("copy", loop, link, "--count", "8", "--to", "4")
        assert done.returncode == 2
        assert "overlaps the source" in done.stderr

    def test_a_small_and_a_read_only_destination(self, loops: Any) -> None:
        (small,), (source,) = loops(2048), loops(4096)
        (fixed,) = loops(2048, read_only=True)
        assert "is too small: it has 2048s" in run("copy", source, small).stderr
        done = run("copy", small, fixed)
        assert done.returncode == 1
        assert "set read-only" in done.stderr


def check_saved(source: Any, dests: list[Any], saved: Path) -> bool:
    """What the map says is written must be there. Return whether it says anything."""
    state = json.loads(Path(f"{saved}.dests").read_text())
    wanted = content(source)
    for dest, known in zip(dests, state["destinations"], strict=True):
        got = content(dest)
        for start, count in known["written"]:
            low, high = start * 512, (start + count) * 512
            assert got[low:high] == wanted[low:high]
    return any(known["written"] for known in state["destinations"])


def test_kill_at_50_moments(loops: Any) -> None:
    rng = random.Random(int(os.environ.get("DMCOPY_SEED", random.randrange(1 << 30))))
    size = 8 * 2048
    source, *dests = loops(size, 3)
    saved = loops.folder / "map"
    words = ["copy", source, *dests, "--map", saved, "--map-interval", "0.01"]
    # One small piece at a time: slow enough that a kill finds it at work.
    slow = dmcopy(*words, "--piece", "4K", "--depth", "1", "--io", "threads", "--progress", "none")
    kills, useful, longest = 0, 0, 0.5
    fill(source)
    fill(*dests, byte=b"\xff")
    wanted = 10 if os.environ.get("DMCOPY_TEST") == "quick" else 50
    while kills < wanted:
        began = time.monotonic()
        process = subprocess.Popen(slow, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            process.wait(timeout=rng.uniform(0.0, 1.0) ** 0.5 * longest)
        except subprocess.TimeoutExpired:
            process.kill()
        _, err = process.communicate(timeout=DEADLINE)
        if process.returncode == -signal.SIGKILL:
            kills += 1
            if saved.exists():
                useful += check_saved(source, dests, saved)
            continue
        assert process.returncode == 0, err
        longest = max(0.2, (time.monotonic() - began))
        assert content(dests[0]) == content(dests[1]) == content(source)
        saved.unlink()
        Path(f"{saved}.dests").unlink()  # by itself it is refused: its map was lost
        fill(*dests, byte=b"\xff")
    print(f"{useful} of {kills} kills found a map with something in it")
    assert run(*words, "--verify").returncode == 0
    assert content(dests[0]) == content(dests[1]) == content(source)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("io", ENGINES)
def test_a_signal_ends_it_and_the_map_goes_on(loops: Any, io: str, number: int) -> None:
    source, dest = loops(64 * 2048, 2)
    fill(source)
    saved = loops.folder / "map"
    words = ["copy", source, dest, "--map", saved, "--io", io]
    process = subprocess.Popen(
        dmcopy(*words, "--throttle", "1", "--piece", "64K", "--progress", "json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:  # until something is written; the test's own deadline is pytest's
        if json.loads(line).get("sectors", 0) and json.loads(line)["event"] == "progress":
            break
    process.send_signal(number)
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 130
    assert f"the same command with --map {saved} resumes from here" in err
    check_saved(source, [dest], saved)
    code, told = facts(*words, "--verify")
    assert code == 0
    assert 0 < told["bytes_written"] < 64 * MIB, "it began where the other had ended"
    assert content(dest) == content(source)
