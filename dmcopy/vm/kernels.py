"""Kernels that a guest can boot: Debian's by number, fetched into the cache; any other by path."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dmcopy.errors import MissingError, UsageError
from dmcopy.vm import debian, machine
from dmcopy.vm.cache import cache_dir

DEFAULT: Final = "6.1"

# The kernels that every release of dmcopy is tested on, and the Debian release that has each.
SUITES: Final = {
    "6.1": "bookworm",
    "6.12": "trixie",
}

# The modules that a guest needs before it has a root file system, then those for its tests.
BOOT_MODULES: Final = (
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "9pnet_virtio",
    "9p",
    "overlay",
)
_REQUIRED: Final = (*BOOT_MODULES, "dm_mod")
_OPTIONS: Final = {
    "virtio_pci": "CONFIG_VIRTIO_PCI",
    "virtio_blk": "CONFIG_VIRTIO_BLK",
    "virtio_console": "CONFIG_VIRTIO_CONSOLE",
    "9pnet_virtio": "CONFIG_NET_9P_VIRTIO",
    "9p": "CONFIG_9P_FS",
    "overlay": "CONFIG_OVERLAY_FS",
    "dm_mod": "CONFIG_BLK_DEV_DM",
}


@dataclass(frozen=True)
class Kernel:
    """A kernel to boot. `modules` is its lib/modules/VERSION, None if everything is built in."""

    version: str
    image: Path
    modules: Path | None

    @property
    def short(self) -> str:
        """The number that people use: 6.1 for 6.1.0-50-amd64."""
        match = re.match(r"\d+\.\d+", self.version)
        return match[0] if match else self.version


def cached() -> list[Kernel]:
    """Return the Debian kernels in the cache, the newest last."""
    return sorted(
        (
            Kernel(path.name, path / "vmlinux", path / "lib/modules" / path.name)
            for path in _folder().iterdir()
            if (path / debian.COMPLETE).exists()
        ),
        key=lambda kernel: _sortable(kernel.version),
    )


def find(spec: str) -> Kernel:
    """Return the kernel that `spec` means, fetching it if need be.

    `spec` is a number (6.1, 6.12), the exact version of a cached one, the path of a vmlinuz, or
    of a kernel build tree. Raises UsageError for what is none of these, MissingError for a kernel
    that a guest cannot use or that cannot be fetched.
    """
    kernel = _at_path(Path(spec)) if "/" in spec else _by_number(spec)
    _check(kernel)
    return kernel


def check(spec: str) -> None:
    """Raise UsageError for an unknown kernel, MissingError where no guest can run. Fetch nothing.

    What `find` means to fetch may still turn out not to be had.
    """
    machine.find_qemu()
    if "/" in spec or spec not in SUITES:
        find(spec)


def fetch(number: str) -> Kernel:
    """Fetch Debian's newest kernel of the series `number` (a key of SUITES) into the cache."""
    version = debian.fetch(SUITES[number], _folder())
    return next(kernel for kernel in cached() if kernel.version == version)


def dependencies(modules: Path, names: tuple[str, ...]) -> list[Path]:
    """Return the module files that loading `names` takes, each after those it needs.

    A name that is built into the kernel needs no file; one that is nowhere raises KeyError.
    """
    index = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, needs = line.partition(":")
        index[_module_name(path)] = (path, [_module_name(need) for need in needs.split()])
    builtin = _builtin(modules)
    order: dict[str, Path] = {}

    def add(name: str) -> None:
        if name in builtin or name in order:
            return
        path, needs = index[name]
        for need in needs:
            add(need)
        order[name] = modules / path

    for name in names:
        add(name)
    return list(order.values())


def _folder() -> Path:
    path = cache_dir() / "kernels"
    path.mkdir(exist_ok=True)
    return path


def _sortable(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


def _by_number(spec: str) -> Kernel:
    fits = [
        kernel
        for kernel in cached()
        if kernel.version == spec or kernel.version.startswith((f"{spec}.", f"{spec}-"))
    ]
    if fits:
        return fits[-1]
    if spec in SUITES:
        return fetch(spec)
    known = ", ".join(dict.fromkeys((*SUITES, *(kernel.version for kernel in cached()))))
    raise UsageError(
        f"{spec}: no such kernel: use one of {known}, or the path of a vmlinuz or build tree"
    )


def _at_path(path: Path) -> Kernel:
    if not path.exists():
        raise UsageError(f"{path}: no such kernel image or build tree")
    image = path / "arch/x86/boot/bzImage" if path.is_dir() else path
    if not image.is_file():
        raise MissingError(f"{path}: no kernel built there: run make, so that {image} exists")
    version = image_version(image)
    return Kernel(version, image.resolve(), _modules_near(path.resolve(), version))


def image_version(image: Path) -> str:
    """Return the version that a bzImage's header names. Raises UsageError for another file."""
    with image.open("rb") as file:
        head = file.read(0x10000)
    if head[0x202:0x206] == b"HdrS":
        offset = int.from_bytes(head[0x20E:0x210], "little") + 0x200
        return head[offset : head.index(b"\0", offset)].split(b" ")[0].decode()
    raise UsageError(f"{image} is not an x86 kernel image (bzImage)")


def _modules_near(path: Path, version: str) -> Path | None:
    """The modules of an image: beside it as a package or `make modules_install` leaves them."""
    roots = [*path.parents] if path.is_file() else [path]
    for root in (*roots, Path("/")):
        modules = root / "lib/modules" / version
        if (modules / "modules.dep").exists():
            return modules
    return None


def _builtin(modules: Path) -> set[str]:
    listing = modules / "modules.builtin"
    return {_module_name(line) for line in listing.read_text().splitlines()}


def _module_name(path: str) -> str:
    return path.rsplit("/", 1)[-1].split(".ko")[0].replace("-", "_")


def _check(kernel: Kernel) -> None:
    if kernel.modules is None:
        missing = _missing_in_config(kernel)
        hint = (
            "build them in, or run make modules_install INSTALL_MOD_PATH=. in the tree so that "
            f"lib/modules/{kernel.version} is there"
        )
    else:
        missing = _missing_modules(kernel.modules)
        hint = "a guest cannot do without"
    if missing:
        raise MissingError(f"kernel {kernel.version} has no {', '.join(missing)}: {hint}")


def _missing_modules(modules: Path) -> list[str]:
    missing = []
    for name in _REQUIRED:
        try:
            files = dependencies(modules, (name,))
        except KeyError:
            missing.append(name)
        else:
            missing += [name for path in files if not path.exists()]
    return missing


def _missing_in_config(kernel: Kernel) -> list[str]:
    """Which options a kernel without modules lacks, by the configuration that lies beside it."""
    for root in kernel.image.parents:
        for config in (root / ".config", root / f"config-{kernel.version}"):
            if config.is_file() and os.access(config, os.R_OK):
                lines = set(config.read_text().splitlines())
                return [name for name in _REQUIRED if f"{_OPTIONS[name]}=y" not in lines]
    return ["modules and no configuration beside it that shows them built in"]
