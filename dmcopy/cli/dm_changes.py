"""The verbs of `dmcopy dm` that make, change and remove devices."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import subprocess
import sys
from dataclasses import replace

from dmcopy.cli.dm_facts import read_file, read_input, table_text
from dmcopy.cli.dm_verbs import VerbParser, changing
from dmcopy.cli.dm_words import (
    NAME,
    add_address,
    add_selection,
    addressed,
    chosen,
    print_report,
    shift,
    tell_more,
)
from dmcopy.cli.output import add_json, emit_json, say
from dmcopy.cli.parser import seconds
from dmcopy.errors import ExitCode, UsageError
from dmcopy.mapper.kernel import KernelMapper
from dmcopy.mapper.names import unmangle
from dmcopy.mapper.served import ServedMapper
from dmcopy.shim.tables import split_message
from dmcopy.table import Error, Table, parse_concise
from dmcopy.units import parse_count


def configure(verbs: argparse._SubParsersAction[VerbParser]) -> None:
    _configure_making(verbs)
    _configure_states(verbs)
    _configure_talking(verbs)


def _configure_making(verbs: argparse._SubParsersAction[VerbParser]) -> None:
    create = changing(verbs, "create", "make a device", _create)
    create.add_argument("device", nargs="?", metavar="NAME", help="what to call it")
    _add_table(create)
    create.add_argument("-u", "--uuid", default="", help="default: none, as with dmsetup")
    create.add_argument("-m", "--minor", type=int, help="the minor number to take")
    create.add_argument("-n", "--notable", action="store_true", help="without a table")
    text = "devices as name,uuid,minor,ro|rw,table;... instead of NAME (default: stdin)"
    create.add_argument("--concise", action="store_true", help=text)

    load = changing(verbs, "load", "load a table beside the active one", _load, aliases=("reload",))
    load.add_argument("device", nargs="?", metavar="NAME", help=NAME)
    _add_table(load)
    add_address(load)

    text = "make a device, run the command after --, remove the device"
    keeping = changing(verbs, "with", text, _with)
    keeping.add_argument("device", metavar="NAME", help="what to call it")
    _add_table(keeping)
    keeping.takes_command = True


def _add_table(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", nargs="?", metavar="FILE", help="a table (default: stdin)")
    parser.add_argument("--table", metavar="TABLE", help="the table itself")
    parser.add_argument("-r", "--readonly", action="store_true", help="not to be written to")


def _configure_states(verbs: argparse._SubParsersAction[VerbParser]) -> None:
    for name, text, verb in (
        ("suspend", "hold new I/O and wait for what is in flight", _suspend),
        ("resume", "let I/O continue, with the loaded table if there is one", _resume),
        ("wipe_table", "replace the table with one that fails all I/O", _wipe),
    ):
        parser = changing(verbs, name, text, verb)
        _add_devices(parser)
        parser.add_argument("--noflush", action="store_true", help="do not send queued I/O down")
        parser.add_argument("--nolockfs", action="store_true", help="do not freeze a file system")
    clear = changing(verbs, "clear", "drop the table that is loaded and not active", _clear)
    _add_devices(clear)
    remove = changing(verbs, "remove", "remove devices; one that is busy is waited for", _remove)
    _add_devices(remove)
    text = "make all I/O fail first, and for good: also if it cannot be removed in the end"
    remove.add_argument("-f", "--force", action="store_true", help=text)
    remove.add_argument("--deferred", action="store_true", help="at the last close, if it is open")
    remove.add_argument("--retry", action="store_true", help="accepted; it always does")
    rename = changing(verbs, "rename", "give a device another name, or a UUID", _rename)
    rename.add_argument("--setuuid", action="store_true", help="NEW is a UUID")
    rename.add_argument("device", metavar="NAME", help=NAME)
    rename.add_argument("new", nargs="?", metavar="NEW", help="its new name, or its UUID")
    add_address(rename)


def _add_devices(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("devices", nargs="*", metavar="NAME", help=NAME)
    add_address(parser)
    add_selection(parser)


def _configure_talking(verbs: argparse._SubParsersAction[VerbParser]) -> None:
    message = changing(verbs, "message", "send words to a target", _message)
    message.add_argument("device", metavar="NAME", help=NAME)
    message.add_argument("sector", metavar="SECTOR", help="of the target; 0 if there is only one")
    message.add_argument("words", nargs="*", type=str, metavar="WORD", help="split at white space")
    add_address(message)
    wait = verbs.add_parser("wait", help="wait for an event")
    wait.add_argument("device", nargs="?", metavar="NAME", help=NAME)
    wait.add_argument(
        "event", nargs="?", metavar="EVENT", help="the number to wait past (default: 0)"
    )
    add_address(wait)
    wait.add_argument(
        "-v", "--verbose", action="store_true", help="print what is known of the device after that"
    )
    wait.add_argument(
        "--timeout", type=seconds, default=1e6, metavar="S", help="give up after S seconds"
    )
    add_json(wait, verb=True)
    wait.set_defaults(verb=_wait)


def _create(args: argparse.Namespace) -> None:
    mapper: KernelMapper | ServedMapper = args.mapper
    mapper.uuid_prefix = ""  # a device of a person's own: 'rename --setuuid' works once only
    if args.concise:
        if args.file or args.table or args.notable or args.uuid or args.minor is not None:
            raise UsageError("--concise says everything itself: leave the other options out")
        text = read_input() if args.device in (None, "-") else args.device
        devices = [replace(one, name=unmangle(one.name)) for one in parse_concise(text)]
        if not devices:
            raise UsageError("there is no device in it: write name,uuid,minor,ro|rw,table;...")
        mapper.create_all(devices, keep=True)
        for one in devices:
            tell_more(args, one.name)
        return
    if args.device is None:
        raise UsageError("say what to call the device: dmcopy dm create NAME")
    name = unmangle(args.device)
    table = None if args.notable else _table(args)
    mapper.create(
        name,
        table,
        uuid=args.uuid,
        readonly=args.readonly,
        minor=args.minor,
        keep=True,
    )
    tell_more(args, name)


def _load(args: argparse.Namespace) -> None:
    shift(args, "device", "file")
    (name,) = chosen(args)
    args.mapper.load(name, _table(args), readonly=args.readonly)
    tell_more(args, name)


def _table(args: argparse.Namespace) -> Table:
    """Return the table of --table, of a file, or of standard input."""
    if args.table is not None:
        text = table_text(args.table)
    elif args.file not in (None, "-"):
        text = read_file(args.file)
    else:
        if sys.stdin.isatty():
            say("reading the table from the terminal; end it with Ctrl-D")
        text = read_input()
    table = Table.parse(text)
    if not table.lines:
        raise UsageError("the table has no lines: write start, length, target and its words")
    return table


def _suspend(args: argparse.Namespace) -> None:
    for name in chosen(args):
        args.mapper.suspend(name, flush=not args.noflush, lockfs=not args.nolockfs)
        tell_more(args, name)


def _resume(args: argparse.Namespace) -> None:
    for name in chosen(args):
        args.mapper.resume(name, flush=not args.noflush, lockfs=not args.nolockfs)
        tell_more(args, name)


def _wipe(args: argparse.Namespace) -> None:
    for name in chosen(args):
        length = args.mapper.table(name).length
        table = Table.of(length, Error())
        args.mapper.swap(name, table, flush=not args.noflush, lockfs=not args.nolockfs)


def _clear(args: argparse.Namespace) -> None:
    for name in chosen(args):
        args.mapper.clear(name)
        tell_more(args, name)


def _remove(args: argparse.Namespace) -> None:
    for name in chosen(args):
        args.mapper.remove(name, deferred=args.deferred, force=args.force, timeout=args.timeout)


def _rename(args: argparse.Namespace) -> None:
    shift(args, "device", "new")
    (name,) = chosen(args)
    if args.new is None:
        raise UsageError("say the new name: dmcopy dm rename NAME NEW")
    if args.setuuid:
        args.mapper.set_uuid(name, args.new)
    else:
        args.mapper.rename(name, unmangle(args.new))


def _message(args: argparse.Namespace) -> None:
    if addressed(args):
        args.device, args.sector, args.words = None, args.device, [args.sector, *args.words]
    (name,) = chosen(args)
    if not args.sector.isdecimal():
        raise UsageError(f"{args.sector!r} is not a sector: dmcopy dm message NAME SECTOR WORD...")
    # As dmsetup does, which joins them all, and the kernel, which splits them.
    split = split_message(" ".join(args.words))
    if not split:
        raise UsageError("say what to send: dmcopy dm message NAME SECTOR WORD...")
    answer = args.mapper.message(name, *split, sector=parse_count(args.sector))
    if answer:
        print(answer)


def _wait(args: argparse.Namespace) -> None:
    shift(args, "device", "event")
    (name,) = chosen(args)
    if args.event is None:
        since = 0  # as dmsetup: it returns immediately if there has been any event
    elif args.event.isdecimal():
        since = parse_count(args.event)
    else:
        raise UsageError(f"{args.event!r} is not the number of an event")
    number = args.mapper.wait(name, since, timeout=args.timeout)
    if args.json:
        emit_json({"device": name, "event": number})
    elif args.verbose:
        print_report(args.mapper, ["info"], [name])


def _with(args: argparse.Namespace) -> int:
    command: list[str] = args.command
    if not command:
        raise UsageError("say what to run: dmcopy dm with NAME --table TABLE -- CMD")
    mapper: KernelMapper | ServedMapper = args.mapper
    mapper.prefix = ""  # the command says the name that the device was given here
    with mapper.device(args.device, _table(args), readonly=args.readonly) as device:
        if args.dry_run:
            print(shlex.join(command))
            return ExitCode.OK
        env = {**os.environ, "DMCOPY_DEVICE": device.path}
        with contextlib.suppress(KeyboardInterrupt):  # it got the Ctrl-C too: wait for its end
            return subprocess.run(command, env=env, check=False).returncode
        return ExitCode.INTERRUPTED
