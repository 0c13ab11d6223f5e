"""Guests under Vagrant and libvirt: an installed Debian, with an init system and its own kernel.

A `VagrantMachine` is one of a Vagrantfile: that of the folder `vagrant` of a project, which
`dmcopy vm vagrant init` writes and its owner edits, or dmcopy's own. Its network is in user mode on
loopback, so the host's network rules stay as they are, and its box is made by build-box, so nothing
is downloaded but Debian packages. Folders of the host are copied to the same paths. Commands go to
the same agent as under QEMU, over ssh. Needs root, for libvirt.

The disks are the ones of a guest under QEMU, served by this process from behind a write cache: a
power cut destroys the domain, and takes what was not flushed. The domain is then started again.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from dmcopy.block import tools
from dmcopy.closing import Closing
from dmcopy.errors import DeadlineError, LostVMError, MissingError, UsageError
from dmcopy.vm import accel, agent, box, kernels, machine
from dmcopy.vm.base import Guest, lost
from dmcopy.vm.cache import cache_dir, locked
from dmcopy.vm.channel import Channel, ChannelLostError
from dmcopy.vm.copied import distinct, imported_folders
from dmcopy.vm.disk_server import DiskServer
from dmcopy.vm.disks import Disk, check_disks
from dmcopy.vm.libvirt import PREFIX, destroy, remove_leftovers, running, start

UP_TIMEOUT: Final = 900.0
_NAME: Final = (
    f"{PREFIX}default"  # of the domain: the prefix, and what Vagrant calls a sole machine
)
_LAST_SLOT: Final = 0x1D  # of the bus; libvirt fills it from the first on
_QEMU_USER: Final = "libvirt-qemu"
_PACKAGES: Final = (
    "vagrant vagrant-libvirt libvirt-daemon-system libvirt-clients qemu-system-x86 qemu-utils "
    "rsync openssh-client mmdebstrap fdisk e2fsprogs"
)
_SETTLE: Final = (
    # Else it waits after a panic for ever; and a power cut must not take what was copied.
    "sysctl -q kernel.panic=-1 kernel.panic_on_oops=1; sync"
)


class VagrantMachine(Closing):
    """A machine whose guests are booted one after another, on the same disks. One on a host.

    `kernel` is that of a Debian suite, which the box is of. The folder `project`, by
    default the current one, is copied to it, and all that this process imports Python from.
    """

    def __init__(
        self,
        kernel: str = kernels.DEFAULT,
        disks: Iterable[Disk] = (),
        memory_mib: int = 1024,
        project: Path | None = None,
        timeout: float = UP_TIMEOUT,
    ) -> None:
        check(kernel)
        self.disks = list(disks)
        check_disks(self.disks)
        self.console = Path()
        self._kernel = kernel
        self._timeout = timeout
        self._is_up = False
        self.imports = imported_folders(sys.path)
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            stack.enter_context(locked(cache_dir() / "vagrant.lock", "running Vagrant", 60))
            stack.enter_context(running())
            made = tempfile.TemporaryDirectory(prefix="dmcopy-vagrant-")
            self.folder = Path(stack.enter_context(made))
            self.folder.chmod(0o755)  # QEMU runs as another user
            self._prepare(memory_mib, (project or Path.cwd()).absolute())
            self._stack = stack.pop_all()

    def boot(self) -> VagrantGuest:
        """Bring it up, or start it again. Raises LostVMError, MissingError."""
        return VagrantGuest(self)

    def close(self) -> None:
        """Destroy it."""
        self._stack.close()

    def power_on(self) -> None:
        """Start the domain; the first time, make it."""
        if self._is_up:
            start(_NAME)
            return
        self._stack.callback(self._destroy)
        self._vagrant("up", "--provider=libvirt", timeout=self._timeout)
        config = self._vagrant("ssh-config", timeout=300)
        (self.folder / "ssh").write_text(config)
        self._is_up = True

    def power_off(self) -> None:
        """Cut the power."""
        destroy(_NAME)

    def _prepare(self, memory_mib: int, project: Path) -> None:
        recipe = box.recipe(project)
        folders = distinct([project, *self.imports])
        made = box.build(recipe, kernels.SUITES[self._kernel])
        image = kernels.find(kernels.DEFAULT).image
        self.console = self.folder / "console"
        self.console.touch()
        words = ["-no-reboot"]  # so a panic ends QEMU
        for number, disk in enumerate(self.disks):
            *rest, device = machine.disk_options(number, disk.serial, self.socket(number))
            words += [*rest, f"{device},bus=pci.0,addr={_LAST_SLOT - number:#x}"]
        self._settings = {
            "DMCOPY_BOX": made.stem,
            "DMCOPY_BOX_URL": str(made),
            "DMCOPY_DISKS": "",
            "DMCOPY_DRIVER": "kvm" if accel.choose(machine.find_qemu(), image) == "kvm" else "qemu",
            "DMCOPY_FOLDERS": json.dumps([str(folder) for folder in folders]),
            "DMCOPY_MEMORY": str(memory_mib),
            "DMCOPY_NET": "user",
            "DMCOPY_PREFIX": PREFIX,
            "DMCOPY_QEMU": json.dumps(words),
            "DMCOPY_SSH_PORT": str(_free_port()),
            "DMCOPY_SERIAL": str(self.console),
            "VAGRANT_CWD": str(recipe),
            "VAGRANT_DOTFILE_PATH": str(self.folder / "state"),
            "VAGRANT_HOME": str(cache_dir() / "vagrant"),
            "VAGRANT_CHECKPOINT_DISABLE": "1",
        }
        remove_leftovers(made.stem)

    def socket(self, number: int) -> Path:
        """Return where a disk is served."""
        return self.folder / f"disk{number}.socket"

    def _vagrant(self, *words: str, timeout: float) -> str:
        began = time.monotonic()
        log = self.folder / words[0]
        with log.open("wb") as file:
            try:
                done = subprocess.run(
                    ["vagrant", *words, "--no-color"],
                    env=tools.environment(LC_ALL="C.UTF-8", **self._settings),
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    timeout=timeout,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                raise lost(
                    f"vagrant {words[0]} took more than {timeout:.0f} s", log, "vagrant"
                ) from None
        if done.returncode:
            raise lost(f"vagrant {words[0]} ended with {done.returncode}", log, "vagrant")
        _say(f"vagrant {words[0]}: {time.monotonic() - began:.0f} s")
        return log.read_text(errors="replace")

    def _destroy(self) -> None:
        with contextlib.suppress(LostVMError):  # what it leaves is removed all the same
            self._vagrant("destroy", "--force", timeout=300)
        remove_leftovers(self._settings["DMCOPY_BOX"])


class VagrantGuest(Guest):
    """One boot of a machine; closed, it is off."""

    python = "/usr/bin/python3"

    def __init__(self, made: VagrantMachine) -> None:
        super().__init__(made.disks)
        self._machine = made
        self._ssh: subprocess.Popen[bytes] | None = None
        self._servers: list[DiskServer] = []
        began = time.monotonic()
        try:
            self._serve_disks()
            made.power_on()
            self._connect(time.monotonic() + 300)
            self.run(["sh", "-c", _SETTLE], cwd="/", timeout=300)
        except BaseException:
            self._end(lose=False)
            raise
        _say(f"a boot: {time.monotonic() - began:.0f} s")

    @property
    def console_bytes(self) -> int:
        return self._machine.console.stat().st_size

    def kill(self, chooser: random.Random | None = None) -> None:
        self._end(lose=True, chooser=chooser)

    def close(self) -> None:
        self._end(lose=False)

    def _serve_disks(self) -> None:
        for number, disk in enumerate(self.disks):
            path = disk.create(self._machine.folder / f"disk{number}")
            address = self._machine.socket(number)
            self._servers.append(DiskServer(path, address))
            with contextlib.suppress(KeyError):  # on some distributions QEMU runs as root
                os.chown(address, pwd.getpwnam(_QEMU_USER).pw_uid, -1)

    def _connect(self, deadline: float) -> None:
        """Start the agent by ssh, as soon as the guest takes that."""
        while True:
            ours, theirs = socket.socketpair()
            with theirs:
                words = ["ssh", "-F", str(self._machine.folder / "ssh"), "-oConnectTimeout=20"]
                self._ssh = subprocess.Popen(
                    [*words, "-T", "default", f"sudo python3 -I -S {agent.__file__} -"],
                    env=tools.environment(),
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
            self._channel = Channel(ours)
            try:
                self._channel.wait_hello(deadline)
                return
            except DeadlineError as error:
                raise self._lost(f"ssh: {error}") from None
            except ChannelLostError as error:
                if time.monotonic() > deadline:
                    raise self._lost(f"ssh: {error}") from None
                self._hang_up()
                time.sleep(1)

    def _hang_up(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._ssh is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._ssh.pid, signal.SIGTERM)
            self._ssh.wait(30)
            self._ssh = None

    def _end(self, *, lose: bool, chooser: random.Random | None = None) -> None:
        """Power off; the domain stays."""
        if self._servers:
            self._machine.power_off()
        self._hang_up()
        while self._servers:
            self._servers.pop(0).stop(lose=lose, chooser=chooser)

    def _inside(self, path: Path) -> Path:
        return path.absolute()

    def _environment(self, extra: Mapping[str, str] | None) -> dict[str, str]:
        ours = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONPATH": os.pathsep.join(map(str, self._machine.imports)),
        }
        return super()._environment({**ours, **(extra or {})})

    def _lost(self, why: str) -> LostVMError:
        error = lost(why, self._machine.console, "console")
        self._end(lose=False)
        return error


def check(kernel: str) -> None:
    """Raise UsageError for a kernel that no box has, MissingError for what lacks here."""
    if kernel not in kernels.SUITES:
        raise UsageError(
            f"the Vagrant provider boots the kernel of an installed Debian, one of "
            f"{', '.join(kernels.SUITES)}, and not {kernel}: use QEMU"
        )
    if os.geteuid() != 0:
        raise MissingError("the Vagrant provider needs root, for libvirt: use sudo, or QEMU")
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
