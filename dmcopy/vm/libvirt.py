"""libvirt's daemons, started where none run and stopped again, and what a killed run left in it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from dmcopy.block import tools
from dmcopy.errors import DeadlineError, LostVMError

PREFIX: Final = "dmcopy_rig_"  # of the names of our domains
_POOL: Final = "default"
_VIRSH: Final = ("virsh", "-c", "qemu:///system")


@contextlib.contextmanager
def running() -> Iterator[None]:
    """Have libvirt's daemons run; those that were started here are stopped afterwards."""
    if _virsh("version").returncode == 0:
        yield
        return
    started = []
    try:
        for daemon in ("virtlogd", "libvirtd"):
            # Each leaves a process of its own in the background and writes down its number.
            subprocess.run([f"/usr/sbin/{daemon}", "-d"], check=True, timeout=60)
            started.append(daemon)
        _wait_for_libvirt()
        yield
    finally:
        for daemon in reversed(started):
            _kill(Path(f"/run/{daemon}.pid"))


def _wait_for_libvirt() -> None:
    deadline = time.monotonic() + 60
    while _virsh("version").returncode:
        if time.monotonic() > deadline:
            raise DeadlineError("libvirtd was started and does not answer after 60 s")
        time.sleep(0.2)


def _kill(pid_file: Path, number: int = signal.SIGTERM) -> None:
    try:
        pid = int(pid_file.read_text())
        pidfd = os.pidfd_open(pid)
    except (OSError, ValueError):
        return
    with os.fdopen(pidfd, "rb"):
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, number)
        deadline = time.monotonic() + 30
        while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.1)


def remove_leftovers(box: str) -> None:
    """Remove domains of ours, which a run that was killed left, and the pool's copy of the box.

    The lock is held, so no other run has any.
    """
    for name in _virsh("list", "--all", "--name").stdout.split():
        if name.startswith(PREFIX):
            _virsh("destroy", name)
            _virsh("undefine", name, "--remove-all-storage")
    for line in _virsh("vol-list", _POOL).stdout.splitlines():
        name = line.split()[0] if line.split() else ""
        if name.startswith((PREFIX, f"{box}_vagrant_box_image")):
            _virsh("vol-delete", "--pool", _POOL, name)


def start(domain: str) -> None:
    """Power a domain on. Raises LostVMError."""
    done = _virsh("start", domain)
    if done.returncode:
        raise LostVMError(f"lost VM: virsh start {domain}: {done.stderr.strip()}")


def destroy(domain: str) -> None:
    """Cut the power of a domain, if it is on.

    `virsh destroy` lets QEMU end by itself, and it flushes its disks then (seen with QEMU 7.2), so
    it is killed first.
    """
    _kill(Path(f"/run/libvirt/qemu/{domain}.pid"), signal.SIGKILL)
    _virsh("destroy", domain)


def _virsh(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*_VIRSH, *words],
        env=tools.environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
