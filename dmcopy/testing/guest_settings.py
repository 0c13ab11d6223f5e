"""The settings of a guest and of pytest in it: options, disks, folders, environment."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from dmcopy.closing import Closing
from dmcopy.errors import UsageError
from dmcopy.testing import options
from dmcopy.testing.guest_run import GuestSettings
from dmcopy.testing.needs import Needs
from dmcopy.units import parse_bytes

if TYPE_CHECKING:
    from dmcopy.vm import Disk, Guest

DISK_SIZE: Final = "256M"
DISK_SERIALS: Final = ("a", "b", "c", "d")
_PASSED_ON: Final = ("DMCOPY_TEST", "DMCOPY_SEED", "DMCOPY_CRASH", "PYTEST_ADDOPTS")
_REPEATED: Final = {"-p": "plugins", "-W": "pythonwarnings", "-o": "override_ini"}
_RESERVE_BYTES: Final = 512 << 20
"""What is left to the host beside its guests."""


class DiskFolder(Closing):
    """A folder for the disks of guests, which goes with this process however that ends."""

    def __init__(self) -> None:
        from dmcopy.vm.leash import Leashed

        self.path = Path(tempfile.mkdtemp(prefix="dmcopy-disks-"))
        self._leash = Leashed(self.path, ["sleep", "infinity"])

    def close(self) -> None:
        self._leash.close()
        shutil.rmtree(self.path, ignore_errors=True)


def settings(
    config: pytest.Config, kernel: str, items: Sequence[pytest.Item], folder: Path
) -> GuestSettings:
    """Return the settings of a kernel's guests for `items`, with their disks in `folder`."""
    found = _with_files(disks(config, items), folder / Path(kernel).name)
    boot, close = _provided(config, kernel, found)
    return GuestSettings(
        boot=boot,
        close=close,
        argv=arguments(config),
        folder=config.rootpath,
        environment=_environment(config),
        silence=config.getoption("--vm-silence"),
    )


def _provided(
    config: pytest.Config, kernel: str, found: Sequence[Disk]
) -> tuple[Callable[[], Guest], Callable[[], None]]:
    """Return a function that boots a guest of a kernel, and one to call when no more are wanted."""
    from dmcopy import vm

    memory = config.getoption("--vm-memory")
    shares = [Path(word).absolute() for word in config.getoption("--vm-share")]
    if options.provider(config) == "qemu":
        return lambda: vm.guest(kernel=kernel, disks=found, memory=memory, share=shares), _nothing
    from dmcopy.vm.vagrant import VagrantMachine

    made: list[VagrantMachine] = []

    def boot() -> Guest:
        if not made:
            mib = parse_bytes(memory, default="m") >> 20
            made.append(VagrantMachine(kernel, found, mib, config.rootpath))
        return made[0].boot()

    def close() -> None:
        while made:
            made.pop().close()

    return boot, close


def _nothing() -> None:
    """Do nothing: a guest under QEMU leaves nothing between two boots."""


def check(session: pytest.Session, kernels: Iterable[str]) -> None:
    """Raise DmcopyError for options that cannot be, and for more guests than there is memory."""
    from dmcopy import vm

    config = session.config
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    if options.provider(config) == "vagrant":
        from dmcopy.vm import vagrant

        for kernel in kernels:
            vagrant.check(kernel)
        if config.getoption("--vm-share"):
            raise UsageError("--vm-share: what is copied to a Vagrant guest does not come back")
        if workers > 1:
            raise UsageError("there is one Vagrant guest at a time on a machine: leave -n out")
    else:
        for kernel in kernels:
            vm.check(kernel)
    disks(config, session.items)
    for word in config.getoption("--vm-share"):
        if not Path(word).is_dir():
            raise UsageError(f"--vm-share {word}: there is no such folder")
    if workers > 1:
        check_memory(workers, parse_bytes(config.getoption("--vm-memory"), default="m"))


def check_memory(workers: int, each: int, free: int | None = None) -> None:
    """Raise UsageError where a guest for each worker does not fit into `free` bytes."""
    free = available_memory() if free is None else free
    if workers * each + _RESERVE_BYTES > free:
        fit = max(1, (free - _RESERVE_BYTES) // each)
        raise UsageError(
            f"{workers} workers with a guest of {each >> 20} MiB each, and {free >> 20} MiB of "
            f"memory are free: use -n {fit}, or a smaller --vm-memory"
        )


def available_memory() -> int:
    """Return the bytes of memory that are free, or can be freed (MemAvailable)."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return 1 << 62


def disks(config: pytest.Config, items: Sequence[pytest.Item]) -> list[Disk]:
    """Return the disks of a guest: four, those of --vm-disk, those that marks ask for.

    Of one serial the last one counts; marks that want it in different sizes raise UsageError.
    """
    from dmcopy.vm import Disk
    from dmcopy.vm.disks import parse_disk

    found = {serial: Disk(DISK_SIZE, serial) for serial in DISK_SERIALS}
    found |= {disk.serial: disk for disk in map(parse_disk, config.getoption("--vm-disk"))}
    marked: dict[str, Disk] = {}
    for item in items:
        for disk in Needs.of(getattr(item, "original", item)).vm_disks():
            other = marked.setdefault(disk.serial, disk)
            if other.size_bytes != disk.size_bytes:
                raise UsageError(
                    f"{item.nodeid} wants disk {disk.serial} of {disk.size}, and another test of "
                    f"{other.size}: give one of them another serial"
                )
    return list((found | marked).values())


def arguments(config: pytest.Config) -> list[str]:
    """Return the arguments of pytest in a guest: ours, and what changes how a test runs.

    That is what pytest and pytest-timeout have for it, and the options of conftests as given.
    """
    option = config.getoption
    argv = ["--vm-report", "-p", "no:cacheprovider", "-q"]
    argv += [f"--tb={option('tbstyle')}", f"--rootdir={config.rootpath}"]
    argv += [f"--import-mode={option('importmode')}"]
    for word, name in _REPEATED.items():
        for value in option(name) or ():
            argv += [word, value]
    if option("timeout", None) is not None:
        argv.append(f"--timeout={option('timeout')}")
    if config.pluginmanager.hasplugin("xdist"):
        argv.append("-n0")  # whatever the ini file has for the host
    if option("showlocals"):
        argv.append("--showlocals")
    if options.strict(config):
        argv.append("--dm-strict")
    if config.inipath is not None:
        argv += ["-c", str(config.inipath)]
    return [*argv, *options.of_conftests(config)]


def _with_files(wanted: Sequence[Disk], folder: Path) -> list[Disk]:
    """Give each disk a file of the host, by which it outlasts its guest."""
    from dmcopy.vm import Disk

    folder.mkdir(parents=True, exist_ok=True)
    return [
        disk if disk.path else Disk(disk.size, disk.serial, folder / disk.serial, disk.twin)
        for disk in wanted
    ]


def _environment(config: pytest.Config) -> dict[str, str]:
    names = [*_PASSED_ON, *config.getoption("--vm-env")]
    return {name: os.environ[name] for name in names if name in os.environ}
