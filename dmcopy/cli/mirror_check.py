"""`dmcopy mirror check`: compare the legs of a mirror, and say what the log knew."""

from __future__ import annotations

import argparse
import contextlib
from typing import Any, Final

from dmcopy.block import BlockDevice
from dmcopy.cli.options import add_progress, resolve
from dmcopy.cli.output import add_json, emit_json, printable, say
from dmcopy.cli.parser import size
from dmcopy.cli.progress import make_renderer
from dmcopy.cli.signals import interrupting
from dmcopy.errors import ExitCode
from dmcopy.io.reactor import Reactor
from dmcopy.io.region import IoRegion
from dmcopy.mirror.check import LegComparison, MirrorReport, guess_region_size
from dmcopy.mirror.logfile import read_log
from dmcopy.ranges import RangeSet
from dmcopy.table.mirror import REGION_SIZE
from dmcopy.units import format_sectors

_EXAMPLES: Final = """\
examples:
  dmcopy mirror check /dev/sdb /dev/sdc                     do the two agree?
  dmcopy mirror check /dev/sdb /dev/sdc --log /dev/sdd      and does the log know where not?
  dmcopy mirror check a.img b.img c.img --region-size 512K --json

Only reads; a mirror that is in use should be suspended, or what is being written will differ.
Without --region-size it is the one that fits the log, else 2 MiB.

Ends with 0 when the legs agree, or differ only in regions that the log calls dirty, which the next
resync copies; with 4 when they differ in a region that the log calls clean, or differ and there is
no log; with 3 when a part of a leg cannot be read and the rest is good; with 130 when interrupted.
"""


def configure_check(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EXAMPLES
    parser.add_argument("legs", metavar="LEG", nargs="+", help="2 to 9 devices or files")
    parser.add_argument("--log", metavar="LOG", help="the mirror's log device, or a copy of it")
    parser.add_argument(
        "-R",
        "--region-size",
        type=size,
        metavar="S",
        help=f"of the mirror's table (default: {format_sectors(REGION_SIZE)})",
    )
    parser.add_argument(
        "--count", type=size, metavar="N", help="compare N of each leg (default: all of it)"
    )
    add_json(parser, verb=True)
    add_progress(parser)


def run_check(args: argparse.Namespace) -> int:
    """Compare, print what differs, and return the exit code."""
    log = read_log(resolve(args.log)) if args.log else None
    with contextlib.ExitStack() as stack:
        devices = [stack.enter_context(BlockDevice.open(resolve(leg))) for leg in args.legs]
        legs = [
            IoRegion(one, 0, one.sectors if args.count is None else args.count) for one in devices
        ]
        if args.region_size is not None:
            region_size = args.region_size
        elif log is not None:
            region_size = guess_region_size(legs[0].count, log)
        else:
            region_size = REGION_SIZE
        renderer = stack.enter_context(contextlib.closing(make_renderer(args.progress)))
        reactor = stack.enter_context(Reactor())
        comparison = LegComparison(reactor, legs, region_size, log=log, observe=renderer.show)
        with interrupting(comparison):
            report = comparison.run()
    if getattr(args, "json", False):
        emit_json(_values(report, args.legs))
    else:
        _print(report, args.legs)
    return exit_code(report)


def exit_code(report: MirrorReport) -> ExitCode:
    """Return how a check ends that found this."""
    if report.interrupted:
        return ExitCode.INTERRUPTED
    if report.unknown:
        return ExitCode.MISMATCH
    return ExitCode.OK if report.is_readable else ExitCode.PARTIAL


def _values(report: MirrorReport, legs: list[str]) -> dict[str, Any]:
    return {
        "interrupted": report.interrupted,
        "regions": report.regions,
        "region_size": report.region_size,
        "differing": report.differing.total(),
        "unknown_to_log": list(report.unknown) if report.log else None,
        "known_to_log": list(report.known) if report.log else None,
        "legs": [
            {
                "path": leg,
                "differs_from_first": list(report.by_leg[number - 1]) if number else [],
                "unreadable": list(report.unreadable[number]),
            }
            for number, leg in enumerate(legs)
        ],
    }


def _print(report: MirrorReport, legs: list[str]) -> None:
    size = format_sectors(report.region_size)
    for number, leg in enumerate(legs):
        for first, end in report.unreadable[number]:
            print(f"{printable(leg)}: {_regions(first, end)}: cannot be read")
    if report.log is None:
        _print_ranges(report.differing, "the legs differ")
    else:
        _print_ranges(report.unknown, "the legs differ, and the log calls it clean")
        _print_ranges(report.known, "the legs differ, and the log knows")
    for number, ranges in enumerate(report.by_leg, 1):
        if len(legs) > 2 and ranges:
            say(f"{printable(legs[number])}: {ranges.total()} regions differ from the first leg")
    if report.interrupted:
        say("dmcopy: interrupted; what was not compared may differ, too")
    say(f"{report.differing.total()} of {report.regions} regions of {size} differ")


def _print_ranges(ranges: RangeSet, what: str) -> None:
    for first, end in ranges:
        print(f"{_regions(first, end)}: {what}")


def _regions(first: int, end: int) -> str:
    return f"region {first}" if end == first + 1 else f"regions {first} to {end - 1}"
