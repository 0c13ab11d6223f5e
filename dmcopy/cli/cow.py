"""`dmcopy cow`: exception stores of dm-snapshot, the kernel's or ours, while nothing uses them."""

from __future__ import annotations

import argparse
from typing import Final

from dmcopy.cli import cow_changes, cow_facts, cow_pictures

_EXAMPLES: Final = """\
examples:
  dmcopy cow info /dev/vg/snap-cow                        how full, in the kernel's own numbers
  dmcopy cow dump cow.img                                 chunk of the origin, chunk of the COW
  dmcopy cow check --origin /dev/sdb cow.img              everything that is wrong, with its byte
  dmcopy cow extract --origin /dev/sdb --cow cow.img snapshot.img
  dmcopy cow merge /dev/sdb cow.img                       roll the origin back; may be interrupted
  dmcopy cow diff --origin /dev/sdb cow.img               which chunks really changed
  dmcopy cow map cow.img --svg changed.svg

Only merge writes to a COW. Chunks are numbered as in the store, and are as large as its header
says; sizes and positions are in sectors of 512 bytes.

Ends with 0 when all is well, 4 for a store that is damaged or contradicts itself, with the byte
named, 5 when something is not installed, 6 when something is in use, 130 when interrupted.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EXAMPLES
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    cow_facts.configure(verbs)
    cow_changes.configure(verbs)
    cow_pictures.configure(verbs)


def run(args: argparse.Namespace) -> int:
    code: int = args.verb(args)
    return code
