"""`dmcopy serve --via fuse` and `--via loop`, as root: where it is found, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dmcopy.block import file_mounts
from dmcopy.export.loop import LoopDevices
from tests.unit.export.serving import Serving

pytestmark = [
    pytest.mark.loop,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root"),
    pytest.mark.skipif(bool(file_mounts.why_not()), reason=file_mounts.why_not()),
]
SIZE = 8 << 20
PF_MEMALLOC_NOIO = 0x00080000  # include/linux/sched.h: what PR_SET_IO_FLUSHER sets


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    with open(path, "wb") as file:
        file.truncate(SIZE)
    return path


def may_flush() -> bool:
    """Whether this process has CAP_SYS_RESOURCE, which a container's root may lack."""
    status = Path("/proc/self/status").read_text()
    return bool(int(status.partition("CapEff:")[2].split()[0], 16) & 1 << 24)


def run(*words: str | Path) -> str:
    done = subprocess.run(
        list(map(str, words)), capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout


def test_a_file_is_there_until_a_signal_comes(disk: Path, tmp_path: Path) -> None:
    place = tmp_path / "served"
    with Serving("--via", "fuse", "--at", place, disk) as serving:
        assert serving.found == [str(place)]
        assert place.stat().st_size == SIZE
        with place.open("r+b") as file:
            file.write(b"x" * 700)
        assert serving.end(signal.SIGINT) == (0, "")
    assert disk.read_bytes()[:701] == b"x" * 700 + b"\0"
    assert not place.exists()


def test_the_default_name_is_taken_once(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DMCOPY_RUNTIME_DIR", str(tmp_path / "run"))
    words = ["--via", "fuse", "--table", f"0 8 linear {disk} 0"]
    place, other = tmp_path / "run" / "dev", tmp_path / "other"
    other.write_bytes(bytes(SIZE))
    with Serving(*words):
        second = ["--via", "fuse", "--table", f"0 8 linear {other} 0"]
        refused = subprocess.run(
            [sys.executable, "-m", "dmcopy", "serve", *second],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert refused.returncode == 6
        assert f"{place} is in use by a file that dmcopy serves there" in refused.stderr
        assert "; say another --name, or --at PATH; if its server was" in refused.stderr
        with Serving(*second, "--name", "then") as then:
            assert then.found == [str(place.with_name("then"))]
        assert place.stat().st_size == 4096
    assert os.listdir(tmp_path / "run") == ["ledger.jsonl"]


def test_one_that_is_open_is_cut_off_and_told(disk: Path, tmp_path: Path) -> None:
    place = tmp_path / "served"
    with Serving("--via", "fuse", "--at", place, disk) as serving, open(place, "rb"):
        code, said = serving.end()
        assert code == 6
        assert f"process {os.getpid()}" in said
        assert said.count("\n") == 1
    assert not place.exists()


def test_a_loop_device_is_mounted(disk: Path, tmp_path: Path) -> None:
    if reason := LoopDevices.why_not():
        pytest.skip(reason)
    point = tmp_path / "mounted"
    point.mkdir()
    table = f"0 {SIZE >> 9} linear {disk} 0"
    with Serving("--via", "loop", "--at", tmp_path / "file", "--table", table) as serving:
        (node,) = serving.found
        assert node.startswith("/dev/loop")
        flags = Path(f"/proc/{serving.process.pid}/stat").read_text().rpartition(")")[2].split()[6]
        assert bool(int(flags) & PF_MEMALLOC_NOIO) == may_flush()
        run("mkfs.ext4", "-q", node)
        run("mount", node, point)
        try:
            (point / "kept").write_text("kept")
        finally:
            run("umount", point)
        run("e2fsck", "-fn", node)
        assert serving.end() == (0, "")
    assert not (tmp_path / "file").exists()
    run("e2fsck", "-fn", disk)


def test_what_a_kind_does_not_know_is_refused(disk: Path, tmp_path: Path) -> None:
    for words, said in [
        (["--via", "fuse", "--socket", str(tmp_path / "s")], "--via fuse has no socket"),
        (["--via", "nbd", "--at", str(tmp_path / "s")], "--via nbd has no at"),
        (["--via", "fuse", "--at", str(disk)], "is there already"),
    ]:
        done = subprocess.run(
            [sys.executable, "-m", "dmcopy", "serve", *words, str(disk)],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 2
        assert said in done.stderr


def test_one_path_is_for_one_device(disk: Path, tmp_path: Path) -> None:
    place = tmp_path / "served"
    spec = f"a,,,,0 8 linear {disk} 0;b,,,,0 8 linear {disk} 8"
    words = ["serve", "--via", "fuse", "--at", str(place), "--concise", spec]
    done = subprocess.run(
        [sys.executable, "-m", "dmcopy", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 2
    assert "several devices" in done.stderr
    assert not place.exists()
