"""`dmcopy dm`: dmsetup's verbs, with JSON, dry runs, explanations and no leftovers."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from dmcopy.cli import dm_facts
from dmcopy.cli.output import add_json, emit_json, say
from dmcopy.cli.parser import Parser
from dmcopy.errors import DeviceError, ExitCode, UsageError
from dmcopy.mapper.dmsetup import Dmsetup, ScriptDmsetup
from dmcopy.mapper.kernel import KernelMapper
from dmcopy.mapper.ledger import Ledger, NoLedger
from dmcopy.mapper.names import device_name
from dmcopy.mapper.reap import Reaper
from dmcopy.mapper.stats import StatsRegion, regions
from dmcopy.mapper.udev import Udev
from dmcopy.table import Error, Table, parse_concise

_EXAMPLES: Final = """\
examples:
  dmcopy dm create base --table '0 131072 linear /dev/vdb 0'
  dmcopy dm create snap --table '0 131072 snapshot /dev/vdb /dev/vdc P 8' --dry-run
  dmcopy dm explain '0 131072 snapshot /dev/vdb /dev/vdc P 3'    which word is wrong, and why
  dmcopy dm status --json                                        typed values of every device
  dmcopy dm events --follow                                      a JSON line for each event
  dmcopy dm run work --table '0 8192 linear /dev/vdb 0' -- mkfs.ext4 /dev/mapper/work
  dmcopy dm reap                                                 remove what a crash left behind
"""


# dmsetup's other verbs: run as they are, since there is nothing to add to them.
PASSED_ON: Final = (
    *("mknodes", "measure", "setgeometry", "splitname", "mangle", "target-version"),
    *("udevcookies", "udevcreatecookie", "udevreleasecookie", "udevcomplete", "udevflags"),
)


class _VerbParser(Parser):
    """A verb's parser; one with `takes_command` leaves what follows `--` alone, `takes_all` all.

    argparse has no way to say this: a REMAINDER swallows the options between a name and the `--`.
    """

    takes_command = False
    takes_all = False

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        """Parse what is before the `--`; what follows is `command`."""
        words = list(args or [])
        if self.takes_all:
            found, _ = Parser.parse_known_args(self, [], namespace)
            found.words = words
            return found, []
        cut = words.index("--") if self.takes_command and "--" in words else len(words)
        found, unknown = Parser.parse_known_args(self, words[:cut], namespace)
        if self.takes_command:
            found.command = words[cut + 1 :]
        return found, unknown


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verbs."""
    parser.epilog = _EXAMPLES
    add_json(parser)
    verbs = parser.add_subparsers(metavar="VERB", required=True, parser_class=_VerbParser)
    _configure_making(verbs)
    _configure_states(verbs)
    _configure_talking(verbs)
    _configure_stats(verbs)
    dm_facts.configure(verbs)
    for name in PASSED_ON:
        passing = verbs.add_parser(name, help=argparse.SUPPRESS)
        passing.takes_all = True
        passing.set_defaults(verb=_pass_on, name=name, timeout=30.0)
    never = verbs.add_parser("remove_all", help=argparse.SUPPRESS)
    never.set_defaults(verb=_never, dry_run=False, timeout=30.0)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    args.mapper = _mapper(args)
    code: int | None = args.verb(args)
    return code or ExitCode.OK


def _mapper(args: argparse.Namespace) -> KernelMapper:
    timeout: float = 30.0 if args.timeout is None else args.timeout
    udev = Udev.NONE if getattr(args, "noudevsync", False) else None
    if getattr(args, "dry_run", False):
        return KernelMapper(ScriptDmsetup(udev=udev), ledger=NoLedger(), timeout=timeout)
    return KernelMapper(Dmsetup(udev=udev, timeout=timeout), ledger=Ledger(), timeout=timeout)


def _changing(
    verbs: argparse._SubParsersAction[_VerbParser],
    name: str,
    text: str,
    verb: Callable[[argparse.Namespace], object],
    *,
    aliases: tuple[str, ...] = (),
) -> _VerbParser:
    parser = verbs.add_parser(name, help=text, description=text, aliases=aliases)
    parser.add_argument(
        "--dry-run", action="store_true", help="print the dmsetup commands, and change nothing"
    )
    parser.add_argument(
        "--timeout",
        type=dm_facts.seconds,
        default=30.0,
        metavar="S",
        help="give up after S seconds",
    )
    parser.add_argument(
        "--noudevsync", action="store_true", help="do not wait until udev has made the node"
    )
    parser.set_defaults(verb=verb)
    return parser


