"""`dmcopy dm`: dmsetup's verbs, with JSON, dry runs, explanations and no leftovers."""

from __future__ import annotations

import argparse
import functools
import shlex
from collections.abc import Callable
from typing import Final

from dmcopy import plugins
from dmcopy.cli import dm_changes, dm_facts, dm_run, dm_shim
from dmcopy.cli.dm_verbs import VerbParser, changing
from dmcopy.cli.dm_words import NAME, add_the_rest, as_dmsetup
from dmcopy.cli.options import add_engine, engine_of
from dmcopy.cli.output import add_json, emit_json, refuse_json, say
from dmcopy.cli.parser import seconds, whole
from dmcopy.errors import ExitCode, UsageError
from dmcopy.ledger import Ledger, NoLedger
from dmcopy.mapper.dmsetup import Dmsetup, ScriptDmsetup
from dmcopy.mapper.kernel import KernelMapper
from dmcopy.mapper.names import device_name
from dmcopy.mapper.served import ServedMapper
from dmcopy.mapper.served_script import ServedScript
from dmcopy.mapper.stats import StatsRegion, regions
from dmcopy.mapper.udev import Udev
from dmcopy.units import quoted

_EXAMPLES: Final = """\
examples:
  dmcopy dm create base --table '0 131072 linear /dev/vdb 0'
  dmcopy dm create snap --table '0 131072 snapshot /dev/vdb /dev/vdc P 8' --dry-run
  dmcopy dm explain '0 131072 snapshot /dev/vdb /dev/vdc P 3'    which word is wrong, and why
  dmcopy dm status --json                                        typed values of every device
  dmcopy dm events --follow                                      a JSON line for each event
  dmcopy dm with work --table '0 8192 linear /dev/vdb 0' -- mkfs.ext4 /dev/mapper/work
  dmcopy dm run --engine user --table '0 2048 zero' 'read 0 8'     no root, no kernel driver
  dmcopy dm reap                                                 remove what a crash left behind
"""
_CALL_SECONDS: Final = 10.0
# dmsetup's other verbs: run as they are, since there is nothing to add to them.
PASSED_ON: Final = (
    "mknodes", "measure", "setgeometry", "splitname", "mangle", "target-version",
    "udevcookies", "udevcreatecookie", "udevreleasecookie", "udevcomplete", "udevflags",
)  # fmt: skip
# Those that reach what others have made, and what to do instead.
NEVER: Final = {
    "remove_all": "would remove devices that dmcopy did not make",
    "udevcomplete_all": "would let others continue before udev is done with their devices",
}
DMSETUPS: Final = (
    "create", "load", "reload", "suspend", "resume", "wipe_table", "clear", "remove", "rename",
    "message", "wait", "ls", "info", "status", "table", "deps", "targets", "version",
)  # fmt: skip


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EXAMPLES
    add_json(parser)
    parser.set_defaults(prints_json=False)
    verbs = parser.add_subparsers(metavar="VERB", required=True, parser_class=VerbParser)
    dm_changes.configure(verbs)
    dm_run.configure(verbs)
    dm_shim.configure(verbs)
    _configure_reap(verbs)
    _configure_stats(verbs)
    dm_facts.configure(verbs)
    for verb in set(verbs.choices.values()):
        verb.add_argument(
            "--plugin", action="append", metavar="MODULE", help="import targets of your own"
        )
        if verb is not verbs.choices["run"]:
            add_engine(verb)
            verb.add_argument(
                "--call-timeout",
                type=seconds,
                metavar="S",
                help=f"limit of each command of dmsetup (default: --timeout, "
                f"but not less than {_CALL_SECONDS:g})",
            )
    for name in DMSETUPS:
        add_the_rest(verbs.choices[name])
    # What follows is without a help of its own: not in the list of verbs.
    for name in PASSED_ON:
        _other(verbs, name, _pass_on)
    for name in NEVER:
        _other(verbs, name, _never)
    _other(verbs, "help", functools.partial(_help, parser))
    for verb in set(verbs.choices.values()):
        verb.set_defaults(called=verb.prog)


def _other(
    verbs: argparse._SubParsersAction[VerbParser],
    name: str,
    verb: Callable[[argparse.Namespace], object],
) -> None:
    parser = verbs.add_parser(name)
    parser.takes_all = True
    parser.set_defaults(verb=verb, name=name, timeout=30.0)


def run(args: argparse.Namespace) -> int:
    refuse_json(args)
    args.mapper = _mapper(args)
    for module in getattr(args, "plugin", None) or ():
        plugins.load(module)
        if isinstance(args.mapper, ServedMapper):
            args.mapper.load_plugin(module)
    code: int | None = args.verb(args)
    return code or ExitCode.OK


