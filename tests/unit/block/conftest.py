"""A made-up /sys, /dev, /proc and /run, shaped like the kernel's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dmcopy.block import sysfs
from dmcopy.block.processes import Identity, identity_at
from dmcopy.block.sysfs import Roots


class FakeKernel:
    """Block devices that exist in files only; `roots` is where."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.sys, self.dev, self.proc = top / "sys", top / "dev", top / "proc"
        self.roots = Roots(self.sys, self.dev, self.proc, top / "run")
        for folder in ("sys/class/block", "sys/dev/block", "dev", "proc/self", "run"):
            (top / folder).mkdir(parents=True)
        self.put("proc/self/mountinfo", "")
        self.put("proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n")
        self.put("proc/locks", "")

    def put(self, path: str, text: str) -> Path:
        file = self.top / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def add(self, name: str, devno: str, sectors: int = 2048, disk: str = "", **files: str) -> None:
        """Add a device; `files` are attributes, with __ for / in their paths."""
        folder = self.top / "sys/devices" / disk / name
        (folder / "holders").mkdir(parents=True)
        (folder / "slaves").mkdir()
        attributes = {"dev": devno, "size": str(sectors), "ro": "0", "removable": "0"}
        if disk:
            attributes["partition"] = "1"
        for attribute, text in (attributes | files).items():
            file = folder / attribute.replace("__", "/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text + "\n")
        (self.sys / "class/block" / name).symlink_to(folder)
        (self.sys / "dev/block" / devno).symlink_to(folder)
        node = self.dev / name.replace("!", "/")
        node.parent.mkdir(exist_ok=True)
        node.write_text(name)

    def identity_at(self, path: str) -> Identity | None:
        """Return what the nodes would be if they were nodes."""
        name = os.path.relpath(path, self.roots.dev)
        number = sysfs.devno(name, self.roots)
        return ("block", os.makedev(*number)) if number else identity_at(path)

    def stack(self, top: str, bottom: str) -> None:
        """Let `top` hold `bottom`."""
        block = self.sys / "class/block"
        (block / bottom / "holders" / top).write_text("")
        (block / top / "slaves" / bottom).write_text("")

    def link(self, path: str, name: str) -> None:
        """Add a link such as disk/by-uuid/… to the node of a device."""
        link = self.dev / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(self.dev / name, link.parent))

    def process(self, pid: int, command: str, *opened: Path, namespace: str = "mnt:[1]") -> None:
        """Add a process with these files open."""
        self.put(f"proc/{pid}/comm", command[:15] + "\n")
        self.put(f"proc/{pid}/cmdline", f"/usr/bin/{command}\0-x\0")
        for number, file in enumerate(opened, 3):
            fd = self.proc / str(pid) / "fd" / str(number)
            fd.parent.mkdir(parents=True, exist_ok=True)
            fd.symlink_to(file)
        (self.proc / str(pid) / "ns").mkdir(exist_ok=True)
        (self.proc / str(pid) / "ns/mnt").symlink_to(namespace)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    kernel = FakeKernel(tmp_path / "fake")
    monkeypatch.setattr("dmcopy.block.backing.identity_at", kernel.identity_at)
    return kernel
