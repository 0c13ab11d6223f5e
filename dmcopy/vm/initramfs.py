"""The initial RAM disk of a guest: busybox, a few modules, the agent; a cpio archive in memory."""

from __future__ import annotations

import shutil
import stat
from importlib import resources
from pathlib import Path
from typing import Final

from dmcopy.errors import MissingError
from dmcopy.vm.kernels import BOOT_MODULES, Kernel, dependencies

_FOLDERS: Final = ("bin", "dev", "proc", "host", "layer", "root", "modules", "dmcopy")


class Archive:
    """A cpio archive ("newc"), the form that a kernel unpacks at its start."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._entries = 0

    def add(
        self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)
    ) -> None:
        """Add one entry; `mode` has the file type too, `device` is a node's major and minor."""
        self._entries += 1
        path = name.encode() + b"\0"
        fields = (self._entries, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(path), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        self._parts += [_padded(header + path), _padded(data)]

    def folder(self, name: str) -> None:
        self.add(name, stat.S_IFDIR | 0o755)

    def file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        self.add(name, stat.S_IFREG | mode, data)

    def finish(self) -> bytes:
        self.add("TRAILER!!!", 0)
        return b"".join(self._parts)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def build(kernel: Kernel, config: str) -> bytes:
    """Return the initial RAM disk that boots `kernel` into the agent.

    `config` is what the start script reads: shell assignments. Raises MissingError.
    """
    archive = Archive()
    for name in _FOLDERS:
        archive.folder(name)
    archive.add("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
    archive.add("dev/null", stat.S_IFCHR | 0o666, device=(1, 3))
    archive.file("bin/busybox", busybox().read_bytes(), 0o755)
    files = dependencies(kernel.modules, BOOT_MODULES) if kernel.modules else []
    for path in files:
        archive.file(f"modules/{path.name}", path.read_bytes())
    archive.file("modules/order", "".join(f"{path.name}\n" for path in files).encode())
    inside = resources.files("dmcopy.vm")
    archive.file("init", (inside / "inside/init").read_bytes(), 0o755)
    archive.file("dmcopy/start", (inside / "inside/start").read_bytes())
    archive.file("dmcopy/agent.py", (inside / "agent.py").read_bytes())
    archive.file("dmcopy/config", config.encode())
    return archive.finish()


def busybox() -> Path:
    """Return a busybox that needs no shared libraries. Raises MissingError."""
    for name in ("busybox-static", "busybox"):
        found = shutil.which(name, path="/bin:/usr/bin:/usr/local/bin:/sbin:/usr/sbin")
        # A static program names no dynamic loader.
        if found and b"/ld-linux" not in Path(found).read_bytes():
            return Path(found)
    raise MissingError("no static busybox here, which a guest starts with: install busybox-static")
