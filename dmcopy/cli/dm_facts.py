"""The verbs of `dmcopy dm` that only look, and what they print."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterable
from typing import Any, Final, TextIO, TypeVar

from dmcopy import __version__
from dmcopy.cli.dm_values import info_values, node_values, status_values, table_values
from dmcopy.cli.dm_words import (
    add_address,
    add_flags,
    add_selection,
    add_value,
    addressed,
    chosen,
    report,
)
from dmcopy.cli.output import add_json, emit_json, emit_json_line, printable, say
from dmcopy.cli.parser import seconds
from dmcopy.errors import DeviceError, UsageError
from dmcopy.mapper import tree
from dmcopy.mapper.base import DmInfo
from dmcopy.mapper.device import DmDevice
from dmcopy.mapper.events import follow
from dmcopy.mapper.served import ServedMapper
from dmcopy.mapper.stats import StatsRegion
from dmcopy.table import Table, TableLine
from dmcopy.units import SECTOR_SIZE, format_bytes

_P = TypeVar("_P", bound=argparse.ArgumentParser)

TABLE_CHARACTERS: Final = 64 << 20
"""The most that the file of a table may have; one of a million lines has less."""


def configure(verbs: argparse._SubParsersAction[_P]) -> None:
    """Declare the verbs. For a verb of dmsetup's it prints the same; JSON is ours."""
    ls = _looking(verbs, "ls", "list the devices", _ls)
    add_flags(ls, "--tree", typed=True, help="how they stand on each other")
    add_value(ls, "--target", typed=True, metavar="TYPE", help="only those with such a target")
    add_value(ls, "-o", "--options", metavar="OPTION,…", help="devno, devname or blkdevname")
    info = _looking(verbs, "info", "what the kernel knows of devices", _info, devices=True)
    _configure_report(info)
    status = _looking(
        verbs, "status", "the status of each line of the tables", _status, devices=True
    )
    add_flags(status, "--noflush", typed=True, help="commit no metadata for it")
    table = _looking(
        verbs, "table", "the tables, as they could be loaded again", _table, devices=True
    )
    add_flags(table, "--inactive", typed=True, help="the loaded ones, not the active")
    add_flags(table, "--showkeys", typed=True, help="with the keys of crypt and integrity")
    add_flags(table, "--concise", help="on one line, for create --concise")
    for parser in (status, table):
        add_value(
            parser, "--target", typed=True, metavar="TYPE", help="only lines of such a target"
        )
    add_flags(status, "--inactive", help="of the loaded tables, not of the active")
    deps = _looking(verbs, "deps", "the devices that the tables use", _deps, devices=True)
    add_value(deps, "-o", "--options", metavar="OPTION", help="devno, devname or blkdevname")
    add_flags(deps, "--inactive", help="of the loaded tables, not of the active")
    _looking(verbs, "targets", "the targets that are loaded", _targets)
    for parser in (ls, info, status, table, deps):
        add_flags(parser, "-v", "--verbose", help="say more, as dmsetup does")
    _configure_ours(verbs)


def _configure_report(info: argparse.ArgumentParser) -> None:
    add_flags(info, "-c", "-C", "--columns", help="one line for each")
    add_value(info, "-o", "--options", metavar="FIELD,…", help="which columns; 'help' lists them")
    add_value(info, "-O", "--sort", metavar="FIELD,…", help="by which columns; -FIELD: backwards")
    add_value(info, "--separator", metavar="TEXT", help="what to put between columns")
    for name in ("noheadings", "nameprefixes", "rows", "unquoted", "noopencount", "inactive"):
        add_flags(info, f"--{name}", help="as in dmsetup")


