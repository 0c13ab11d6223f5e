"""Mapped devices: one interface, `Mapper`, and the engines behind it."""

from typing import TYPE_CHECKING

from dmcopy.lazy import attributes

if TYPE_CHECKING:
    from dmcopy.mapper.base import Mapper
    from dmcopy.mapper.device import DmDevice
    from dmcopy.mapper.kernel import KernelMapper
    from dmcopy.mapper.mapped_io import MappedIo
    from dmcopy.mapper.userspace import UserMapper
else:
    __getattr__ = attributes(
        __name__,
        base="Mapper",
        device="DmDevice",
        kernel="KernelMapper",
        mapped_io="MappedIo",
        userspace="UserMapper",
    )

__all__ = ["DmDevice", "KernelMapper", "MappedIo", "Mapper", "UserMapper"]
