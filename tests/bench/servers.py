"""The servers that the bench of `dmcopy.export` compares: how each is started, and ended.

Every one goes past the page cache of its disk, but for nbdkit's file plugin, which cannot.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.process import ROOT, BenchError, quiet

MIB: Final = 1 << 20
_SECONDS: Final = 60.0
_PLUGIN: Final = Path(__file__).with_name("nbdkit_disk.py")


@dataclass(frozen=True, slots=True)
class Served:
    """A running server: `target` is an NBD URI or the path of a block device."""

    target: str
    pid: int

    def cpu(self) -> float:
        """Return the seconds of processor time that the server has used."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2]
        except OSError:
            raise BenchError("the server has ended") from None
        return sum(map(int, fields.split()[11:13])) / os.sysconf("SC_CLK_TCK")


Server = Callable[[Path], contextlib.AbstractContextManager[Served]]
"""Starts a server for the time of a `with` block; its files are in the folder given."""


def dmcopy(front: str, spec: str) -> Server:
    """Return `dmcopy serve` for the last device of `spec`, as in `dm create --concise`."""

    @contextlib.contextmanager
    def serve(folder: Path) -> Iterator[Served]:
        words = [sys.executable, "-m", "dmcopy", "serve", "--via", front, "--concise", spec]
        if front == "nbd":
            words += ["--socket", str(folder / "dmcopy")]
        with _running(words, stdout=subprocess.PIPE) as process:
            lines = [_line(process) for _ in spec.split(";")]
            yield Served(lines[-1], process.pid)

    return serve


def linear(front: str, disk: Path, size: int) -> Server:
    """Return `dmcopy serve` for `size` bytes of a disk."""
    return dmcopy(front, f"{_name('linear')},,,,0 {size >> 9} linear {disk} 0")


def origin(front: str, disk: Path, cow: Path, size: int, chunk: int) -> Server:
    """Return `dmcopy serve` for a disk that has a snapshot; `chunk` in sectors."""
    spec = f"{_name('then')},,,,0 {size >> 9} snapshot {disk} {cow} P {chunk}"
    return dmcopy(front, f"{spec};{_name('live')},,,,0 {size >> 9} snapshot-origin {disk}")


def _name(what: str) -> str:
    """Return a name that no other bench on this machine has: a file is made of it."""
    return f"bench-{what}-{os.getpid()}"


def qemu(front: str, disk: Path, target: Path | None = None) -> Server:
    """Return qemu-storage-daemon for a disk; with `target`, what is overwritten goes there."""

    @contextlib.contextmanager
    def serve(folder: Path) -> Iterator[Served]:
        words = ["qemu-storage-daemon", *_blockdev("disk", disk)]
        if target is not None:
            words += _blockdev("target", target)
            filtered = {"driver": "copy-before-write", "file": "disk", "target": "target"}
            words += ["--blockdev", json.dumps({**filtered, "node-name": "cbw"})]
        node = "cbw" if target is not None else "disk"
        pid_file, place = folder / "qemu.pid", folder / "qemu"
        options = "id=live,writable=on,node-name=" + node
        if front == "nbd":
            words += ["--nbd-server", f"addr.type=unix,addr.path={place}"]
            words += ["--export", f"type=nbd,name=live,{options}"]
        else:
            place.touch()
            words += ["--export", f"type=fuse,mountpoint={place},{options}"]
        with _running([*words, "--pidfile", str(pid_file)]) as process:
            _wait_for(pid_file, process)
            with _over(front, place) as found:
                yield Served(found, process.pid)

    return serve


def nbdkit(disk: Path, *, python: bool = False) -> Server:
    """Return nbdkit for a disk, with its file plugin or with one in Python."""

    @contextlib.contextmanager
    def serve(folder: Path) -> Iterator[Served]:
        name = "python" if python else "file"
        pid_file, place = folder / f"{name}.pid", folder / f"nbdkit-{name}"
        words = ["nbdkit", "--foreground", "--unix", str(place), "--pidfile", str(pid_file)]
        words += ["python", str(_PLUGIN), f"disk={disk}"] if python else ["file", str(disk)]
        with _running(words) as process:
            _wait_for(pid_file, process)
            yield Served(f"nbd+unix:///?socket={place}", process.pid)

    return serve


def _blockdev(name: str, disk: Path) -> list[str]:
    driver = "host_device" if disk.is_block_device() else "file"
    options = {"driver": driver, "node-name": name, "filename": str(disk), "aio": "io_uring"}
    return ["--blockdev", json.dumps({**options, "cache": {"direct": True}})]


@contextlib.contextmanager
def _over(front: str, place: Path) -> Iterator[str]:
    """Give what is measured: the export at a socket, or a loop device over a file."""
    if front == "nbd":
        yield f"nbd+unix:///live?socket={place}"
        return
    device = quiet(["losetup", "--find", "--show", "--direct-io=on", str(place)]).strip()
    try:
        yield device
    finally:
        quiet(["losetup", "--detach", device])


@contextlib.contextmanager
def _running(
    words: Sequence[str], stdout: int = subprocess.DEVNULL
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server; it is told to end at the end of the block."""
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError:
        raise BenchError(f"{words[0]} is not installed") from None
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def _line(process: subprocess.Popen[bytes]) -> str:
    """Return the next line that a server prints: it is ready then."""
    assert process.stdout is not None
    line = b""
    deadline = time.monotonic() + _SECONDS
    while not line.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
            raise BenchError("the server does not get ready")
        byte = os.read(process.stdout.fileno(), 1)
        if not byte:
            raise _ended(process)
        line += byte
    return line.decode().strip()


def _wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait for the file by which a server tells that it is ready."""
    deadline = time.monotonic() + _SECONDS
    while not path.exists():
        if process.poll() is not None:
            raise _ended(process)
        if time.monotonic() > deadline:
            raise BenchError("the server does not get ready")
        time.sleep(0.001)


def _ended(process: subprocess.Popen[bytes]) -> BenchError:
    said = process.communicate(timeout=_SECONDS)[1].decode(errors="replace").strip()
    return BenchError(f"the server ended: {said.splitlines()[-1] if said else 'it says nothing'}")
