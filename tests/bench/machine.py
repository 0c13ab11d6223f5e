"""The machine and the programs that a bench ran on: figures mean nothing without them."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Final

from tests.bench import peers
from tests.bench.disks import filesystem
from tests.bench.process import BenchError, quiet

_PROGRAMS: Final = (
    *("dd", "qemu-img", "nbdcopy", "ddrescue", "fio"),
    *("qemu-storage-daemon", "nbdkit"),
)


def describe(directory: Path) -> dict[str, str]:
    """Return facts by name, for people and for the JSON file."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    facts = {
        "processors": f"{os.cpu_count()}, {_processor()}",
        "memory": f"{memory / (1 << 30):.0f} GiB",
        "kernel": platform.release(),
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", "Linux"),
        "load before": f"{os.getloadavg()[0]:.1f}",
        "files on": filesystem(directory),
        "Python": f"{platform.python_version()}, {_build()}",
        "dmcopy": _commit(),
    }
    for program in _PROGRAMS:
        if peers.present(program):
            facts[program] = peers.version(program)
    return facts


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return " ".join(line.partition(":")[2].split())
    return platform.machine()


def _build() -> str:
    """How the interpreter was built: with its library apart, our own time is half as long again."""
    apart = "/libpython" in Path("/proc/self/maps").read_text(encoding="utf-8")
    return f"libpython {'a shared library' if apart else 'linked in'}, {sys.executable}"


def _commit() -> str:
    try:
        return quiet(["git", "describe", "--always", "--dirty"]).strip()
    except BenchError:
        return "not a checkout"
