"""`dmcopy copy`: copy a device or file to one or more others."""

from __future__ import annotations

import argparse
from typing import Final

from dmcopy.cli.options import add_options, resolve
from dmcopy.units import parse_sectors

_EXAMPLES: Final = """\
examples:
  dmcopy copy /dev/sdb /dev/sdc /dev/sdd backup.img     read once, write three times
  dmcopy copy --map sdb.map --on-error skip /dev/sdb rescued.img
  dmcopy copy --map d.map --trust-map /dev/sdb img      resume where GNU ddrescue ended
  dmcopy copy --from 1M --to 0 --count 64M --verify disk.img /dev/sdc

Sizes and positions are in sectors of 512 bytes, or take a suffix: 8K, 64M, 1G, 4096B. A device may
be named by UUID=, LABEL=, PARTUUID=, PARTLABEL=, ID=, SERIAL= or DM=, too. A file that is not there
yet is made.

Ends with 0 when all is well, 1 when the source or every destination failed, 2 for a command line
that is wrong, 3 when some destination or block failed and the rest is good, 4 when the verification
found a difference, 6 when something is in use, 130 when interrupted.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EXAMPLES
    parser.add_argument("source", metavar="SRC", help="the device or file to read")
    parser.add_argument("dests", metavar="DST", nargs="*", help="1 to 8 devices or files to write")
    parser.add_argument(
        "--from", dest="start", default="0", metavar="S", help="where to begin in SRC"
    )
    parser.add_argument("--to", default="0", metavar="S", help="where to begin in each DST")
    parser.add_argument(
        "--sparse", action="store_true", help="zero out runs of zeroes, or make holes"
    )
    add_options(parser)


def run(args: argparse.Namespace) -> int:
    # Here and not above: the help, and what is wrong with the words, need no engine.
    from dmcopy.cli.transfers import run_transfer
    from dmcopy.transfer.opening import TransferRequest

    request = TransferRequest(
        source=resolve(args.source),
        dests=tuple(resolve(dest) for dest in args.dests),
        source_start=parse_sectors(args.start),
        dest_start=parse_sectors(args.to),
        count=None if args.count is None else parse_sectors(args.count),
    )
    return run_transfer(request, args)
