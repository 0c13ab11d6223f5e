"""The machine that QEMU makes: its arguments, in pairs, with reasons where they are not obvious."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from dmcopy.block import tools
from dmcopy.errors import MissingError
from dmcopy.vm.agent import PORT

PROGRAM: Final = "qemu-system-x86_64"


def find_qemu() -> str:
    """Return the path of QEMU. Raises MissingError where there is none, or another processor."""
    if os.uname().machine != "x86_64":
        raise MissingError(f"the rig runs on x86_64 only, and this machine is {os.uname().machine}")
    found = tools.which(PROGRAM)
    if found is None:
        raise MissingError(
            f"no {PROGRAM} here: apt-get install --no-install-recommends qemu-system-x86"
        )
    return found


# Without what only makes an emulated processor slower: a fifth level of page tables to walk, checks
# of each access of the kernel's to user memory, and registers that libc takes for the wide strings
# of AVX, which QEMU works through byte by byte. A command takes a sixth less (QEMU 7.2). Nor with
# quick string instructions (erms): with them kernel and libc clear and copy by `rep stosb` and `rep
# movsb`, which QEMU runs byte by byte. To fill and copy memory takes a third of the time without.
_EMULATED: Final = "max,-la57,-smap,-smep,-umip,-pku,-pks,-erms"
_WITHOUT_AVX: Final = ",-avx,-avx2,-xsave,-xsaveopt"
_ISA_NEEDED: Final = struct.pack("<2I", 0xC0008002, 4)
"""GNU_PROPERTY_X86_ISA_1_NEEDED, in the notes at the head of a program (x86-64 psABI)."""
_ISA_V3: Final = 1 << 2


def needs_avx(library: bytes) -> bool:
    """Whether a program or library, by its notes, runs on x86-64-v3 and better alone."""
    head = library[:4096]
    at = head.find(_ISA_NEEDED)
    return at >= 0 and head[at + len(_ISA_NEEDED)] & _ISA_V3 != 0


def _emulated() -> str:
    """The processor for guests, which run this machine's programs: as its libc needs it."""
    maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").split()
    libc = next((word for word in maps if word.endswith("/libc.so.6")), "")
    with contextlib.suppress(OSError):
        if libc and needs_avx(Path(libc).read_bytes()):
            return _EMULATED
    return _EMULATED + _WITHOUT_AVX


# fmt: off
def board(program: str, acceleration: str, memory_mib: int, cpus: int | None) -> list[str]:
    """QEMU's arguments for the machine: nothing in it that a test has no use for.

    `cpus` None is one processor where it is emulated: with a second, QEMU must emulate atomic
    operations and interrupts between the two, and the same work costs twice the time of the host.
    """
    kvm = acceleration == "kvm"
    return [
        program, "-nodefaults", "-no-user-config", "-display", "none",
        "-name", "dmcopy",
        "-machine", "pc,vmport=off,hpet=off",
        "-accel", "kvm" if kvm else "tcg,thread=multi,tb-size=256",
        "-cpu", "host" if kvm else _emulated(),
        "-smp", str(cpus or (min(2, os.cpu_count() or 1) if kvm else 1)),
        "-m", f"{memory_mib}M",
        "-no-reboot",  # with panic=-1: a panic ends QEMU
    ]


def kernel_options(image: Path, folder: Path) -> list[str]:
    """QEMU's arguments for the kernel, the initial RAM disk and the console."""
    return [
        "-kernel", str(image),
        "-initrd", str(folder / "initrd"),
        "-append", " ".join([
            "console=ttyS0", "loglevel=4", "panic=-1", "oops=panic",
            # What only costs time in a guest that lives for a minute.
            "mitigations=off", "cryptomgr.notests", "random.trust_cpu=on", "tsc=unstable",
            "no_timer_check",  # it panics where the host is so busy that no tick comes for a while
            "init_on_alloc=0", "hardened_usercopy=off", "randomize_kstack_offset=off",
            "audit=0", "noresume", "nokaslr",
            # No security module: Debian's kernels know no selinux=0, and with apparmor=0 alone
            # SELinux takes its place, in each system call that names a file.
            "lsm=capability",
            # Where libc is in each process, its code is translated again: a dmsetup takes twice the
            # time (measured with QEMU 7.2).
            "norandmaps",
        ]),
        "-serial", f"file:{_optarg(folder / 'console')}",
    ]


def agent_port(path: Path) -> list[str]:
    """QEMU's arguments for the named port that the agent talks through."""
    return [
        "-device", "virtio-serial-pci",
        "-chardev", f"socket,id=agent,path={_optarg(path)}",
        "-device", f"virtserialport,chardev=agent,name={PORT}",
    ]


def shared_folders(shares: Sequence[Path]) -> list[str]:
    """QEMU's arguments for the host's root, read-only, and the folders that a guest writes to."""
    # multidevs=remap: folders of several file systems in one share, each with its own numbers.
    common = "security_model=none,multidevs=remap"
    argv = [
        "-fsdev", f"local,id=root,path=/,readonly=on,{common}",
        "-device", "virtio-9p-pci,fsdev=root,mount_tag=dmcopy.root",
    ]
    for number, path in enumerate(shares):
        argv += [
            "-fsdev", f"local,id=share{number},path={_optarg(path)},{common}",
            "-device", f"virtio-9p-pci,fsdev=share{number},mount_tag=dmcopy.share{number}",
        ]
    return argv


def disk_options(number: int, serial: str, address: Path) -> list[str]:
    """QEMU's arguments for one virtio disk, served at a socket."""
    return [
        "-blockdev", f"nbd,node-name=disk{number},discard=unmap,"
                     f"server.type=unix,server.path={_optarg(address)}",
        "-device", f"virtio-blk-pci,drive=disk{number},serial={serial},write-cache=on",
    ]
# fmt: on


def _optarg(path: Path) -> str:
    """A path within a QEMU option, where a comma is written twice."""
    return str(path).replace(",", ",,")
