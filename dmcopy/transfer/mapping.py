"""A transfer's sectors as a map of its source, and a map's as a transfer's offsets."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from dmcopy.ranges import RangeSet
from dmcopy.transfer.copy import Transfer
from dmcopy.transfer.destination import Destination
from dmcopy.transfer.mapfile import BAD, DONE, UNTRIED, UNTRIMMED, Block, MapFile, surround
from dmcopy.transfer.plan import TransferPlan
from dmcopy.units import SECTOR_SHIFT


def make_map(transfer: Transfer, around: Sequence[Block] = ()) -> MapFile:
    """Return the map of the source: + what every living destination durably has.

    `around`: blocks of an earlier map, of which those outside the copied range are kept.
    """
    plan = transfer.plan
    base = plan.source.sector if plan.source else 0
    living = [dest for dest in transfer.dests if not dest.error] or transfer.dests
    settled = [_settled(dest, plan.count) for dest in living]
    bad, unread = transfer.bad.ranges(), transfer.unread.ranges()
    edges = {0, plan.count}
    edges |= {edge for ranges in (*settled, bad, unread) for pair in ranges for edge in pair}
    blocks = []
    for start, end in pairwise(sorted(edges)):
        if start in bad:
            status = BAD
        elif start in unread:
            status = UNTRIMMED
        else:
            status = DONE if all(start in ranges for ranges in settled) else UNTRIED
        blocks.append(Block(base + start << SECTOR_SHIFT, end - start << SECTOR_SHIFT, status))
    joined = surround(blocks, around)
    left = next((block.position for block in joined if block.status != DONE), None)
    return MapFile(
        joined,
        position=joined[-1].end if left is None else left,
        status=DONE if left is None else UNTRIED,
        comments=(" Mapfile. Created by dmcopy; what each destination has is in the .dests file",),
    )


def _settled(dest: Destination, count: int) -> RangeSet:
    """Return the offsets that need no more work; behind the end of a shorter range none do."""
    settled = dest.durable.copy()
    settled.add(dest.region.count, count)
    return settled


def extent(plan: TransferPlan) -> tuple[int, int]:
    """Return where the copied range of the source begins and ends, in bytes."""
    base = plan.source.sector if plan.source else 0
    return base << SECTOR_SHIFT, base + plan.count << SECTOR_SHIFT


def offsets_of(content: MapFile, status: str, plan: TransferPlan) -> RangeSet:
    """Return the offsets of the whole sectors that have a status, within the copied range."""
    base = plan.source.sector if plan.source else 0
    found = RangeSet()
    for start, end in RangeSet(content.ranges(status)):  # neighbours joined
        low, high = -(-start >> SECTOR_SHIFT) - base, (end >> SECTOR_SHIFT) - base
        found.add(max(0, low), min(high, plan.count))
    return found


def inward(ranges: RangeSet, block: int, count: int) -> RangeSet:
    """Return ranges shrunk to whole blocks: the blocks may be larger than they were."""
    found = RangeSet()
    for start, end in ranges:
        found.add(-(-start // block) * block, min(end // block * block, count))
    return found
