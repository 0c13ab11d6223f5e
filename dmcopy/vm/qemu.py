"""Guests under QEMU: a kernel over the host's own root file system, copy-on-write.

The guest sees the host's files through 9p, read-only, with a layer in its memory that takes every
write, so it needs no image and no installation, and nothing that it does stays. QEMU serves the
files itself: one process is all there is to end. Works without root.
"""

from __future__ import annotations

import random
import shlex
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from dmcopy.errors import DeadlineError, LostVMError, MissingError, UsageError
from dmcopy.units import parse_bytes
from dmcopy.vm import accel, initramfs, kernels, machine
from dmcopy.vm.agent import FrameKind
from dmcopy.vm.base import BOOT_TIMEOUT, Guest, end_of, lost
from dmcopy.vm.channel import Channel, ChannelLostError
from dmcopy.vm.disk_server import DiskServer
from dmcopy.vm.disks import Disk
from dmcopy.vm.leash import Leashed

MAX_CPUS: Final = 64
_SHUTDOWN_TIMEOUT: Final = 30.0
# Where the guest has file systems of its own, what the host has there is out of its sight.
_HIDDEN: Final = ("/proc", "/sys", "/dev", "/run")


class QemuGuest(Guest):
    """A guest under QEMU. `share` are folders of the host that it writes to, at the same path.

    What it makes there belongs to the user that runs this, and is never setuid, setgid or a
    device node: the guest gets EPERM.
    `cpus` None: one processor under emulation, which is quickest there, two under KVM.
    """

    def __init__(
        self,
        kernel: str = kernels.DEFAULT,
        disks: Iterable[Disk] = (),
        memory: str = "1G",
        timeout: float = BOOT_TIMEOUT,
        share: Iterable[Path] = (),
        cpus: int | None = None,
    ) -> None:
        super().__init__(disks)
        self._qemu: Leashed | None = None
        self._servers: list[DiskServer] = []
        memory_bytes = parse_bytes(memory, default="m")
        if cpus is not None and not 1 <= cpus <= MAX_CPUS:
            raise UsageError(f"{cpus} processors: give a guest 1 to {MAX_CPUS}")
        shares = [_visible(path) for path in share]
        program = machine.find_qemu()
        found = kernels.find(kernel)
        acceleration = accel.choose(program, found.image)
        self._folder = Path(tempfile.mkdtemp(prefix="dmcopy-vm-"))
        self._console = self._folder / "console"
        try:
            self._write_initrd(found, shares)
            argv = [
                *machine.board(program, acceleration, memory_bytes >> 20, cpus),
                *machine.kernel_options(found.image, self._folder),
                *machine.agent_port(self._folder / "agent"),
                *machine.shared_folders(shares),
                *self._disk_options(),
            ]
            self._boot(argv, timeout)
        except BaseException:
            self._end()
            raise

    @property
    def console_bytes(self) -> int:
        return self._console.stat().st_size if self._console.exists() else 0

    def kill(self, chooser: random.Random | None = None) -> None:
        self._end(lose=True, chooser=chooser)

    def close(self) -> None:
        if self._channel is not None and self._qemu is not None:
            try:
                self._channel.send(FrameKind.BYE, 0)
                self._channel.move_until(lambda: False, time.monotonic() + _SHUTDOWN_TIMEOUT)
            except ChannelLostError:
                self._qemu.wait(_SHUTDOWN_TIMEOUT)
        self._end()

    def _write_initrd(self, kernel: kernels.Kernel, shares: Sequence[Path]) -> None:
        settings = {
            "version": kernel.version,
            "modules": str(_visible(kernel.modules)) if kernel.modules else "",
            "python": str(_visible(Path(sys.executable).resolve())),
            "shares": " ".join(
                f"dmcopy.share{number}:{_escaped(path)}" for number, path in enumerate(shares)
            ),
        }
        config = "".join(f"{name}={shlex.quote(value)}\n" for name, value in settings.items())
        (self._folder / "initrd").write_bytes(initramfs.build(kernel, config))

    def _disk_options(self) -> list[str]:
        argv = []
        for number, disk in enumerate(self.disks):
            path = disk.create(self._folder / f"disk{number}")
            address = self._folder / f"disk{number}.socket"
            self._servers.append(DiskServer(path, address))
            argv += machine.disk_options(number, disk.serial, address)
        return argv

    def _boot(self, argv: list[str], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(self._folder / "agent"))
            listener.listen(1)
            self._qemu = Leashed(self._folder, argv)
            self._accept(listener)
        assert self._channel is not None
        try:
            self._channel.wait_hello(deadline)
        except ChannelLostError as error:
            raise self._lost(f"{error} while it booted") from None
        except DeadlineError:
            raise self._lost(f"it did not boot within {timeout:.0f} s") from None

    def _accept(self, listener: socket.socket) -> None:
        """QEMU connects before it starts the guest, or ends with a complaint."""
        assert self._qemu is not None
        listener.settimeout(0.1)
        deadline = time.monotonic() + 30
        while True:
            try:
                sock, _ = listener.accept()
            except TimeoutError:
                if self._qemu.wait(0) is None and time.monotonic() < deadline:
                    continue
                said = end_of(self._folder / "output").strip() or "nothing"
                raise MissingError(f"{machine.PROGRAM} did not start; it said: {said}") from None
            self._channel = Channel(sock)
            return

    def _inside(self, path: Path) -> Path:
        return _visible(path)

    def _lost(self, why: str) -> LostVMError:
        assert self._qemu is not None
        if self._qemu.wait(1) is None:
            why = f"{why}, and QEMU is still running"
        error = lost(why, self._console, "console")
        self._end()
        return error

    def _end(self, *, lose: bool = False, chooser: random.Random | None = None) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._qemu is not None:
            self._qemu.close()
            self._qemu = None
        while self._servers:
            self._servers.pop(0).stop(lose=lose, chooser=chooser)
        shutil.rmtree(self._folder, ignore_errors=True)


def _escaped(path: Path) -> str:
    """A path as printf %b understands it, with nothing in it that splits a shell's words."""
    return "".join(
        chr(byte) if 32 < byte < 127 and byte != 92 else f"\\0{byte:03o}" for byte in bytes(path)
    )


def _visible(path: Path) -> Path:
    path = path.absolute()
    for hidden in _HIDDEN:
        if path.is_relative_to(hidden):
            raise UsageError(f"{path} is not visible in a guest, which has its own {hidden}")
    return path
