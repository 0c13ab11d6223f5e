"""`dmcopy snapshot`: snapshots of live devices, watched, extended, merged back and dropped."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from typing import Final

from dmcopy.cli import snapshot_show
from dmcopy.cli.options import add_progress
from dmcopy.cli.output import add_json, emit_json, emit_json_line, printable
from dmcopy.cli.parser import seconds, size
from dmcopy.cli.workflows import FORGET, code_of, emit_done, open_journal
from dmcopy.errors import ExitCode, UsageError
from dmcopy.mapper.dmsetup import ScriptDmsetup
from dmcopy.mapper.kernel import KernelMapper
from dmcopy.mapper.ledger import Ledger, NoLedger
from dmcopy.mapper.names import device_name
from dmcopy.units import format_sectors, parse_sectors, quoted
from dmcopy.workflows.nodes import Nodes, ScriptNodes
from dmcopy.workflows.snapshot import Snapshots
from dmcopy.workflows.snapshot_request import DEFAULT_CHUNK, Request

_EXAMPLES: Final = """\
examples:
  dmcopy snapshot take snap data /dev/vdc           of the mapped device data, mounted or not
  dmcopy snapshot take snap /dev/vdb cow.img        use /dev/mapper/vdb-origin from then on
  dmcopy snapshot status                            how full, in which state, what was interrupted
  dmcopy snapshot watch snap --at 80 --extend 1G    make the COW longer before it overflows
  dmcopy snapshot watch snap --at 80 --run notify-send 'snapshot is filling up'
  dmcopy snapshot extend snap +1G --with /dev/vdd
  dmcopy snapshot merge snap                        roll data back to what it was
  dmcopy snapshot drop snap                         or forget what it was
  dmcopy snapshot take snap data /dev/vdc --dry-run     the dmsetup commands
  dmcopy snapshot take snap data /dev/vdc --reuse-store     again, after a restart
  dmcopy snapshot finish snap                       go on with what was interrupted,
  dmcopy snapshot undo snap                         or take it back: 'status' says what can be
  dmcopy snapshot forget snap                       or give it up, and leave the devices as they are

Sizes are sectors of 512 bytes, or 64K, 1G …; times are seconds.

