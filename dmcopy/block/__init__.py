"""Block devices and files: open and claim them, find them, see who holds them."""

from dmcopy.block.device import BlockDevice

__all__ = ["BlockDevice"]
