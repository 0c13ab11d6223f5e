"""`dmcopy cow info`, `dump` and `check`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any, Final

from dmcopy.cli import cow_operands
from dmcopy.cli.options import resolve
from dmcopy.cli.output import add_json, emit_json, printable, say
from dmcopy.cli.parser import size
from dmcopy.errors import ExitCode
from dmcopy.units import format_sectors

if TYPE_CHECKING:
    from dmcopy.block import BlockDevice

_COW: Final = "the COW device, or a copy of it"


def configure(verbs: argparse._SubParsersAction[Any]) -> None:
    info = verbs.add_parser("info", help="the header, and how full the store is")
    info.set_defaults(verb=_info)
    dump = verbs.add_parser("dump", help="list the exceptions: old chunk, new chunk")
    dump.set_defaults(verb=_dump)
    check = verbs.add_parser("check", help="look for what no kernel would have written")
    check.add_argument("--origin", metavar="O", help="look for chunks past the end of O, too")
    check.add_argument(
        "-c",
        "--chunk-size",
        type=size,
        metavar="S",
        help="expect chunks of S sectors, as the table says",
    )
    check.set_defaults(verb=_check)
    cow_operands.add(check, cow=_COW)
    for verb in (info, dump):
        verb.add_argument("cow", metavar="COW", help=_COW)
    for verb in (info, dump, check):
        add_json(verb)


def _info(args: argparse.Namespace) -> int:
    from dmcopy.cow.info import gather
    from dmcopy.cow.store import Store, open_cow, read_header

    with open_cow(resolve(args.cow)) as device:
        header = read_header(device)
        if header is None:
            return _info_of_none(device, as_json=args.json)
        info = gather(Store(device, header))
    if args.json:
        emit_json(info.as_dict())
        return ExitCode.OK
    print(f"valid:       {'yes' if info.valid else 'no: the snapshot is lost'}")
    print(f"version:     {info.version}")
    print(f"chunk size:  {format_sectors(info.chunk_size)}")
    print(f"exceptions:  {info.exceptions}")
    print(f"areas:       {info.areas}")
    print(f"allocated:   {format_sectors(info.allocated)} ({info.percent:.4g}%)")
    print(f"metadata:    {format_sectors(info.metadata)}")
    print(f"total:       {format_sectors(info.total)}")
    print(f"status:      {info.status}")
    return ExitCode.OK


def _info_of_none(device: BlockDevice, *, as_json: bool) -> int:
    if as_json:
        emit_json({"valid": None, "total_sectors": device.sectors})
    else:
        print(f"no store yet: the kernel would begin one ({format_sectors(device.sectors)})")
    return ExitCode.OK


def _dump(args: argparse.Namespace) -> int:
    """Print as it is read: a store may be larger than the memory."""
    from dmcopy.cow.store import Store, open_cow, read_header

    with open_cow(resolve(args.cow)) as device:
        header = read_header(device)
        if header is None:
            say(f"{printable(device.path)}: there is no store yet")
        pieces = Store(device, header).entries() if header else iter(())
        if not args.json:
            for entries in pieces:
                pairs = zip(entries.olds, entries.news, strict=True)
                sys.stdout.write("".join(f"{old} {new}\n" for old, new in pairs))
            return ExitCode.OK
        import json

        facts = header._asdict() if header else dict.fromkeys(("valid", "version", "chunk_size"))
        sys.stdout.write(f'{json.dumps(facts)[:-1]}, "exceptions": [')
        before = "\n"
        for entries in pieces:
            pairs = zip(entries.olds, entries.news, strict=True)
            sys.stdout.write(before + ",\n".join(f"[{old}, {new}]" for old, new in pairs))
            before = ",\n"
        sys.stdout.write("]}\n")
    return ExitCode.OK


def _check(args: argparse.Namespace) -> int:
    from dmcopy.block import BlockDevice
    from dmcopy.cow.check import check
    from dmcopy.cow.store import open_cow

    cow_operands.settle(args, "cow")
    origin_sectors = None
    if args.origin:
        with BlockDevice.open(resolve(args.origin)) as origin:
            origin_sectors = origin.sectors
    with open_cow(resolve(args.cow)) as device:
        report = check(device, origin_sectors=origin_sectors, chunk_size=args.chunk_size)
    if args.json:
        listed = [problem._asdict() for problem in report.problems]
        emit_json(
            {
                "valid": report.valid,
                "consistent": not report.errors,
                "errors": report.errors,
                "notes": report.notes,
                "problems": listed,
            }
        )
    else:
        for problem in report.problems:
            print(f"{'error' if problem.is_error else 'note'}: {problem}")
        if (more := report.errors + report.notes - len(report.problems)) > 0:
            say(f"and {more} more")
        path = printable(args.cow)
        found = f"{report.errors} error{'s' * (report.errors > 1)}"
        say(f"{path}: {found}" if report.errors else f"{path}: consistent")
    return ExitCode.MISMATCH if report.errors else ExitCode.OK
