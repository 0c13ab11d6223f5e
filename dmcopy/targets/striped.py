"""striped: chunks of sectors to several devices in turn (drivers/md/dm-stripe.c)."""

from __future__ import annotations

import errno
from typing import ClassVar

from dmcopy import table as lines
from dmcopy.io.request import Op
from dmcopy.table import TableLine
from dmcopy.targets.base import DONE, REMAPPED, Bio, Host, Map, Target, register

MAX_EVENTS = 15
"""DM_IO_ERROR_THRESHOLD."""


@register
class Striped(Target):
    """`striped <#stripes> <chunk_size> [<device> <offset>]...`.

    A flush goes to every stripe. So does a discard, for the part of it that lies there: a discard
    is not cut at chunks. Errors change a stripe's letter in the status, and raise an event until
    there were MAX_EVENTS of them (stripe_end_io).
    """

    value: lines.Striped
    name: ClassVar[str] = "striped"
    version: ClassVar = (1, 6, 0)
    maps_ranges = True
    wants_end_io = True

    def __init__(self, line: TableLine, host: Host) -> None:
        super().__init__(line, host)
        self._legs = [(host.open(leg.device), leg.offset) for leg in self.value.legs]
        self._stripes = len(self._legs)
        self._chunk: int = self.value.chunk_size
        self.max_io_len = self._chunk
        self.flush_bios = self.discard_bios = self._stripes
        self._errors = [0] * self._stripes
        for device, offset in self._legs:
            host.use(device, offset, self.length // self._stripes)

    def map(self, bio: Bio) -> Map:
        """Move the bio to the stripe that its sectors are on."""
        if bio.op == Op.FLUSH:
            bio.device = self._legs[bio.number][0]
            bio.data = bio.number
            return REMAPPED
        if bio.op == Op.DISCARD:
            return self._map_range(bio)
        stripe, sector = self._place(bio.sector - self.begin)
        bio.device, offset = self._legs[stripe]
        bio.sector = offset + sector
        bio.data = stripe
        return REMAPPED

    def end_io(self, bio: Bio) -> bool:
        """Count an error of a stripe."""
        if bio.error and bio.data is not None and bio.error != errno.EOPNOTSUPP:
            self._errors[bio.data] += 1
            if self._errors[bio.data] < MAX_EVENTS:
                self.host.event()
        return True

    def status(self) -> str:
        """Return the devices, a group count of 1, and a letter for each: A is alive, D failed."""
        names = " ".join(self.host.label(device) for device, _ in self._legs)
        letters = "".join("D" if errors else "A" for errors in self._errors)
        return f"{self._stripes} {names} 1 {letters}"

    def _place(self, sector: int) -> tuple[int, int]:
        """Return the stripe that holds a sector, and where in it."""
        chunk, offset = divmod(sector, self._chunk)
        row, stripe = divmod(chunk, self._stripes)
        return stripe, row * self._chunk + offset

    def _map_range(self, bio: Bio) -> Map:
        """Cut a range down to what of it is on stripe `bio.number` (stripe_map_range)."""
        first = self._edge(bio.sector - self.begin, bio.number)
        last = self._edge(bio.sector - self.begin + bio.count, bio.number)
        if first == last:
            return DONE
        bio.device, offset = self._legs[bio.number]
        bio.sector, bio.count = offset + first, last - first
        bio.data = bio.number
        return REMAPPED

    def _edge(self, sector: int, number: int) -> int:
        """Return how many sectors of stripe `number` lie before `sector` of the device."""
        stripe, place = self._place(sector)
        if stripe == number:
            return place
        row = place // self._chunk * self._chunk
        return row + (self._chunk if number < stripe else 0)
