"""`./scripts/bench copy|snapshot|mirror|export`: measures, prints the tables, writes files."""

from __future__ import annotations

import argparse
import functools
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from dmcopy.units import parse_bytes
from tests.bench import (
    bulk,
    export,
    fan,
    machine,
    memory,
    merge,
    mirror,
    plot,
    report,
    small,
    snapshot,
)
from tests.bench.figures import Table, missed
from tests.bench.limits import compile_ring
from tests.bench.process import ROOT, BenchError
from tests.bench.settings import PLACES, Settings

TABLES = {
    "copy": ("bulk", "random", "fan", "memory"),
    "snapshot": ("first", "offline", "bystander", "snapshot-guest", "merge-guest"),
    "mirror": ("resync", "crash", "open", "mirror-guest"),
    "export": (*export.parts(), "attach"),
}
QUICK = {
    "copy": ("bulk", "random", "fan"),
    "snapshot": ("first", "offline"),
    "mirror": ("resync", "open"),
    "export": ("nbd-small", "nbd-first", "attach"),
}
MIB = 1 << 20


def main(argv: Sequence[str] | None = None) -> int:
    """Run the bench; 0 when every contender ran, 1 when dmcopy failed somewhere."""
    args = _parse(argv)
    signal.signal(signal.SIGTERM, _stop)
    args.dir.mkdir(parents=True, exist_ok=True)
    args.out.mkdir(parents=True, exist_ok=True)
    left_out: list[str] = []
    tables: list[Table] = []
    facts = machine.describe(args.dir)
    if float(facts["load before"]) > 0.5:
        print(f"dmcopy: others work here too (load {facts['load before']})", file=sys.stderr)
    try:
        with tempfile.TemporaryDirectory(prefix="dmcopy-bench-") as scratch:
            _measure(_settings(args, Path(scratch), left_out), args.only, tables, left_out)
    except KeyboardInterrupt:
        print("dmcopy: interrupted; nothing is left behind", file=sys.stderr)
        return 130
    if args.rounds < 5 and not args.quick:
        left_out.append(f"{5 - args.rounds} of the 5 rounds that a figure to quote needs")
    _write(args.out, args.verb, tables, facts, left_out)
    print(report.text(tables, facts, left_out, ratios=args.quick))
    print(f"{len(missed(tables))} targets missed; JSON, markdown and plot are in {args.out}")
    return int(any(table.failures for table in tables))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("verb", choices=TABLES, help="what to measure")
    parser.add_argument("--rounds", type=int, help="rounds of every table (default 5)")
    parser.add_argument("--size", help="size of a bulk copy (default 2G; the others use half)")
    listed = "; ".join(f"{verb}: {', '.join(names)}" for verb, names in TABLES.items())
    parser.add_argument("--only", default="", help=f"tables: all, or of {listed}")
    parser.add_argument("--on", help=f"places: {','.join(PLACES)} (export, --quick: the first)")
    parser.add_argument("--engines", default="", help="also force these back ends: uring,threads")
    parser.add_argument(
        "--quick", action="store_true", help="2 minutes: 3 rounds, the best peers, ratios"
    )
    parser.add_argument(
        "--dir", type=Path, default=Path("/var/tmp"), help="where files lie (default %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "build/bench", help="where results go (build/bench)"
    )
    args = parser.parse_args(argv)
    usual = QUICK[args.verb] if args.quick else TABLES[args.verb]
    args.only = _choice(parser, args.only, TABLES[args.verb]) or usual
    # What servers differ by is not the disk below them, which would double the time of `export`.
    places = PLACES[:1] if args.quick or args.verb == "export" else PLACES
    args.on = _choice(parser, args.on or ",".join(places), PLACES)
    args.engines = _choice(parser, args.engines, ("uring", "threads"))
    args.rounds = args.rounds or (3 if args.quick else 5)
    args.size = parse_bytes(args.size or "2G", default="B")
    if args.rounds < 1 or args.size < 8 * MIB or args.size % (2 * MIB):
        parser.error("give at least one round, and a size of 8M or more in whole 2M")
    return args


def _choice(parser: argparse.ArgumentParser, text: str, allowed: Sequence[str]) -> tuple[str, ...]:
    words = tuple(word for word in text.split(",") if word)
    if unknown := [word for word in words if word not in allowed]:
        parser.error(f"{unknown[0]} is none of {', '.join(allowed)}")
    return words


def _settings(args: argparse.Namespace, scratch: Path, left_out: list[str]) -> Settings:
    ring = None
    try:
        ring = compile_ring(scratch)
    except BenchError as error:
        left_out.append(str(error))
    return Settings(
        rounds=args.rounds,
        size=args.size,
        directory=args.dir,
        scratch=scratch,
        places=args.on,
        engines=args.engines,
        ring=ring,
        quick=args.quick,
    )


def _measure(
    settings: Settings, only: Sequence[str], tables: list[Table], left_out: list[str]
) -> None:
    """Fill `tables`; what this machine cannot do goes to `left_out`, with the reason."""
    anywhere: dict[str, Callable[[], list[Table]]] = {
        "memory": lambda: [memory.table(settings)],
        "open": lambda: mirror.opening(settings),
        "attach": lambda: export.attach(settings),
        "snapshot-guest": lambda: [snapshot.guest(settings)],
        "merge-guest": lambda: merge.guest(settings),
        "mirror-guest": lambda: [mirror.guest(settings)],
    }
    by_place: dict[str, Callable[[str], list[Table]]] = {
        "bulk": lambda place: [bulk.table(settings, place)],
        "random": lambda place: small.tables(settings, place),
        "fan": lambda place: [fan.table(settings, place)],
        "first": lambda place: snapshot.first_touch(settings, place),
        "resync": lambda place: [mirror.resync(settings, place)],
        "crash": lambda place: mirror.after_crash(settings, place),
        "offline": lambda place: snapshot.offline(settings, place),
        "bystander": lambda place: merge.bystander(settings, place),
        **{name: functools.partial(part, settings) for name, part in export.parts().items()},
    }
    for name in only:
        if name in anywhere:
            try:
                tables += anywhere[name]()
            except BenchError as error:
                left_out.append(f"{name}: {error}")
            continue
        for place in settings.places:
            try:
                tables += by_place[name](place)
            except BenchError as error:
                left_out.append(f"{name} on {place}: {error}")


def _write(
    out: Path,
    verb: str,
    tables: Sequence[Table],
    facts: dict[str, str],
    left_out: list[str],
) -> None:
    for suffix, form in (("json", report.as_json), ("md", report.markdown)):
        (out / f"{verb}.{suffix}").write_text(form(tables, facts, left_out), encoding="utf-8")
    try:
        plot.draw(tables, out / f"{verb}.png")
        if curves := mirror.curves(tables):
            plot.draw_curves(curves, mirror.AXES, out / f"{verb}.svg")
    except BenchError as error:
        left_out.append(str(error))


def _stop(_number: int, _frame: FrameType | None) -> None:
    """Being told to stop is like Ctrl-C: disks are taken apart on the way out."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
