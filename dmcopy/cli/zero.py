"""`dmcopy zero`: fill devices or files with zeroes."""

from __future__ import annotations

import argparse
from typing import Final

from dmcopy.cli.options import add_options, resolve
from dmcopy.units import parse_sectors

_EXAMPLES: Final = """\
examples:
  dmcopy zero /dev/sdc                          all of it
  dmcopy zero --to 1M --count 64M disk.img      64 MiB from 1 MiB on; in a file that makes a hole

A device that can zero by itself is asked to; else zeroes are written. Exit codes are those of
'dmcopy copy'.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EXAMPLES
    parser.add_argument("dests", metavar="DST", nargs="*", help="1 to 8 devices or files to zero")
    parser.add_argument("--to", default="0", metavar="S", help="where to begin in each DST")
    add_options(parser)
    parser.set_defaults(sparse=False)


def run(args: argparse.Namespace) -> int:
    # Here and not above: the help, and what is wrong with the words, need no engine.
    from dmcopy.cli.transfers import run_transfer
    from dmcopy.transfer.opening import TransferRequest

    request = TransferRequest(
        source=None,
        dests=tuple(resolve(dest) for dest in args.dests),
        dest_start=parse_sectors(args.to),
        count=None if args.count is None else parse_sectors(args.count),
    )
    return run_transfer(request, args)
