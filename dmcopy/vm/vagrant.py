"""Guests under Vagrant and libvirt: an installed Debian, with an init system and its own kernel.

It is the Vagrantfile of a checkout that is brought up, with a user-mode network on loopback, so the
host's network rules stay as they are, and with a box that vagrant/build-box makes, so nothing is
downloaded but Debian packages. The checkout is copied to /dmcopy in the guest. Commands go to the
same agent as under QEMU, over `vagrant ssh`. Needs root, for libvirt.

A power cut here is the end of QEMU and no more: what the guest has written is in the host's page
cache and stays, flushed or not. Crash tests belong in `dmcopy.vm.qemu`.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from dmcopy.block import tools
from dmcopy.errors import DeadlineError, LostVMError, MissingError, UsageError
from dmcopy.vm import accel, kernels
from dmcopy.vm.base import Guest
from dmcopy.vm.cache import cache_dir, keep_log, locked
from dmcopy.vm.channel import Channel, ChannelLostError
from dmcopy.vm.disks import Disk
from dmcopy.vm.libvirt import PREFIX, remove_leftovers, running
from dmcopy.vm.machine import find_qemu

UP_TIMEOUT: Final = 900.0
_CHECKOUT: Final = Path(__file__).parents[2]
_INSIDE: Final = Path("/dmcopy")
_PACKAGES: Final = (
    "vagrant vagrant-libvirt libvirt-daemon-system libvirt-clients qemu-system-x86 qemu-utils "
    "rsync openssh-client mmdebstrap fdisk e2fsprogs"
)
_TAIL_LINES: Final = 8


class VagrantGuest(Guest):
    """A machine of the checkout's Vagrantfile. One at a time on a host; disks in whole GiB."""

    def __init__(
        self,
        disks: Iterable[Disk] = (),
        memory_mib: int = 1024,
        timeout: float = UP_TIMEOUT,
    ) -> None:
        super().__init__(disks)
        _check_tools()
        self._settings = {"DMCOPY_DISKS": vagrant_disks(self.disks)}
        self._ssh: subprocess.Popen[bytes] | None = None
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            stack.enter_context(locked(cache_dir() / "vagrant.lock", "running Vagrant", 60))
            stack.enter_context(running())
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="dmcopy-vagrant-"))
            self._folder = Path(folder)
            self._folder.chmod(0o755)  # QEMU runs as another user
            self._prepare(memory_mib)
            stack.callback(self._destroy)
            self._up(timeout)
            self._connect()
            self._stack = stack.pop_all()

    def kill(self, chooser: random.Random | None = None) -> None:
        if chooser is not None:
            raise UsageError("the Vagrant provider cannot choose what a power cut takes: use QEMU")
        self.close()

    def close(self) -> None:
        self._stack.close()

    def _prepare(self, memory_mib: int) -> None:
        box = _box()
        image = kernels.find(kernels.DEFAULT).image
        self._settings |= {
            "DMCOPY_BOX": box.stem,
            "DMCOPY_BOX_URL": str(box),
            "DMCOPY_DRIVER": "kvm" if accel.choose(find_qemu(), image) == "kvm" else "qemu",
            "DMCOPY_MEMORY": str(memory_mib),
            "DMCOPY_NET": "user",
            "DMCOPY_PREFIX": PREFIX,
            "DMCOPY_SSH_PORT": str(_free_port()),
            "DMCOPY_SERIAL": str(self._folder / "console"),
            "VAGRANT_CWD": str(_CHECKOUT / "vagrant"),
            "VAGRANT_DOTFILE_PATH": str(self._folder / "state"),
            "VAGRANT_HOME": str(cache_dir() / "vagrant"),
            "VAGRANT_CHECKPOINT_DISABLE": "1",
        }
        (self._folder / "console").touch()
        remove_leftovers(box.stem)

    def _up(self, timeout: float) -> None:
        began = time.monotonic()
        log = self._folder / "up"
        argv = ["vagrant", "up", "--provider=libvirt", "--no-color"]
        with log.open("wb") as file:
            try:
                done = subprocess.run(
                    argv,
                    env=tools.environment(LC_ALL="C.UTF-8", **self._settings),
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    timeout=timeout,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                raise self._lost(f"vagrant up took more than {timeout:.0f} s", log) from None
        if done.returncode:
            raise self._lost(f"vagrant up ended with {done.returncode}", log)
        _say(f"vagrant up: {time.monotonic() - began:.0f} s")

    def _connect(self) -> None:
        began = time.monotonic()
        ours, theirs = socket.socketpair()
        agent = f"{_INSIDE}/dmcopy/vm/agent.py"
        with theirs:
            self._ssh = subprocess.Popen(
                ["vagrant", "ssh", "--", "-T", f"sudo python3 -I -S {agent} -"],
                env=tools.environment(LC_ALL="C.UTF-8", **self._settings),
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._channel = Channel(ours)
        try:
            self._channel.wait_hello(time.monotonic() + 180)
        except (ChannelLostError, DeadlineError) as error:
            raise self._lost(f"vagrant ssh: {error}") from None
        _say(f"vagrant ssh: {time.monotonic() - began:.0f} s")

    def _destroy(self) -> None:
        began = time.monotonic()
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._ssh is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._ssh.pid, signal.SIGTERM)
            self._ssh.wait(30)
        subprocess.run(
            ["vagrant", "destroy", "--force"],
            env=tools.environment(LC_ALL="C.UTF-8", **self._settings),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=300,
            check=False,
        )
        remove_leftovers(self._settings["DMCOPY_BOX"])
        _say(f"vagrant destroy: {time.monotonic() - began:.0f} s")

    def _inside(self, path: Path) -> Path:
        return inside(path)

    def _environment(self, extra: Mapping[str, str] | None) -> dict[str, str]:
        ours = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        return super()._environment({**ours, **(extra or {})})

    def _lost(self, why: str, log: Path | None = None) -> LostVMError:
        kept = keep_log(log or self._folder / "console", "vagrant")
        tail = "\n".join(kept.read_text(errors="replace").rstrip().splitlines()[-_TAIL_LINES:])
        self._stack.close()
        return LostVMError(f"lost VM: {why}; whole log: {kept}; its last lines:\n{tail}", str(kept))


def vagrant_disks(disks: Sequence[Disk]) -> str:
    """Return the disks as the Vagrantfile reads them. Raises UsageError for what it cannot have."""
    for disk in disks:
        if disk.twin:
            raise UsageError("the Vagrant provider gives each disk a serial of its own: no twins")
        if disk.size_bytes % (1 << 30):
            raise UsageError(f"{disk.size}: the Vagrant provider has disks in whole GiB only")
        if disk.path is not None:
            raise UsageError(f"{disk.path}: the Vagrant provider makes the disks' files itself")
    return " ".join(f"{disk.serial}:{disk.size_bytes >> 30}G" for disk in disks)


def inside(path: Path) -> Path:
    """Return where a folder of the checkout is in the guest. Raises UsageError for another one."""
    path = path.absolute()
    if path.is_relative_to(_INSIDE):
        return path
    if not path.is_relative_to(_CHECKOUT):
        raise UsageError(f"{path} is not in the checkout, which is all that a Vagrant guest has")
    return _INSIDE / path.relative_to(_CHECKOUT)


def _box() -> Path:
    """The box, built at the first call and again when its recipe changes."""
    recipe = _CHECKOUT / "vagrant/build-box"
    folder = cache_dir() / "boxes"
    box = folder / "dmcopy-bookworm.box"
    if not box.exists() or box.stat().st_mtime < recipe.stat().st_mtime:
        began = time.monotonic()
        _say("building the box from Debian packages (two to four minutes)")
        log = folder / "build.log"
        folder.mkdir(exist_ok=True)
        with log.open("wb") as file:
            done = subprocess.run(
                [str(recipe), str(box)], stdout=file, stderr=file, timeout=1800, check=False
            )
        if done.returncode:
            raise MissingError(f"{recipe} ended with {done.returncode}: see {log}")
        shutil.rmtree(cache_dir() / "vagrant/boxes" / box.stem, ignore_errors=True)
        _say(f"box built: {time.monotonic() - began:.0f} s")
    return box


def _check_tools() -> None:
    if os.geteuid() != 0:
        raise MissingError("the Vagrant provider needs root, for libvirt: use sudo, or QEMU")
    if not (_CHECKOUT / "vagrant/Vagrantfile").exists():
        raise MissingError("the Vagrant provider runs from a checkout of dmcopy only: use QEMU")
    for tool in ("vagrant", "virsh", "libvirtd", "rsync", "ssh"):
        if tools.which(tool) is None:
            raise MissingError(
                f"no {tool} here: apt-get install --no-install-recommends {_PACKAGES}"
            )


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _say(text: str) -> None:
    print(f"dmcopy: {text}", file=sys.stderr)
