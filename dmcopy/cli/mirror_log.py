"""`dmcopy mirror-log`: look at the disk log of a mirror, the kernel's or ours."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, Final

from dmcopy.cli.options import resolve
from dmcopy.cli.output import add_json, emit_json, printable, say
from dmcopy.errors import ExitCode
from dmcopy.units import format_bytes

if TYPE_CHECKING:
    from dmcopy.ondisk.mirror_log import MirrorLog

_EXAMPLES: Final = """\
examples:
  dmcopy mirror-log info /dev/sdd               regions, and how many of them are clean
  dmcopy mirror-log dump --json /dev/sdd        the number of each dirty region
  dmcopy mirror-log check --regions 128 log.img

Only reads. A clean region is one in which the legs agree; a dirty one was being written, or has not
been copied yet, and is copied at the next resume.

Ends with 0 for a sound log and with 4 for one that is damaged or that contradicts itself, with the
byte named.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EXAMPLES
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    info = verbs.add_parser("info", help="what the log is for, and how much of it is clean")
    info.set_defaults(verb=_info)
    dump = verbs.add_parser("dump", help="list the dirty regions")
    dump.set_defaults(verb=_dump)
    check = verbs.add_parser("check", help="look for what no kernel would write")
    check.add_argument(
        "--regions", type=int, metavar="N", help="how many regions the mirror has that it is for"
    )
    check.set_defaults(verb=_check)
    for verb in (info, dump, check):
        verb.add_argument("log", metavar="LOG", help="the log device, or a copy of it")
        add_json(verb, verb=True)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    code: int = args.verb(args)
    return code


def _info(args: argparse.Namespace) -> int:
    from dmcopy.mirror.logfile import read_log

    log = read_log(resolve(args.log))
    values = _values(log)
    if args.json:
        emit_json(values)
        return ExitCode.OK
    percent = 100 * values["clean"] / log.nr_regions if log.nr_regions else 100
    print(f"version:  {log.version}")
    print(f"regions:  {log.nr_regions}")
    print(f"clean:    {values['clean']} ({percent:.4g}%)")
    print(f"dirty:    {values['dirty']}")
    print(f"size:     {format_bytes(values['size_bytes'])}")
    return ExitCode.OK


def _values(log: MirrorLog) -> dict[str, Any]:
    from dmcopy.ondisk.mirror_log import log_bytes

    clean = log.clean.count()
    return {
        "version": log.version,
        "nr_regions": log.nr_regions,
        "clean": clean,
        "dirty": log.nr_regions - clean,
        "size_bytes": log_bytes(log.nr_regions),
    }


def _dump(args: argparse.Namespace) -> int:
    from dmcopy.mirror.logfile import read_log

    log = read_log(resolve(args.log))
    if args.json:
        values = _values(log)
        del values["size_bytes"]
        emit_json(values | {"dirty": list(log.dirty())})
        return ExitCode.OK
    for first, end in log.clean.zero_ranges():
        print(f"{first}" if end == first + 1 else f"{first}-{end - 1}")
    return ExitCode.OK


def _check(args: argparse.Namespace) -> int:
    from dmcopy.mirror.logfile import check_room, open_log, read_log_bytes
    from dmcopy.ondisk.mirror_log import MirrorLog, findings

    path = resolve(args.log)
    with open_log(path) as device:
        data = read_log_bytes(device)
        log = MirrorLog.parse(data, path)
        found = findings(data, path)
        if (room := check_room(log, device)) != "":
            found.append(room)
    if args.regions is not None and args.regions != log.nr_regions:
        found.append(
            f"{path}: byte 8: the log is for {log.nr_regions} regions, not {args.regions}: a "
            "mirror that is given it takes the missing ones for dirty and forgets the surplus"
        )
    if args.json:
        emit_json({**_values(log), "findings": found})
    else:
        for sentence in found:
            print(printable(sentence))
        if not found:
            say(f"{printable(path)}: sound, {log.nr_regions} regions")
    return ExitCode.MISMATCH if found else ExitCode.OK
