"""The rig: boots a kernel with real device-mapper and udev, and runs commands in it.

with vm.guest(kernel="6.1", disks=[Disk("1G", serial="a")]) as g:
    print(g.run(["uname", "-r"]).text)
"""

from __future__ import annotations

from dmcopy.vm.base import Guest
from dmcopy.vm.channel import Command, CommandResult
from dmcopy.vm.disks import Disk
from dmcopy.vm.kernels import check
from dmcopy.vm.qemu import QemuGuest as guest  # noqa: N813 - it reads as the verb that it is

__all__ = ["Command", "CommandResult", "Disk", "Guest", "check", "guest"]
