"""Devices of this process as what other programs open: an NBD export, a file, a block device."""

from typing import TYPE_CHECKING

from dmcopy.lazy import attributes

if TYPE_CHECKING:
    from dmcopy.export.base import FrontEnd, Place, find
    from dmcopy.export.kinds import kinds
else:
    __getattr__ = attributes(__name__, base="FrontEnd Place find", kinds="kinds")

__all__ = ["FrontEnd", "Place", "find", "kinds"]