def _configure_making(verbs: argparse._SubParsersAction[_VerbParser]) -> None:
    create = _changing(verbs, "create", "make a device", _create)
    create.add_argument("device", nargs="?", metavar="NAME")
    _add_table(create)
    create.add_argument("-u", "--uuid", default="", help="default: one that begins with DMCOPY-")
    create.add_argument("-m", "--minor", type=int, help="the minor number to take")
    create.add_argument("-n", "--notable", action="store_true", help="without a table")
    create.add_argument(
        "--concise", metavar="SPEC", help="devices as name,uuid,minor,ro|rw,table;... (- for stdin)"
    )

    load = _changing(
        verbs, "load", "load a table beside the active one", _load, aliases=("reload",)
    )
    load.add_argument("device", metavar="NAME")
    _add_table(load)

    text = "make a device, run the command after --, remove the device"
    keeping = _changing(verbs, "run", text, _run)
    keeping.add_argument("device", metavar="NAME")
    _add_table(keeping)
    keeping.takes_command = True

    reap = _changing(verbs, "reap", "remove what ended processes left behind", _reap)
    reap.add_argument("--all", action="store_true", help="also what 'dm create' made to stay")
    add_json(reap, verb=True)


def _add_table(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", nargs="?", metavar="FILE", help="a table (default: stdin)")
    parser.add_argument("--table", metavar="TABLE", help="the table itself")
    parser.add_argument("-r", "--readonly", action="store_true")


def _configure_states(verbs: argparse._SubParsersAction[_VerbParser]) -> None:
    for name, text, verb in (
        ("suspend", "hold new I/O and wait for what is in flight", _suspend),
        ("resume", "let I/O go on, with the loaded table if there is one", _resume),
        ("wipe_table", "replace the table with one that fails all I/O", _wipe),
    ):
        parser = _changing(verbs, name, text, verb)
        parser.add_argument("devices", nargs="+", metavar="NAME")
        parser.add_argument("--noflush", action="store_true", help="do not send queued I/O down")
        parser.add_argument("--nolockfs", action="store_true", help="do not freeze a file system")
    clear = _changing(verbs, "clear", "drop the table that is loaded and not active", _clear)
    clear.add_argument("devices", nargs="+", metavar="NAME")
    remove = _changing(verbs, "remove", "remove devices; one that is busy is waited for", _remove)
    remove.add_argument("devices", nargs="+", metavar="NAME")
    remove.add_argument("-f", "--force", action="store_true", help="make all I/O fail first")
    remove.add_argument("--deferred", action="store_true", help="at the last close, if it is open")
    remove.add_argument("--retry", action="store_true", help="accepted; it always does")
    rename = _changing(verbs, "rename", "give a device another name, or a UUID", _rename)
    rename.add_argument("--setuuid", action="store_true", help="NEW is a UUID")
    rename.add_argument("device", metavar="NAME")
    rename.add_argument("new", metavar="NEW")


def _configure_talking(verbs: argparse._SubParsersAction[_VerbParser]) -> None:
    message = _changing(verbs, "message", "send words to a target", _message)
    message.add_argument("device", metavar="NAME")
    message.add_argument("sector", type=int, metavar="SECTOR")
    message.add_argument("words", nargs="+", metavar="WORD")
    wait = verbs.add_parser("wait", help="wait for an event")
    wait.add_argument("device", metavar="NAME")
    wait.add_argument("event", type=int, nargs="?", help="the number to wait past (default: now)")
    wait.add_argument("--noflush", action="store_true", help="accepted: no status is printed")
    wait.add_argument(
        "--timeout", type=dm_facts.seconds, default=1e6, metavar="S", help="give up after S seconds"
    )
    add_json(wait, verb=True)
    wait.set_defaults(verb=_wait)


def _configure_stats(verbs: argparse._SubParsersAction[_VerbParser]) -> None:
    parser = _changing(verbs, "stats", "count the I/O to ranges of a device", _stats)
    parser.add_argument("what", choices=["create", "list", "print", "clear", "delete"])
    parser.add_argument("device", metavar="NAME")
    parser.add_argument("--regionid", type=int, metavar="N", help="default: all regions of dmcopy")
    parser.add_argument("--start", type=int, metavar="S", help="sector; default: the whole device")
    parser.add_argument("--length", type=int, metavar="S", help="sectors")
    parser.add_argument("--areas", type=int, default=1, metavar="N", help="divide it into N areas")
    parser.add_argument("--bounds", default="", metavar="MS,…", help="latency classes, in ms")
    add_json(parser, verb=True)


def _create(args: argparse.Namespace) -> None:
    mapper: KernelMapper = args.mapper
    if args.concise is not None:
        if args.device or args.table or args.notable or args.uuid or args.minor is not None:
            raise UsageError("--concise says everything itself: leave the other options out")
        text = sys.stdin.read() if args.concise == "-" else args.concise
        mapper.create_all(list(parse_concise(text)), keep=True)
        return
    if args.device is None:
        raise UsageError("say what to call the device: dmcopy dm create NAME")
    table = None if args.notable else _table(args)
    mapper.create(
        args.device,
        table,
        uuid=args.uuid,
        readonly=args.readonly,
        minor=args.minor,
        keep=True,
    )


def _load(args: argparse.Namespace) -> None:
    args.mapper.load(device_name(args.device), _table(args), readonly=args.readonly)


def _table(args: argparse.Namespace) -> Table:
    """Return the table of --table, of a file, or of standard input."""
    if args.table is not None:
        # As with dmsetup, --table may name a file; no table is a path.
        path = args.table if args.table.startswith(("/", "./")) else None
        text = args.table
    else:
        path = None if args.file in (None, "-") else args.file
        if path is None:
            if sys.stdin.isatty():
                say("reading the table from the terminal; end it with Ctrl-D")
            text = sys.stdin.read()
    if path is not None:
        try:
            text = Path(path).read_text(errors="surrogateescape")
        except OSError as error:
            raise DeviceError(path, "read the table", error.errno or 0) from error
    table = Table.parse(text)
    if not table.lines:
        raise UsageError("the table has no lines: write start, length, target and its words")
    return table


def _suspend(args: argparse.Namespace) -> None:
    for name in map(device_name, args.devices):
        args.mapper.suspend(name, flush=not args.noflush, lockfs=not args.nolockfs)


def _resume(args: argparse.Namespace) -> None:
    for name in map(device_name, args.devices):
        args.mapper.resume(name, flush=not args.noflush, lockfs=not args.nolockfs)


def _wipe(args: argparse.Namespace) -> None:
    for name in map(device_name, args.devices):
        length = args.mapper.table(name).length
        table = Table.of(length, Error())
        args.mapper.swap(name, table, flush=not args.noflush, lockfs=not args.nolockfs)


def _clear(args: argparse.Namespace) -> None:
    for name in map(device_name, args.devices):
        args.mapper.clear(name)


def _remove(args: argparse.Namespace) -> None:
    for name in map(device_name, args.devices):
        args.mapper.remove(name, deferred=args.deferred, force=args.force, timeout=args.timeout)


def _rename(args: argparse.Namespace) -> None:
    change = args.mapper.set_uuid if args.setuuid else args.mapper.rename
    change(device_name(args.device), args.new)


def _message(args: argparse.Namespace) -> None:
    answer = args.mapper.message(device_name(args.device), *args.words, sector=args.sector)
    if answer:
        print(answer)


def _wait(args: argparse.Namespace) -> None:
    name = device_name(args.device)
    since = args.mapper.info(name).events if args.event is None else args.event
    number = args.mapper.wait(name, since, timeout=args.timeout)
    if args.json:
        emit_json({"device": name, "event": number})


def _run(args: argparse.Namespace) -> int:
    command: list[str] = args.command
    if not command:
        raise UsageError("say what to run: dmcopy dm run NAME --table TABLE -- CMD")
    mapper: KernelMapper = args.mapper
    mapper.prefix = ""  # the command says the name that the device was given here
    with mapper.device(args.device, _table(args), readonly=args.readonly) as device:
        if args.dry_run:
            print(shlex.join(command))
            return ExitCode.OK
        env = {**os.environ, "DMCOPY_DEVICE": device.path}
        with contextlib.suppress(KeyboardInterrupt):  # it got the Ctrl-C too: wait for its end
            return subprocess.run(command, env=env, check=False).returncode
        return ExitCode.INTERRUPTED


def _stats(args: argparse.Namespace) -> None:
    device = args.mapper.handle(device_name(args.device))
    if args.what == "create":
        bounds = tuple(int(word) for word in args.bounds.split(",") if word)
        made = StatsRegion.create(
            device, args.start, args.length, areas=args.areas, histogram_ms=bounds
        )
        print(made.id)
        return
    listed = regions(device, "" if args.regionid is not None else "dmcopy")
    wanted = listed if args.regionid is None else {args.regionid: listed.get(args.regionid, "")}
    dm_facts.emit_stats(args, device, wanted)


def _reap(args: argparse.Namespace) -> int:
    ledger = Ledger() if args.dry_run else args.mapper.ledger
    chosen = {"wanted": lambda entry: entry.keep or entry.abandoned} if args.all else {}
    reaper = Reaper(args.mapper, ledger, **chosen)
    if args.dry_run:
        for line in reaper.script():
            print(line)
        return ExitCode.OK
    result = reaper.run()
    if args.json:
        emit_json(
            {
                "removed": [[entry.kind, entry.name] for entry in result.removed],
                "gone_already": [[entry.kind, entry.name] for entry in result.vanished],
                "left": result.left,
            }
        )
    else:
        for entry in result.removed:
            print(f"removed {entry.kind} {entry.name}")
    for why in result.left.values():
        say(f"dmcopy: left: {why}")
    return ExitCode.BUSY if result.left else ExitCode.OK


def _pass_on(args: argparse.Namespace) -> None:
    print(args.mapper.dmsetup.run(args.name, *args.words), end="")


def _never(args: argparse.Namespace) -> None:
    del args
    raise UsageError(
        "remove_all would remove devices that dmcopy did not make; 'dmcopy dm reap' removes those "
        "that it did"
    )
