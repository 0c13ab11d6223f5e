"""The arguments that commands share which move data; the engine is not imported for them."""

from __future__ import annotations

import argparse
import os
from typing import Final

from dmcopy.cli.output import add_json
from dmcopy.cli.parser import whole
from dmcopy.errors import UsageError
from dmcopy.units import MAX_COUNT, parse_bytes, quoted

_ENGINES: Final = ("kernel", "user")
_PROGRESS: Final = ("auto", "bar", "plain", "json", "none")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options that every transfer has."""
    parser.add_argument(
        "--count", metavar="N", help="how much to write (default: all of the source or device)"
    )
    parser.add_argument("--verify", action="store_true", help="read back and compare")
    parser.add_argument(
        "--on-error",
        choices=("stop", "skip"),
        default="stop",
        help="stop: end at the first error, of one destination there alone; skip: leave out "
        "exactly the blocks that cannot be read or written (default: stop)",
    )
    parser.add_argument(
        "--map",
        metavar="FILE",
        help="keep a map of what is done in FILE, in ddrescue's format; the next run resumes there",
    )
    parser.add_argument(
        "--map-interval",
        type=float,
        default=1.0,
        metavar="S",
        help="flush and save the map every S seconds (default: 1)",
    )
    parser.add_argument(
        "--trust-map",
        action="store_true",
        help="believe that every DST has what the map calls done: for a map of GNU ddrescue's, "
        "and where dmcopy cannot tell whether a DST is the one that was written to",
    )
    parser.add_argument("--retry", action="store_true", help="with --map: try its bad blocks again")
    parser.add_argument("--dry-run", action="store_true", help="check and say what would be done")
    _add_tuning(parser)
    add_json(parser)
    add_progress(parser)


def add_engine(parser: argparse._ActionsContainer) -> None:
    """Declare the choice of an engine; `engine_of` tells what it comes to."""
    parser.add_argument(
        "--engine",
        choices=_ENGINES,
        help="dm in the kernel, or dmcopy's own in userspace (default: $DMCOPY_ENGINE, or kernel)",
    )


def engine_of(args: argparse.Namespace) -> str:
    """Return the name of the engine that was chosen."""
    found: str = (
        args.engine if getattr(args, "engine", None) else os.environ.get("DMCOPY_ENGINE", "")
    )
    if found and found not in _ENGINES:
        raise UsageError(f"DMCOPY_ENGINE is {found!r}: it can be {' or '.join(_ENGINES)}")
    return found or "kernel"


def add_progress(parser: argparse.ArgumentParser) -> None:
    """Declare how progress is shown."""
    parser.add_argument(
        "--progress",
        choices=_PROGRESS,
        default="auto",
        metavar="HOW",
        help="auto (a bar on a terminal, lines elsewhere), bar, plain, json (lines), none",
    )


def _add_tuning(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("tuning")
    group.add_argument(
        "--pages",
        type=int,
        metavar="N",
        help="memory for data, in pages of 4096 bytes (default: as depth and piece need)",
    )
    group.add_argument("--depth", type=int, metavar="N", help="requests in flight (default: 8)")
    group.add_argument("--piece", metavar="SIZE", help="size of one request (default: 1M)")
    group.add_argument(
        "--throttle",
        type=int,
        default=100,
        metavar="PERCENT",
        help="keep the devices busy at most this share of the time (default: 100)",
    )
    add_limit(group)
    group.add_argument(
        "--io",
        choices=("uring", "threads"),
        help="how the kernel is asked (default: the quicker one that works)",
    )


def add_limit(parser: argparse._ActionsContainer) -> None:
    """Declare the option that keeps devices free for others."""
    parser.add_argument(
        "--limit",
        type=_rate,
        default=0,
        metavar="RATE",
        help="copy at most RATE bytes a second: 500K, 10M",
    )


def _rate(text: str) -> int:
    try:
        rate = parse_bytes(text.removesuffix("/s"), default="b")
    except UsageError:
        rate = 0
    if rate < 1:
        raise argparse.ArgumentTypeError(
            f"{quoted(text)} is not a number of bytes a second: 500K, 10M"
        )
    return rate


def seeds_range(text: str) -> range:
    """Parse what --seeds says, for argparse."""
    first, _, last = text.partition("-")
    last = last or first
    known = first.isdecimal() and last.isdecimal()
    if not known or not whole(first) <= whole(last) < MAX_COUNT:  # so that they can be counted
        raise argparse.ArgumentTypeError(
            f"{quoted(text)} is no range of seeds, such as 0-999, or one"
        )
    return range(whole(first), whole(last) + 1)


def resolve(name: str) -> str:
    """Return the node that UUID=, LABEL= or another tag names; any other name is a path."""
    if "=" not in name or os.path.exists(name):
        return name
    from dmcopy.block.discovery import find, split_tag

    return find(name).node if split_tag(name)[0] else name
