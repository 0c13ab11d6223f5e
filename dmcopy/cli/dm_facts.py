"""The verbs of `dmcopy dm` that only look, and what they print."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from dmcopy import __version__
from dmcopy.cli.dm_values import info_values, node_values, status_values, table_values
from dmcopy.cli.output import add_json, emit_json, emit_json_line, emit_table, printable, say
from dmcopy.errors import DeviceError
from dmcopy.mapper import tree
from dmcopy.mapper.base import DeviceInfo
from dmcopy.mapper.device import Device
from dmcopy.mapper.events import follow
from dmcopy.mapper.kernel import KernelMapper
from dmcopy.mapper.names import device_name
from dmcopy.mapper.stats import StatsRegion
from dmcopy.table import ConciseDevice, Table, format_concise
from dmcopy.units import SECTOR_SIZE, format_bytes

_P = TypeVar("_P", bound=argparse.ArgumentParser)
_COLUMNS = ["Name", "Maj", "Min", "Stat", "Open", "Targ", "Event", "UUID"]


def configure(verbs: argparse._SubParsersAction[_P]) -> None:
    """Declare the verbs."""
    ls = _looking(verbs, "ls", "list the devices", _ls)
    ls.add_argument("--tree", action="store_true", help="the same as 'dm tree'")
    ls.add_argument("--target", metavar="TYPE", help="only those with such a target")
    info = _looking(verbs, "info", "what the kernel knows of devices", _info, devices=True)
    info.add_argument("-c", "--columns", action="store_true", help="one line for each")
    status = _looking(
        verbs, "status", "the status of each line of the tables", _status, devices=True
    )
    status.add_argument("--noflush", action="store_true", help="commit no metadata for it")
    status.add_argument("--target", metavar="TYPE", help="only lines of such a target")
    table = _looking(
        verbs, "table", "the tables, as they could be loaded again", _table, devices=True
    )
    table.add_argument("--inactive", action="store_true", help="the loaded ones, not the active")
    table.add_argument("--showkeys", action="store_true", help="with the keys of crypt")
    table.add_argument("--concise", action="store_true", help="on one line, for create --concise")
    table.add_argument("--target", metavar="TYPE", help="only lines of such a target")
    _looking(verbs, "deps", "the devices that the tables use", _deps, devices=True)
    _looking(verbs, "tree", "how the devices stand on each other", _tree)
    _looking(verbs, "targets", "the targets that are loaded", _targets)
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
        return sys.stdin.read()
    # No table begins like a path: as with dmsetup, it may be either.
    return read_file(word) if word.startswith(("/", "./")) else word


def read_file(path: str) -> str:
    """Return what is in the file of a table."""
    try:
        return Path(path).read_text(errors="surrogateescape")
    except OSError as error:
        raise DeviceError(path, "read the table", error.errno or 0) from error


def seconds(text: str) -> float:
    """Return a number of seconds of the command line."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


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
    default = None if name == "events" else 30.0
    parser.add_argument(
        "--timeout", type=seconds, default=default, metavar="S", help="give up after S seconds"
    )
    add_json(parser, verb=True)
    parser.set_defaults(verb=verb)
    return parser


def _ls(args: argparse.Namespace) -> None:
    if args.tree:
        _tree(args)
        return
    found: list[DeviceInfo] = args.mapper.ls()
    if args.target:
        found = [one for one in found if _lines_of(args.mapper.table(one.name), args.target)]
    if args.json:
        emit_json([info_values(info) for info in found])
        return
    for info in found:
        print(f"{printable(info.name)}\t({info.devno})")
    if not found:
        print("No devices found")


def _infos(args: argparse.Namespace) -> list[DeviceInfo]:
    mapper: KernelMapper = args.mapper
    return [mapper.info(device_name(name)) for name in args.devices] or mapper.ls()


def _names(args: argparse.Namespace) -> list[str]:
    if args.devices:
        return [device_name(name) for name in args.devices]
    return [info.name for info in args.mapper.ls()]


def _info(args: argparse.Namespace) -> None:
    found = _infos(args)
    if args.json:
        emit_json([info_values(info) for info in found])
    elif args.columns:
        emit_table(_COLUMNS, [_columns(info) for info in found], right=_COLUMNS[1:3])
    else:
        print("\n".join(_block(info) for info in found) or "No devices found")


def _columns(info: DeviceInfo) -> list[str]:
    letters = [
        "L" if info.live else "-",
        "I" if info.inactive else "-",
        "s" if info.suspended else "-",
        "r" if info.readonly else "w",
    ]
    major, minor = info.number or ("", "")
    counts = [str(info.open_count), str(info.segments), str(info.events)]
    return [info.name, str(major), str(minor), "".join(letters), *counts, info.uuid]


