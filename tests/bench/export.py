"""Served devices under fio: `dmcopy serve` beside QEMU's server and nbdkit.

QEMU has the same front end, nbdkit only NBD. The column of processor time is the server's own.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dmcopy.export.base import load
from dmcopy.export.kinds import MODULES
from tests.bench import servers
from tests.bench.disks import Disks
from tests.bench.figures import Run, Table, Target, Unit
from tests.bench.process import BenchError, machine_busy, quiet, run
from tests.bench.rounds import Contender, measure
from tests.bench.servers import Served, Server
from tests.bench.settings import Settings

FRONTS: Final = ("nbd", "loop", "ublk")
_UNIT: Final = Unit("requests/s", "CPU us/request")
_STREAM: Final = Unit("MiB/s", "CPU us/MiB")
_ATTACH: Final = Unit("ms", "CPU s", digits=1)
_CHUNK: Final = 8
_QEMU_CLUSTER: Final = 64 << 10
"""What QEMU copies at a first write, and no less."""
_MAX_ATTACH: Final = 100.0
_LIKE_QEMU: Final = Target("of qemu-storage-daemon", "dmcopy", 0.7, ("qemu",))
_TWICE: Final = tuple(
    Target(f"of nbdkit's Python, {ours}", ours, 2.0, ("nbdkit python",))
    for ours in ("dmcopy", "dmcopy, an origin")
)


@dataclass(frozen=True, slots=True)
class Load:
    """One kind of work: `rw` as fio has it, requests of `block` bytes, `depth` at a time."""

    name: str
    title: str
    rw: str
    block: int
    depth: int


SMALL: Final = (
    Load("read-1", "4 KiB reads, one at a time", "randread", 4096, 1),
    Load("read-16", "4 KiB reads, 16 in flight", "randread", 4096, 16),
    Load("write-1", "4 KiB writes, one at a time", "randwrite", 4096, 1),
    Load("write-16", "4 KiB writes, 16 in flight", "randwrite", 4096, 16),
)
STREAMS: Final = (
    Load("read-stream", "1 MiB reads in order, 4 in flight", "read", 1 << 20, 4),
    Load("write-stream", "1 MiB writes in order, 4 in flight", "write", 1 << 20, 4),
)
FIRST: Final = (
    Load("first-16", "first 4 KiB writes of an origin, 16 in flight", "randwrite", 4096, 16),
    Load("first-1", "first 4 KiB writes of an origin, one at a time", "randwrite", 4096, 1),
)
FILL: Final = Load("fill", "", "write", 1 << 20, 4)


def again(settings: Settings, place: str, front: str, loads: Sequence[Load]) -> list[Table]:
    """Requests to devices that run all the while: the origin's chunks are copied out already."""
    _check(front)
    with settings.disks(place, settings.size // 8, 5) as disks, contextlib.ExitStack() as exits:
        size = _used(disks)
        mine, (base, cow, other, third, fourth) = disks.source, disks.dests
        _clear(cow)
        found: dict[str, Server] = {
            "dmcopy": servers.linear(front, mine, size),
            "dmcopy, an origin": servers.origin(front, base, cow, size, _CHUNK),
        }
        if front != "ublk":  # which QEMU 7.2 has not
            found["qemu"] = servers.qemu(front, other)
        if front == "nbd":
            found["nbdkit file"] = servers.nbdkit(third)
            found["nbdkit python"] = servers.nbdkit(fourth, python=True)
        running, failed = _start(found, exits, settings)
        _fio(running["dmcopy, an origin"], FILL, size)
        against = tuple(one for one in (_LIKE_QEMU, *_TWICE) if one.against[0] in running)
        tables = []
        for load in loads:
            unit = _STREAM if load in STREAMS else _UNIT
            title = f"{front}: {load.title}, {disks.place}"
            made = Table(f"{front}-{load.name}-{place}", title, unit, targets=against)
            made.notes += failed
            contenders = [
                Contender(name, functools.partial(_timed, one, load, size))
                for name, one in running.items()
            ]
            tables.append(measure(made, contenders, None, settings.rounds))
    return tables


def first(settings: Settings, place: str, front: str) -> list[Table]:
    """Writes, each of them the first to its 64 KiB: every one has to wait for a copy."""
    _check(front)
    with settings.disks(place, settings.size // 8, 1) as disks:
        size, (cow,) = _used(disks), disks.dests
        found: dict[str, Server] = {
            "dmcopy": servers.origin(front, disks.source, cow, size, _CHUNK),
            "dmcopy, 64 KiB chunks": servers.origin(
                front, disks.source, cow, size, _QEMU_CLUSTER >> 9
            ),
        }
        targets: tuple[Target, ...] = ()
        if front != "ublk":
            found["qemu"] = servers.qemu(front, disks.source, cow)
            targets = (Target("of QEMU's copy-before-write", "dmcopy", 1.0, ("qemu",)),)
        tables = []
        for load in FIRST:
            title = f"{front}: {load.title}, {disks.place}"
            made = Table(f"{front}-{load.name}-{place}", title, _UNIT, targets=targets)
            contenders = [
                Contender(name, functools.partial(_first, one, cow, load, size, settings))
                for name, one in found.items()
            ]
            tables.append(measure(made, contenders, disks, settings.rounds))
    return tables


def attach(settings: Settings) -> list[Table]:
    """How long it takes until a device of a running engine can be opened, and a whole command."""
    tables = []
    for front in FRONTS:
        if _why_not(front):
            continue
        with settings.disks("files", 8 << 20, 1) as disks:
            made = Table(f"attach-{front}", f"{front}: until a device can be opened", _ATTACH)
            made.targets = (Target("ms", "in a running engine", _MAX_ATTACH, at_most=True),)
            size = disks.size
            words = [sys.executable, "-m", "tests.bench.attach_worker", front, str(disks.source)]
            commands = {"dmcopy serve": servers.linear(front, disks.source, size)}
            if front != "ublk":
                commands["qemu-storage-daemon"] = servers.qemu(front, disks.source)
            contenders = [
                Contender("in a running engine", functools.partial(_attached, words)),
                *(
                    Contender(name, functools.partial(_started, one, settings))
                    for name, one in commands.items()
                ),
            ]
            tables.append(measure(made, contenders, None, settings.rounds))
    return tables


def parts() -> dict[str, Callable[[Settings, str], list[Table]]]:
    """Return what can be measured at a place, by its name."""
    found: dict[str, Callable[[Settings, str], list[Table]]] = {}
    for front in FRONTS:
        found[f"{front}-small"] = functools.partial(again, front=front, loads=SMALL)
        found[f"{front}-stream"] = functools.partial(again, front=front, loads=STREAMS)
        found[f"{front}-first"] = functools.partial(first, front=front)
    return found


def _why_not(front: str) -> str:
    return load(front).why_not() if front in MODULES else "there is no such front end"


def _check(front: str) -> None:
    if why := _why_not(front):
        raise BenchError(why)


def _used(disks: Disks) -> int:
    """Return how much of a disk is served: a COW of its size has to hold all of that, and more."""
    return disks.size * 7 // 8 >> 20 << 20


def _clear(cow: Path) -> None:
    with cow.open("r+b") as file:
        file.write(bytes(_CHUNK << 9))


def _folder(settings: Settings) -> Path:
    return Path(tempfile.mkdtemp(dir=settings.scratch))


def _start(
    found: dict[str, Server], exits: contextlib.ExitStack, settings: Settings
) -> tuple[dict[str, Served], list[str]]:
    """Start servers; those of others that are missing are left out, and why."""
    running, failed = {}, []
    for name, server in found.items():
        try:
            running[name] = exits.enter_context(server(_folder(settings)))
        except BenchError as error:
            if name.startswith("dmcopy"):
                raise
            failed.append(f"{name}: {error}")
    return running, failed


def _first(server: Server, cow: Path, load: Load, size: int, settings: Settings) -> Run:
    _clear(cow)
    with server(_folder(settings)) as served:
        return _timed(served, load, size, each_first=True)


def _timed(served: Served, load: Load, size: int, *, each_first: bool = False) -> Run:
    """Let fio work for 0.4 seconds, or write once to each cluster of the whole device."""
    used, busy = served.cpu(), machine_busy()
    job = _fio(served, load, size, timed=not each_first, each_first=each_first)
    used, busy = served.cpu() - used, machine_busy() - busy
    side = job["read" if "read" in load.rw else "write"]
    count, seconds = side["total_ios"], side["runtime"] / 1000
    if each_first and count != size // _QEMU_CLUSTER:
        raise BenchError(f"fio wrote {count} times, not {size // _QEMU_CLUSTER}")
    if load.block == 1 << 20:
        count = side["io_bytes"] / servers.MIB
    return Run(count / seconds, used / count * 1e6, busy / count * 1e6, seconds)


def _fio(
    served: Served, load: Load, size: int, *, timed: bool = False, each_first: bool = False
) -> dict[str, dict[str, float]]:
    """Return what fio reports of one job."""
    if served.target.startswith("nbd"):
        where = ["--ioengine=nbd", f"--uri={served.target}"]
    else:
        where = ["--ioengine=io_uring", "--direct=1", f"--filename={served.target}"]
    common = "--name=job --output-format=json --randrepeat=1 --norandommap "
    common += "--scramble_buffers=0 --disable_lat=1 --disable_clat=1 --disable_slat=1 --disk_util=0"
    words = ["fio", *shlex.split(common), *where, f"--rw={load.rw}", f"--bs={load.block}"]
    words += [f"--iodepth={load.depth}", f"--size={size}"]
    words += ["--time_based", "--runtime=400ms"] if timed else []
    if each_first:
        words += ["--zonemode=strided", "--zonesize=4k", f"--zonerange={_QEMU_CLUSTER}"]
        words += [f"--io_size={size // _QEMU_CLUSTER * 4096}"]
    finished = run(words)
    try:
        job: dict[str, dict[str, float]]
        (job,) = json.loads(finished.stdout[finished.stdout.index("{") :])["jobs"]
        if job["error"]:
            raise BenchError(f"fio failed: {os.strerror(int(job['error']))}")  # type: ignore[call-overload]
    except (ValueError, LookupError) as error:
        raise BenchError(f"fio printed no report that can be read: {error}") from None
    return job


def _attached(words: Sequence[str]) -> Run:
    report = json.loads(quiet(words))
    return Run(report["seconds"] * 1000, report["cpu"], seconds=report["seconds"])


def _started(server: Server, settings: Settings) -> Run:
    begin = time.perf_counter()
    with server(_folder(settings)) as served:
        seconds = time.perf_counter() - begin
        return Run(seconds * 1000, served.cpu(), seconds=seconds)