def _mapper(args: argparse.Namespace) -> KernelMapper | ServedMapper:
    limit: float | None = getattr(args, "timeout", None)
    timeout = 30.0 if limit is None else limit
    # A short deadline is for retries and waits: a dmsetup at work is not cut short by it.
    given: float | None = getattr(args, "call_timeout", None)
    call = max(timeout, _CALL_SECONDS) if given is None else given
    if engine_of(args) == "user" and not getattr(args, "any_engine", False):
        if getattr(args, "dry_run", False):
            return ServedScript(timeout=timeout)
        return ServedMapper(timeout=timeout if given is None else given)
    udev = Udev.NONE if getattr(args, "noudevsync", False) else None
    if getattr(args, "dry_run", False):
        return KernelMapper(ScriptDmsetup(udev=udev), ledger=NoLedger(), timeout=timeout)
    ledger = Ledger()
    dmsetup = Dmsetup(udev=udev, timeout=call, ledger=ledger)
    return KernelMapper(dmsetup, ledger=ledger, timeout=timeout)


def _configure_reap(verbs: argparse._SubParsersAction[VerbParser]) -> None:
    reap = changing(verbs, "reap", "remove what ended processes left behind", _reap)
    reap.add_argument("--all", action="store_true", help="also what 'dm create' made to stay")
    reap.set_defaults(any_engine=True)
    add_json(reap, verb=True)


def _configure_stats(verbs: argparse._SubParsersAction[VerbParser]) -> None:
    parser = changing(verbs, "stats", "count the I/O to ranges of a device", _stats)
    parser.epilog = "These are regions of dmcopy's own. For the reports of dmstats: dmsetup stats."
    parser.add_argument(
        "what",
        choices=["create", "list", "print", "clear", "delete"],
        help="make a region, list or print or clear its counters, or delete it",
    )
    parser.add_argument("device", metavar="NAME", help=NAME)
    parser.add_argument("--regionid", type=int, metavar="N", help="default: all regions of dmcopy")
    parser.add_argument("--start", type=int, metavar="S", help="sector; default: the whole device")
    parser.add_argument("--length", type=int, metavar="S", help="sectors")
    parser.add_argument("--areas", type=int, default=1, metavar="N", help="divide it into N areas")
    parser.add_argument(
        "--bounds",
        type=_bounds,
        default=(),
        metavar="MS,…",
        help="bounds of latency classes, in ms",
    )
    add_json(parser, verb=True)


def _bounds(text: str) -> tuple[int, ...]:
    words = text.split(",")
    if not all(word.isascii() and word.isdigit() for word in words):
        raise argparse.ArgumentTypeError(
            f"{quoted(text)} is not a list of milliseconds, as in 1,10,100"
        )
    return tuple(map(whole, words))


def _stats(args: argparse.Namespace) -> None:
    device = args.mapper.handle(device_name(args.device))
    if args.what == "create":
        made = StatsRegion.create(
            device, args.start, args.length, areas=args.areas, histogram_ms=args.bounds
        )
        print(made.id)
        return
    listed = regions(device, "" if args.regionid is not None else "dmcopy")
    wanted = listed if args.regionid is None else {args.regionid: listed.get(args.regionid, "")}
    dm_facts.emit_stats(args, device, wanted)


def _reap(args: argparse.Namespace) -> int:
    from dmcopy.mapper.reap import Reaper

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
    if "--dry-run" in args.words:
        words = [word for word in args.words if word != "--dry-run"]
        print(shlex.join(["dmsetup", args.name, *words]))
        return
    if "--json" in args.words:
        raise UsageError(f"'dm {args.name}' prints dmsetup's own text: leave --json out")
    if isinstance(args.mapper, ServedMapper):
        print(as_dmsetup([args.name, *args.words]), end="")
    else:
        print(args.mapper.dmsetup.run(args.name, *args.words), end="")


def _never(args: argparse.Namespace) -> None:
    raise UsageError(
        f"{args.name} {NEVER[args.name]}; 'dmcopy dm reap' removes what dmcopy left behind"
    )


def _help(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Print our help, or that of a verb, or with -c dmsetup's list of the columns it knows."""
    named = [word for word in args.words if not word.startswith("-")]
    if named:
        parser.parse_args([*named, "--help"])
    if args.words and isinstance(args.mapper, ServedMapper):
        from dmcopy.shim.report import help_lines

        print("\n".join(help_lines(typed=False)))
    elif args.words:
        call = args.mapper.dmsetup.finish("info", "-c", "-o", "help")
        print(call.stdout + call.stderr, end="")
    else:
        parser.print_help()