def _configure_ours(verbs: argparse._SubParsersAction[_P]) -> None:
    _looking(verbs, "tree", "how the devices stand on each other", _tree)
    _looking(verbs, "version", "the versions of dmsetup and of the driver", _version)
    explain = _looking(verbs, "explain", "say what a table does, or which word is wrong", _explain)
    explain.add_argument(
        "table", metavar="TABLE", help="a table, a file that begins with / or ./, or -"
    )
    events = _looking(verbs, "events", "the event number of each device", _events)
    events.add_argument(
        "--follow", action="store_true", help="a JSON line for each event from now on"
    )


def table_text(word: str) -> str:
    """Return the table that a word of the command line is, or names: as a file, or - for stdin."""
    if word == "-":
        return read_input()
    # No table begins like a path: as with dmsetup, it may be either.
    return read_file(word) if word.startswith(("/", "./")) else word


def read_file(path: str) -> str:
    """Return what is in the file of a table."""
    try:
        with open(path, errors="surrogateescape") as file:
            return _read_whole(file, path)
    except OSError as error:
        raise DeviceError(path, "read the table", error.errno or 0) from error


def read_input() -> str:
    """Return what standard input has: a table, or several devices."""
    return _read_whole(sys.stdin, "standard input")


def _read_whole(file: TextIO, name: str) -> str:
    """Read to the end, which /dev/zero does not have: no signal would end that, only the memory."""
    text = file.read(TABLE_CHARACTERS + 1)
    if len(text) > TABLE_CHARACTERS:
        raise UsageError(f"{name} is no table: it has more than {TABLE_CHARACTERS >> 20} MiB")
    return text


def _looking(
    verbs: argparse._SubParsersAction[_P],
    name: str,
    text: str,
    verb: Callable[[argparse.Namespace], object],
    *,
    devices: bool = False,
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=text, description=text)
    if devices:
        parser.add_argument("devices", nargs="*", metavar="NAME", help="default: all")
        add_address(parser)
        add_selection(parser)
    default = None if name == "events" else 30.0
    parser.add_argument(
        "--timeout", type=seconds, default=default, metavar="S", help="give up after S seconds"
    )
    add_json(parser, verb=True)
    parser.set_defaults(verb=verb)
    return parser


def _some(args: argparse.Namespace) -> bool:
    """Return whether some devices were named; otherwise one call asks for all."""
    return bool(args.devices or addressed(args) or args.select is not None)


def _infos(args: argparse.Namespace) -> list[DmInfo]:
    found = {info.name: info for info in args.mapper.ls()}
    names = chosen(args) if _some(args) else list(found)
    return [found.get(name) or args.mapper.info(name) for name in names]


def _typed(args: argparse.Namespace) -> bool:
    """Return whether to print JSON. Raises UsageError for options that only dmsetup's text has."""
    option = getattr(args, "untyped", None)
    if args.json and option is not None:
        raise UsageError(f"{option} is for dmsetup's text: --json has everything, leave it out")
    return bool(args.json)


def _ls(args: argparse.Namespace) -> None:
    if not _typed(args):
        report(args, "ls")
    elif args.tree:
        _tree(args)
    else:
        found: list[DmInfo] = args.mapper.ls()
        if args.target:
            tables = args.mapper.tables()
            found = [one for one in found if _lines_of(tables.get(one.name, ()), args.target)]
        emit_json([info_values(info) for info in found])


def _info(args: argparse.Namespace) -> None:
    if _typed(args):
        emit_json([info_values(info) for info in _infos(args)])
        return
    if args.select is not None and not args.columns:
        raise UsageError("dmsetup info heeds -S only with -c: add it")
    report(args, "info")


def _status(args: argparse.Namespace) -> None:
    if not _typed(args):
        report(args, "status")
        return
    flush = not args.noflush
    if _some(args):
        found = {name: args.mapper.status(name, flush=flush) for name in chosen(args)}
    else:
        found = args.mapper.statuses(flush=flush)
    emit_json(
        {
            name: [status_values(line) for line in lines if args.target in (None, line.target)]
            for name, lines in found.items()
        }
    )


