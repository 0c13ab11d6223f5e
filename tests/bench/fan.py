"""One source to three destinations: dmcopy beside dd in turn and a C ring that reads once."""

from __future__ import annotations

import functools

from tests.bench import peers
from tests.bench.figures import Table, Target, Unit
from tests.bench.limits import ring_argv
from tests.bench.rounds import Contender, measure, whole_copy_verified
from tests.bench.settings import Settings

UNIT = Unit("MB/s of source", "CPU s/GiB")
PIECE = peers.MIB
DEPTH = 8
DESTS = 3
IN_TURN = "dd, three in turn"


def table(settings: Settings, place: str) -> Table:
    """Measure one place; the targets are for RAM loops, a disk is shown beside them."""
    size = settings.size // 2  # four disks of it, where a pair needs two
    with settings.disks(place, size, DESTS) as disks:
        made = Table(f"fan-{place}", f"1→3, 1 MiB pieces, {disks.place}", UNIT)
        check = whole_copy_verified(disks)
        contenders = []
        for io in (None, *settings.engines):
            ours = [peers.dmcopy(disks.source, disks.dests, io=io)]
            name = f"dmcopy {io}" if io else "dmcopy"
            contenders.append(Contender(name, functools.partial(peers.copied, ours, size), check))
        in_turn = [peers.dd(disks.source, dest) for dest in disks.dests]
        contenders.append(Contender(IN_TURN, functools.partial(peers.copied, in_turn, size), check))
        if settings.ring:
            words = ring_argv(
                settings.ring,
                disks.source,
                disks.dests,
                block=PIECE,
                depth=DEPTH,
                count=size // PIECE,
            )
            work = functools.partial(peers.copied, [words], size)
            contenders.append(Contender("C ring", work, check))
        if place == "loops":
            made.targets = (
                Target("of three runs of dd in turn", "dmcopy", 2.5, (IN_TURN,)),
                Target("of a C ring that reads once", "dmcopy", 1.1, ("C ring",)),
            )
        return measure(made, contenders, disks, settings.rounds)
