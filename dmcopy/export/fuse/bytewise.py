"""Writes that begin or end within a block, and ranges that are cleared, on a device of blocks."""

from __future__ import annotations

from dmcopy.io.reactor import Reactor
from dmcopy.io.region import Device, IoRegion
from dmcopy.io.request import DISCARD, READ, WRITE, WRITE_ZEROES, Io, Memory, Op
from dmcopy.targets.work import Requests
from dmcopy.units import SECTOR_SHIFT


class Bytewise:
    """Coroutines that return 0 or an errno; positions and lengths are in bytes, on the device.

    `room`: a run of `memory` that is free for one piece of work, `piece` bytes and two blocks long.
    No other write may be under way. Where the device fails, what was done until then stays.
    """

    def __init__(self, reactor: Reactor, device: Device, memory: Memory, piece: int) -> None:
        self._reactor = reactor
        self._device = device
        self._memory = memory
        self._piece = piece

    async def overwrite(self, room: int, start: int, data: bytes, *, fua: bool) -> int:
        """Write at most `piece` bytes, wherever they begin and end: whole blocks, read before."""
        block = self._device.logical_block_size
        first = start // block * block
        last = -(-(start + len(data)) // block) * block
        error = await self._io(READ, first, last, room)
        if error:
            return error
        at = room + start - first
        self._memory.view[at : at + len(data)] = data
        return await self._io(WRITE, first, last, room, fua=fua)

    async def clear(self, room: int, start: int, end: int, *, discard: bool) -> int:
        """Make a range read as zeroes, by discarding what lies in it if so wished.

        What a disk reads where it was discarded is its own affair, and EOPNOTSUPP may come of it;
        what is cleared must read as zeroes: so it is looked at, and zeroes are written where it is
        not. (A loop device asks for both discard and zeroes by FALLOC_FL_PUNCH_HOLE, and does not
        say which: lo_fallocate in drivers/block/loop.c, 6.1 and 6.12.)
        """
        block = self._device.logical_block_size
        first, last = -(-start // block) * block, end // block * block
        if first >= last:
            return await self.overwrite(room, start, bytes(end - start), fua=False)
        error = await self._io(DISCARD if discard else WRITE_ZEROES, first, last)
        if not error and discard:
            error = await self._zero_what_is_not(room, first, last)
        if not error and start < first:
            error = await self.overwrite(room, start, bytes(first - start), fua=False)
        if not error and last < end:
            error = await self.overwrite(room, last, bytes(end - last), fua=False)
        return error

    async def _zero_what_is_not(self, room: int, first: int, last: int) -> int:
        zeroes = bytes(self._piece)
        for at in range(first, last, self._piece):
            end = min(at + self._piece, last)
            error = await self._io(READ, at, end, room)
            found = self._memory.view[room : room + end - at].tobytes()
            if not error and found != zeroes[: end - at]:
                error = await self._io(WRITE_ZEROES, at, end)
            if error:
                return error
        return 0

    async def _io(
        self, op: Op, first: int, last: int, room: int | None = None, *, fua: bool = False
    ) -> int:
        region = IoRegion(self._device, first >> SECTOR_SHIFT, last - first >> SECTOR_SHIFT)
        if room is None:
            request = Io(op, region)
        else:
            request = Io(op, region, self._memory, ((room, last - first),), fua=fua)
        (error,) = await Requests(self._reactor, [request])
        return error
