"""Whole disks, one to one, in pieces of 1 MiB: dmcopy beside every peer, fio as the limit.

Whole commands are timed, so dmcopy's figures hold the start of the interpreter; a note says what
that is. fio's does not hold fio's start-up, which makes the limit the stricter one.
"""

from __future__ import annotations

import functools

from tests.bench import peers
from tests.bench.disks import Disks, loops_are_direct
from tests.bench.figures import Metric, Run, Table, Target, Unit, spread
from tests.bench.limits import ring_argv
from tests.bench.process import BenchError, run
from tests.bench.rounds import Contender, measure, whole_copy_verified
from tests.bench.settings import Settings

UNIT = Unit("MB/s", "CPU s/GiB")
PIECE = peers.MIB
DEPTH = 8


def table(settings: Settings, place: str) -> Table:
    """Measure one place, `loops` or `files`."""
    with settings.disks(place, settings.size, 1) as disks:
        made = Table(f"bulk-{place}", f"1→1, 1 MiB pieces, {disks.place}", UNIT)
        contenders = [
            *_ours(settings, disks),
            *_peers(settings, made, disks),
            *_limits(settings, made, disks),
        ]
        made.targets = _targets([contender.name for contender in contenders])
        _note_start_up(made, disks)
        if place == "loops" and not loops_are_direct(disks):
            made.notes.append("this kernel's loop devices do no direct I/O here: data is cached")
        return measure(made, contenders, disks, settings.rounds)


def _ours(settings: Settings, disks: Disks) -> list[Contender]:
    check = whole_copy_verified(disks)
    engines: tuple[str | None, ...] = (None, *settings.engines)
    return [
        Contender(
            f"dmcopy {io}" if io else "dmcopy",
            functools.partial(
                peers.copied, [peers.dmcopy(disks.source, disks.dests, io=io)], disks.size
            ),
            check,
        )
        for io in engines
    ]


def _peers(settings: Settings, made: Table, disks: Disks) -> list[Contender]:
    contenders = []
    for peer in peers.PEERS[: peers.QUICK if settings.quick else None]:
        if not peers.present(peer.program):
            made.notes.append(f"{peer.name} is left out: install {peer.package}")
            continue
        argv = peer.argv(disks.source, disks.dests[0])
        work = functools.partial(peers.copied, [argv], disks.size)
        contenders.append(Contender(peer.name, work, whole_copy_verified(disks)))
    return contenders


def _limits(settings: Settings, made: Table, disks: Disks) -> list[Contender]:
    contenders = []
    if peers.present("fio"):
        work = functools.partial(peers.fio, disks.source, disks.dests[0], disks.size)
        contenders.append(Contender("fio", work))
    else:
        made.notes.append("fio, the limit, is left out: install fio")
    if settings.ring:
        argv = ring_argv(
            settings.ring,
            disks.source,
            disks.dests,
            block=PIECE,
            depth=DEPTH,
            count=disks.size // PIECE,
        )
        whole = functools.partial(peers.copied, [argv], disks.size)
        contenders.append(Contender("C ring", whole, whole_copy_verified(disks)))
    return contenders


def _targets(names: list[str]) -> tuple[Target, ...]:
    others = tuple(peer.name for peer in peers.PEERS if peer.name in names)
    return (
        Target("of the best peer's speed", "dmcopy", 1.1, others),
        Target("of fio's speed for the same mix", "dmcopy", 0.95, ("fio",)),
        Target("of dd's speed", "dmcopy", 1.5, ("dd",)),
        Target("of qemu-img's CPU per GiB", "dmcopy", 0.9, ("qemu-img",), Metric.CPU, at_most=True),
    )


def _note_start_up(made: Table, disks: Disks) -> None:
    """Say what a copy of a single piece takes: that much of every figure is not copying."""
    argv = peers.dmcopy(disks.source, disks.dests, count=PIECE)
    try:
        runs = [Run(run(argv).seconds) for _ in range(5)]
    except BenchError:
        return  # the copies themselves will say why
    start_up = spread([one.value for one in runs])
    if start_up:
        made.notes.append(f"dmcopy's copy of one piece takes {start_up.median:.2f} s")