def _table(args: argparse.Namespace) -> None:
    if not _typed(args):
        report(args, "table")
        return
    options = {"inactive": args.inactive, "showkeys": args.showkeys}
    found: dict[str, Table]
    if _some(args):
        found = {name: args.mapper.table(name, **options) for name in chosen(args)}
    else:
        found = args.mapper.tables(**options)
    emit_json(
        {
            name: table_values(Table(tuple(_lines_of(table, args.target))))
            for name, table in found.items()
        }
    )


def _lines_of(table: Iterable[TableLine], target: str | None) -> list[Any]:
    return [line for line in table if target in (None, line.target_name)]


def _deps(args: argparse.Namespace) -> None:
    if _typed(args):
        some = _some(args)
        deps = {name: args.mapper.deps(name) for name in chosen(args)} if some else None
        emit_json(args.mapper.all_deps() if deps is None else deps)
    else:
        report(args, "deps")


def _tree(args: argparse.Namespace) -> None:
    nodes = tree.tree(tree.with_deps(args.mapper))
    if args.json:
        emit_json([node_values(node) for node in nodes])
        return
    for line in tree.draw(nodes):
        print(printable(line))
    if not nodes:
        print("No devices found")


def _targets(args: argparse.Namespace) -> None:
    if args.json:
        emit_json({name: list(version) for name, version in args.mapper.targets().items()})
    else:
        report(args, "targets")


def _version(args: argparse.Namespace) -> None:
    if isinstance(args.mapper, ServedMapper):
        if args.json:
            emit_json({"dmcopy": __version__, "engine": "user"})
        else:
            report(args, "version")
        return
    text = args.mapper.dmsetup.run("version")
    values = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    if args.json:
        named = {key.split()[0].lower(): value.strip() for key, value in values.items()}
        emit_json({"dmcopy": __version__, **named})
    else:
        print(text, end="")


def _explain(args: argparse.Namespace) -> None:
    table = Table.parse(table_text(args.table))
    if not table.lines:
        raise UsageError("the table has no lines: write start, length, target and its words")
    if args.json:
        emit_json(table_values(table))
        _refuse_unknown(table)
        return
    for line in table:
        size = format_bytes(line.length * SECTOR_SIZE)
        place = f"sectors {line.start} to {line.end - 1} ({size})"
        print(printable(f"{place}: {line.target_name}: {line.target.describe()}"))
    _refuse_unknown(table)


def _refuse_unknown(table: Table) -> None:
    """Raise UsageError for the first word of the table that dmcopy cannot explain."""
    for line in table:
        if line.target.unknown:
            raise UsageError(f"unknown {line.target.unknown}")


def _events(args: argparse.Namespace) -> None:
    if args.follow:
        started = functools.partial(say, "watching for events")
        for event in follow(args.mapper, timeout=args.timeout, started=started):
            if not emit_json_line(dataclasses.asdict(event)):
                break  # the reader has gone
        return
    found = {info.name: info.events for info in args.mapper.ls()}
    if args.json:
        emit_json(found)
        return
    for name, number in found.items():
        print(f"{printable(name)}: {number}")


def emit_stats(args: argparse.Namespace, device: DmDevice, wanted: Iterable[int]) -> None:
    """Do `stats list|print|clear|delete` for these regions and print what comes of it."""
    found: dict[int, Any] = {}
    for number in wanted:
        region = StatsRegion(device, number)
        if args.what == "delete":
            region.delete()
        else:
            areas = region.read(clear=args.what == "clear")
            found[number] = [dataclasses.asdict(area) for area in areas]
    if args.what not in ("list", "print"):
        return
    if args.json:
        emit_json(found)
        return
    for number, areas in found.items():
        for area in areas:
            place = f"{number}: {area['start']}+{area['length']}"
            counts = f"{area['reads']} reads, {area['sectors_read']} sectors"
            print(f"{place}: {counts}; {area['writes']} writes, {area['sectors_written']} sectors")
