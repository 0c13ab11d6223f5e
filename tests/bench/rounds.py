"""The heart of the harness: every round runs every contender, each round in another order."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.disks import Disks, compare, scrub, settle
from tests.bench.figures import TWIN, Run, Table, rotated
from tests.bench.process import BenchError


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to do a table's work. `verify` runs after its first round; None: nothing to check."""

    name: str
    run: Callable[[], Run]
    verify: Callable[[], None] | None = None


def measure(
    table: Table, contenders: Sequence[Contender], disks: Disks | None, rounds: int
) -> Table:
    """Run all contenders `rounds` times, interleaved, and put their runs into `table`.

    A contender that fails is not run again, and the table says why. Where contenders are compared,
    the first one has a twin: what the two differ by is the machine's.
    """
    by_name = {contender.name: contender for contender in contenders}
    if any(target.against for target in table.targets):
        first = contenders[0]
        by_name[first.name + TWIN] = Contender(first.name + TWIN, first.run)
    table.rounds = {name: [] for name in by_name}
    for turn in range(rounds):
        _say(f"{table.title}: round {turn + 1} of {rounds}")
        for name in rotated(list(by_name), turn):
            table.rounds[name].append(_once(table, by_name[name], disks, first=turn == 0))
    return table


def _once(table: Table, contender: Contender, disks: Disks | None, first: bool) -> Run | None:
    if contender.name in table.failures:
        return None
    try:
        if disks is not None:
            if first and contender.verify:
                scrub(disks.dests, disks.size)
            settle([disks.source, *disks.dests])
        run = contender.run()
        if first and contender.verify:
            contender.verify()
    except BenchError as error:
        table.failures[contender.name] = str(error)
        _say(f"  {contender.name}: {error}")
        return None
    _say(f"  {contender.name}: {run.value:.{table.unit.digits}f} {table.unit.value}")
    return run


def whole_copy_verified(disks: Disks) -> Callable[[], None]:
    """Return a check that every destination equals the source."""

    def check() -> None:
        dests: list[Path] = list(disks.dests)
        settle([disks.source, *dests])
        compare(disks.source, dests)

    return check


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