def _block(info: DeviceInfo) -> str:
    tables = [name for name, there in (("LIVE", info.live), ("INACTIVE", info.inactive)) if there]
    rows = {
        "Name": printable(info.name),
        "State": ("SUSPENDED" if info.suspended else "ACTIVE")
        + (" (READ-ONLY)" if info.readonly else ""),
        "Tables present": " & ".join(tables) or "None",
        "Open count": info.open_count,
        "Event number": info.events,
        "Major, minor": ", ".join(map(str, info.number or ())),
        "Number of targets": info.segments,
        "UUID": info.uuid,
    }
    lines = [f"{key + ':':<18} {value}" for key, value in rows.items() if value != ""]
    return "\n".join(lines) + "\n"


def _status(args: argparse.Namespace) -> None:
    names = _names(args)
    found = {name: args.mapper.status(name, flush=not args.noflush) for name in names}
    chosen = {
        name: [line for line in lines if args.target in (None, line.target)]
        for name, lines in found.items()
    }
    if args.json:
        emit_json({name: list(map(status_values, lines)) for name, lines in chosen.items()})
    else:
        _emit_lines(args, chosen)


def _table(args: argparse.Namespace) -> None:
    options = {"inactive": args.inactive, "showkeys": args.showkeys}
    found: dict[str, Table] = {name: args.mapper.table(name, **options) for name in _names(args)}
    if args.concise:
        print(format_concise(_concise(args.mapper.info(name), found[name]) for name in found))
        return
    chosen = {name: _lines_of(table, args.target) for name, table in found.items()}
    if args.json:
        emit_json({name: table_values(Table(tuple(lines))) for name, lines in chosen.items()})
    else:
        _emit_lines(args, chosen)


def _concise(info: DeviceInfo, table: Table) -> ConciseDevice:
    minor = info.number[1] if info.number else None
    return ConciseDevice(info.name, table, info.uuid, minor, info.readonly)


def _lines_of(table: Table, target: str | None) -> list[Any]:
    return [line for line in table if target in (None, line.target_name)]


def _emit_lines(args: argparse.Namespace, found: dict[str, list[Any]]) -> None:
    """Print lines as dmsetup does: with the name before each, unless one device was named."""
    for name, lines in found.items():
        prefix = "" if len(args.devices) == 1 else f"{printable(name)}: "
        for line in lines or ([""] if prefix else []):
            print(printable(f"{prefix}{line}".rstrip()))
    if not found:
        print("No devices found")


def _deps(args: argparse.Namespace) -> None:
    found = {name: args.mapper.deps(name) for name in _names(args)}
    if args.json:
        emit_json(found)
        return
    for name, deps in found.items():
        prefix = "" if len(args.devices) == 1 else f"{printable(name)}: "
        pairs = "".join(f" ({number.replace(':', ', ')})" for number in deps)
        print(f"{prefix}{len(deps)} dependencies\t:{pairs}")


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
    found = args.mapper.targets()
    if args.json:
        emit_json({name: list(version) for name, version in found.items()})
        return
    for name, version in found.items():
        print(f"{name:<16} v{version}")


def _version(args: argparse.Namespace) -> None:
    text = args.mapper.dmsetup.run("version")
    values = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    if args.json:
        named = {key.split()[0].lower(): value.strip() for key, value in values.items()}
        emit_json({"dmcopy": __version__, **named})
    else:
        print(f"{text.rstrip()}\ndmcopy version:    {__version__}")


def _explain(args: argparse.Namespace) -> None:
    table = Table.parse(table_text(args.table))
    if args.json:
        emit_json(table_values(table))
        return
    for line in table:
        size = format_bytes(line.length * SECTOR_SIZE)
        place = f"sectors {line.start} to {line.end - 1} ({size})"
        print(printable(f"{place}: {line.target_name}: {line.target.describe()}"))


def _events(args: argparse.Namespace) -> None:
    if args.follow:
        started = functools.partial(say, "watching for events")
        for event in follow(args.mapper, timeout=args.timeout, started=started):
            emit_json_line(dataclasses.asdict(event))
        return
    found = {info.name: info.events for info in args.mapper.ls()}
    if args.json:
        emit_json(found)
        return
    for name, number in found.items():
        print(f"{printable(name)}: {number}")


def emit_stats(args: argparse.Namespace, device: Device, wanted: Iterable[int]) -> None:
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
