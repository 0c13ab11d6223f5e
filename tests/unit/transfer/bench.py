"""A transfer on simulated disks."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from dmcopy.io import IoRegion, Reactor
from dmcopy.io.simulated import SimulatedBackend, SimulatedDisk
from dmcopy.kcopyd import Client
from dmcopy.ranges import RangeSet
from dmcopy.transfer import Transfer, TransferPlan, events

SECTORS = 640


class Bench:
    """A source of random data, three empty destinations, and a transfer."""

    def __init__(self, block: int = 512) -> None:
        self.source, *self.dests = (
            SimulatedDisk(SECTORS, name, logical_block_size=block)
            for name in ("source", "dest0", "dest1", "dest2")
        )
        self.source.load(random.Random(0).randbytes(SECTORS << 9))
        self.seen: list[events.TransferEvent] = []
        self.observe: events.TransferObserver = self.seen.append

    def run(
        self,
        during: Callable[[Transfer, Reactor], Any] | None = None,
        *,
        zero: bool = False,
        holes: RangeSet | None = None,
        empty: tuple[RangeSet, ...] = (),
        **how: Any,
    ) -> Transfer:
        with Reactor(SimulatedBackend(1)) as reactor:
            client = Client(64, reactor=reactor, depth=4)
            source, *dests = (IoRegion(disk, 0, SECTORS) for disk in (self.source, *self.dests))
            read = None if zero else source
            plan = TransferPlan(read, tuple(dests), 64, holes=holes, empty=empty)
            transfer = Transfer(client, plan, observer=self.observe, **how)
            if during is not None:
                during(transfer, reactor)
            transfer.run()
            client.destroy()
            return transfer

    def is_copied(self, index: int) -> bool:
        return self.dests[index].content == self.source.content

    def of(self, kind: type[events.TransferEvent]) -> list[Any]:
        return [event for event in self.seen if isinstance(event, kind)]
