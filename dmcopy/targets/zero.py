"""zero: reads as zeroes, drops writes (drivers/md/dm-zero.c)."""

from __future__ import annotations

from typing import ClassVar

from dmcopy.io.request import Op
from dmcopy.targets.base import DONE, Bio, Map, Target, register


@register
class Zero(Target):
    """`zero`."""

    name: ClassVar[str] = "zero"
    version: ClassVar = (1, 2, 0)
    flush_bios = 1
    discard_bios = 1

    def map(self, bio: Bio) -> Map:
        """Fill a read; forget everything else."""
        if bio.op == Op.READ:
            assert bio.memory is not None
            for view in bio.memory.views(bio.extents):
                view[:] = bytes(len(view))
        return DONE
