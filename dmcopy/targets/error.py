"""error: every read and write fails (io_err_target in drivers/md/dm-target.c)."""

from __future__ import annotations

from typing import ClassVar

from dmcopy.table import TableLine
from dmcopy.targets.base import KILL, Bio, Host, Map, Target, register


@register
class Error(Target):
    """`error [<device> <offset>]`: a device lends only its block size.

    It hears of no flush, so one does not fail (measured on 6.1 and 6.12). Other lines of its table
    take discards, as on 6.12; on 6.1 none of such a table does.
    """

    name: ClassVar[str] = "error"
    version: ClassVar = (1, 7, 0)
    discard_bios = 1

    def __init__(self, line: TableLine, host: Host) -> None:
        super().__init__(line, host)
        if self.value.limits is not None:
            device = host.open(self.value.limits.device, write=False)
            host.use(device, self.value.limits.offset, self.length)

    def map(self, bio: Bio) -> Map:
        del bio
        return KILL