Ends with 0 when all is well, 1 for what failed (watch: when the snapshot is lost), 2 for a command
line that is wrong, 4 when status finds a snapshot lost or a record damaged, 5 when something is not
installed, 6 when a device is in use, 130 when interrupted.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verbs."""
    parser.epilog = _EXAMPLES
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    take = _changing(verbs, "take", "take a snapshot of a device that stays in use", _take)
    take.add_argument("origin", metavar="ORIGIN", help="a mapped device's name, or a path")
    take.add_argument("cow", metavar="COW", help="device or file for what changes")
    take.add_argument(
        *("-c", "--chunk-size"),
        type=size,
        default=DEFAULT_CHUNK,
        metavar="S",
        help=f"sectors, or 4K, 64K … (default: {DEFAULT_CHUNK}, 16 KiB)",
    )
    take.add_argument(
        "--store",
        type=str.upper,
        choices=("P", "PO", "N"),
        default="P",
        help="P: on disk; PO: the same, and reports Overflow; N: in memory (default: P)",
    )
    content = take.add_mutually_exclusive_group()
    content.add_argument("-f", "--force", action="store_true", help="overwrite what is on COW")
    content.add_argument(
        "--reuse-store",
        action="store_true",
        help="it was taken before a restart, and ORIGIN has not been written to since: use the "
        "store that is on COW",
    )
    extend = _changing(verbs, "extend", "make the COW of a snapshot longer", _extend)
    extend.add_argument("size", metavar="SIZE", help="its new size, or with a + how much more")
    extend.add_argument(
        "--with",
        dest="more",
        default="",
        metavar="DEV",
        help="the device or file that has the room",
    )
    extend.add_argument("-f", "--force", action="store_true", help="overwrite what is on DEV")
    merge = _changing(verbs, "merge", "roll the origin back to the snapshot", _merge)
    add_progress(merge)
    _changing(verbs, "drop", "remove a snapshot; the origin stays as it is", _drop)
    finish = _changing(verbs, "finish", "end what was interrupted", _finish)
    add_progress(finish)
    _changing(verbs, "undo", "take back what was interrupted", _undo)
    forget = verbs.add_parser("forget", help=FORGET, description=FORGET)
    forget.add_argument("name", metavar="NAME", help="the snapshot")
    add_json(forget)
    forget.set_defaults(verb=_forget, dry_run=False, timeout=30.0)
    _configure_facts(verbs)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    verb: Callable[[argparse.Namespace], int | None] = args.verb
    args.snapshots = _snapshots(args)
    return verb(args) or ExitCode.OK


def _changing(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    text: str,
    verb: Callable[[argparse.Namespace], int | None],
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=text, description=text)
    parser.add_argument("name", metavar="NAME", help="the snapshot")
    text = "print the commands of dmsetup, and change nothing"
    parser.add_argument("-t", "--dry-run", action="store_true", help=text)
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=30.0,
        metavar="S",
        help="limit of each command of dmsetup (default: 30)",
    )
    add_json(parser)
    parser.set_defaults(verb=verb)
    return parser


def _configure_facts(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    status = verbs.add_parser("status", help="how full, in which state, what was interrupted")
    status.add_argument("name", nargs="?", default="", metavar="NAME", help="default: all")
    add_json(status)
    status.set_defaults(verb=_status, dry_run=False, timeout=30.0)
    watch = verbs.add_parser("watch", help="print the fill level; act before it is too late")
    watch.add_argument("name", metavar="NAME", help="the snapshot")
    watch.add_argument("--at", type=_percent, metavar="PERCENT", help="when to act (default: 80)")
    watch.add_argument(
        "--extend", type=size, default=0, metavar="SIZE", help="make the COW longer by SIZE"
    )
    watch.add_argument(
        "--with",
        dest="more",
        default="",
        metavar="DEV",
        help="the device or file that has the room",
    )
    watch.add_argument("-f", "--force", action="store_true", help="overwrite what is on DEV")
    watch.add_argument(
        "-i",
        "--interval",
        type=seconds,
        default=1.0,
        metavar="S",
        help="between looks (default: 1)",
    )
    watch.add_argument(
        "--run",
        dest="command",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="CMD",
        help="run this, to the end of the line; DMCOPY_SNAPSHOT and DMCOPY_PERCENT are set",
    )
    watch.set_defaults(verb=_watch, dry_run=False, timeout=30.0)


def _snapshots(args: argparse.Namespace) -> Snapshots:
    if args.dry_run:
        mapper = KernelMapper(ScriptDmsetup(), ledger=NoLedger(), timeout=args.timeout)
        nodes = ScriptNodes(Ledger())
        return Snapshots(mapper, nodes=nodes, journal=open_journal(dry_run=True))
    ledger = Ledger()
    mapper = KernelMapper(ledger=ledger, timeout=args.timeout)
    return Snapshots(mapper, nodes=Nodes(ledger), journal=open_journal())


def _percent(text: str) -> float:
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = -1.0
    if not 0 < value <= 100:
        raise argparse.ArgumentTypeError(f"{quoted(text)} is not a percentage")
    return value


def _take(args: argparse.Namespace) -> None:
    mapped = args.origin.startswith("/dev/mapper/")
    origin = device_name(args.origin) if mapped else args.origin
    request = Request(
        args.name,
        origin,
        args.cow,
        args.chunk_size,
        args.store,
        force=args.force,
        reuse=args.reuse_store,
    )
    layout = args.snapshots.take(request)
    if args.dry_run:
        return
    path = args.snapshots.mapper.path
    if args.json:
        emit_json({**layout.as_dict(), "path": path(layout.name)})
        return
    when = "was when it was taken" if args.reuse_store else "is now"
    print(printable(f"{path(layout.name)} is {args.origin} as it {when}"))
    if path(layout.origin) != args.origin and layout.origin != args.origin:
        print(printable(f"use {path(layout.origin)} instead of {args.origin} from now on"))


def _extend(args: argparse.Namespace) -> None:
    more = args.size.startswith("+")
    sectors = parse_sectors(args.size.removeprefix("+"))
    if more:
        sectors += snapshot_show.total(args.snapshots, args.name)
    args.snapshots.extend(args.name, sectors, more=args.more, force=args.force)
    if args.dry_run:
        return
    if args.json:
        emit_json({"name": args.name, "total": sectors})
    else:
        print(printable(f"the COW of {args.name} has {format_sectors(sectors)} now"))


def _merge(args: argparse.Namespace) -> None:
    if args.dry_run:
        snapshot_show.script_merge(args.snapshots, args.name)
        return
    with snapshot_show.progress(args.progress) as progress:
        layout = args.snapshots.merge(args.name, progress=progress)
    if args.json:
        emit_json(layout.as_dict())
    else:
        # An origin that was not mapped is what it was before: the device made for it is gone.
        there = args.snapshots.mapper.exists(layout.origin)
        rolled_back = layout.origin if there else layout.base
        print(printable(f"{rolled_back} is what it was when {layout.name} was taken"))


def _drop(args: argparse.Namespace) -> None:
    layout = args.snapshots.drop(args.name)
    if args.dry_run:
        return
    if args.json:
        emit_json(layout.as_dict())
    else:
        print(printable(f"{layout.name} is gone"))


def _finish(args: argparse.Namespace) -> None:
    record = args.snapshots.journal.find("snapshot", args.name)
    if args.dry_run and record is not None and record.verb == "merge":
        snapshot_show.script_merge(args.snapshots, args.name)
        return
    with snapshot_show.progress(args.progress) as progress:
        record = args.snapshots.finish(args.name, progress=progress)
    _say_ended(args, record, "done")


def _undo(args: argparse.Namespace) -> None:
    _say_ended(args, args.snapshots.undo(args.name), "taken back")


def _forget(args: argparse.Namespace) -> None:
    emit_done(args, args.snapshots.forget(args.name))


def _say_ended(args: argparse.Namespace, record: object, how: str) -> None:
    if args.dry_run:
        return
    if args.json:
        emit_json({"name": args.name, "ended": how if record else "by a restart"})
    elif record is None:
        print("nothing is left of it: the machine was restarted since")
    else:
        print(printable(f"{how}: {record}"))


def _status(args: argparse.Namespace) -> int:
    from dmcopy.workflows.snapshot_status import LOST, states

    snapshots: Snapshots = args.snapshots
    found = states(snapshots.mapper, snapshots.nodes, snapshots.journal, args.name)
    if args.name and not found:
        snapshots.journal.find("snapshot", args.name)  # a record that is damaged
        raise UsageError(f"there is no snapshot {args.name!r}")
    if args.json:
        emit_json([dataclasses.asdict(state) for state in found])
    else:
        snapshot_show.emit_states(found)
    lost = any(state.state in LOST for state in found)
    return ExitCode.MISMATCH if lost else code_of(snapshots.journal)


def _watch(args: argparse.Namespace) -> int:
    from dmcopy.workflows.snapshot_watch import Threshold, watch

    threshold = None
    if args.at is not None or args.command or args.extend:
        threshold = Threshold(args.at or 80.0, tuple(args.command), args.extend, args.more)
        if args.more and not args.force:
            args.snapshots.check_more(args.name, args.more)
    last = ""
    for level in watch(args.snapshots, args.name, interval=args.interval, threshold=threshold):
        heard = emit_json_line(dataclasses.asdict(level))
        last = level.event
        if threshold is None and not heard:
            break  # it does nothing but tell
    return ExitCode.FAILED if last == "lost" else ExitCode.OK
