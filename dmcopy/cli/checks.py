"""The checks of `dmcopy doctor`. Each looks; none changes anything or loads a module."""

from __future__ import annotations

import errno
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dmcopy.block import tools, udev
from dmcopy.errors import DmcopyError

_SERVER_SECONDS: Final = 2.0
_AS_ROOT: Final = "run as root (sudo)"
_OTHER_WAY: Final = "use --via nbd, which needs nothing of the kernel"
_DENIED: Final = os.strerror(errno.EACCES)
_OTHER_KERNEL: Final = "'dmcopy vm' boots a kernel that has it"


@dataclass(frozen=True)
class Check:
    """One line of the doctor's. `needed`: copying does not work without; `fix`: how to get it."""

    name: str
    ok: bool
    detail: str = ""
    fix: str = ""
    needed: bool = False


def _python() -> list[Check]:
    version = platform.python_version()
    good = sys.version_info >= (3, 11)
    return [Check("Python 3.11", good, version, "apt-get install python3", needed=True)]


def _backends() -> list[Check]:
    try:
        from dmcopy.io.backend import probe

        reasons = probe()
    except (ImportError, OSError) as error:
        return [Check("I/O back end", False, str(error), "install dmcopy again", needed=True)]
    working = [name for name, reason in reasons.items() if not reason]
    fix = "sysctl kernel.io_uring_disabled=0, or a container profile that allows io_uring"
    uring = reasons.get("uring", "not in this dmcopy")
    return [
        Check("I/O back end", bool(working), ", ".join(working), "", needed=True),
        Check("io_uring", not uring, uring or "works", fix),
    ]


def _root() -> list[Check]:
    user = os.geteuid()
    detail = "uid 0" if user == 0 else f"uid {user}: files only, no devices"
    return [Check("root", user == 0, detail, _AS_ROOT)]


def _loop() -> list[Check]:
    there = os.path.exists("/dev/loop-control")
    return [
        Check("loop devices", there, "/dev/loop-control" if there else "", "modprobe loop"),
        _tool("losetup"),
        _tool("blkid"),
    ]


def _udev() -> list[Check]:
    running = udev.runs()
    try:
        udev.Monitor("kernel", 1 << 16).close()
        source = "udev's" if running else "the kernel's own"
        events = Check("device events", True, source)
    except DmcopyError as error:
        fix = "apt-get install libudev1; pip install pyudev"
        events = Check("device events", False, str(error).partition(" (")[0], fix)
    detail = "runs" if running else "does not run; devices are found without it"
    return [Check("udevd", running, detail, "apt-get install udev"), events]


def _device_mapper() -> list[Check]:
    reason = _refusal("/dev/mapper/control")
    without = "or do without: 'dmcopy dm shim --help'"
    fix = _AS_ROOT if reason == _DENIED else f"modprobe dm-mod; {_OTHER_KERNEL}; {without}"
    kernel = Check("device-mapper", not reason, reason or "in this kernel", fix)
    targets = [_module(name) for name in ("dm-snapshot", "dm-mirror")] if kernel.ok else []
    return [kernel, *targets, _tool("dmsetup")]


def _guests() -> list[Check]:
    reason = _refusal("/dev/kvm")
    detail = "can be opened, which is no proof that a guest runs"
    fix = (
        "sudo chmod 0666 /dev/kvm, or join the group kvm and log in again"
        if reason == _DENIED
        else "switch on virtualisation (guests are slow)"
    )
    return [_tool("qemu-system-x86_64"), Check("/dev/kvm", not reason, reason or detail, fix)]


def _exports() -> list[Check]:
    from dmcopy.export.base import load
    from dmcopy.export.kinds import kinds

    reason = _refusal("/dev/fuse")
    return [
        *(
            Check(f"serve --via {kind}", not why, why or load(kind).summary, _OTHER_WAY)
            for kind in kinds()
            for why in [load(kind).why_not()]
        ),
        _device_server(),
        Check("FUSE", not reason, reason or "/dev/fuse", "modprobe fuse"),
        _module("nbd"),
        _tool("nbd-client"),
    ]


def _device_server() -> Check:
    """Say what root's or this user's `--engine user` has, or would make; nothing is started."""
    from dmcopy.export.kinds import MODULES
    from dmcopy.mapper.served import ServedMapper

    name = "--engine user"
    try:
        count = len(ServedMapper(timeout=_SERVER_SECONDS).ls())
    except DmcopyError as error:
        return Check(name, False, str(error), "dmcopy serve --resume, or dmcopy dm reap")
    if count:
        return Check(name, True, f"a server runs, with {count} device{'s' * (count != 1)}")
    from dmcopy.export.base import load

    works = [kind for kind in reversed(MODULES) if not load(kind).why_not()]
    blocks = "block devices, /dev/dmcopy/NAME"
    waiting = f"{blocks}, whose users wait for 'serve --resume' where it is killed"
    files = "files and NBD exports"
    made = {"ublk": waiting, "nbd-device": waiting, "loop": blocks, "fuse": files}
    return Check(name, True, f"makes {made.get(works[0], 'NBD exports')}")


def _tool(program: str) -> Check:
    path = tools.which(program)
    return Check(
        program, path is not None, path or "", f"apt-get install {tools.PACKAGES[program]}"
    )


def _refusal(path: str) -> str:
    """Return why a device cannot be opened, "" when it can. Opening these does nothing."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        if error.errno in (errno.ENODEV, errno.ENXIO):  # a node, and no driver behind it
            return "not in this kernel"
        return os.strerror(error.errno or 0)
    return ""


def _module(name: str) -> Check:
    """Look for a kernel module: loaded or built in, or there to be loaded."""
    under = name.replace("-", "_")
    if Path("/sys/module", under).exists():
        return Check(name, True, "in the kernel")
    folder = Path("/lib/modules", platform.release())
    for index, detail in (("modules.builtin", "built in"), ("modules.dep", "loaded when needed")):
        try:
            text = (folder / index).read_text()
        except OSError:
            continue
        if f"/{name}.ko" in text or f"/{under}.ko" in text:
            return Check(name, True, detail)
    return Check(name, False, f"not in kernel {platform.release()}", _OTHER_KERNEL)


CHECKS: Final[tuple[Callable[[], list[Check]], ...]] = (
    _python,
    _backends,
    _root,
    _loop,
    _udev,
    _device_mapper,
    _guests,
    _exports,
)
