"""`dmcopy snapshot`: snapshots of live devices, watched, extended, merged back and dropped."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Final

from dmcopy.cli import snapshot_show
from dmcopy.cli.output import add_json, emit_json, emit_json_line, printable
from dmcopy.cli.parser import seconds, size
from dmcopy.cli.progress import following
from dmcopy.cli.workflows import (
    add_change,
    add_forget,
    add_timeout,
    add_verb,
    code_of,
    open_journal,
    open_session,
    run,
)
from dmcopy.errors import ExitCode, UsageError
from dmcopy.mapper.names import device_name
from dmcopy.mapper.served import ServedMapper
from dmcopy.units import format_sectors, quoted
from dmcopy.workflows.record import Plan
from dmcopy.workflows.session import Ended, Session
from dmcopy.workflows.snapshot import (
    Growth,
    check_more,
    merge,
    plan_drop,
    plan_extend,
    plan_take,
)
from dmcopy.workflows.snapshot_layout import SnapshotLayout
from dmcopy.workflows.snapshot_take import DEFAULT_CHUNK

__all__ = ["configure", "run"]

_SIZE: Final = "+1G adds 1 GiB; 1G is the size in all"
_ROOM: Final = "the device or file that has the room"
_EXAMPLES: Final = """\
examples:
  dmcopy snapshot take snap data /dev/vdc           of the mapped device data, mounted or not
  dmcopy snapshot take snap /dev/vdb cow.img        use /dev/mapper/vdb-origin from then on
  dmcopy snapshot status                            how full, in which state, what was interrupted
  dmcopy snapshot watch snap --at 80 --extend +1G   make the COW longer before it overflows
  dmcopy snapshot watch snap --at 80 --run notify-send 'snapshot is filling up'
  dmcopy snapshot extend snap +1G --with /dev/vdd
  dmcopy snapshot merge snap                        roll data back to what it was
  dmcopy snapshot drop snap                         or forget what it was
  dmcopy snapshot take snap data /dev/vdc --dry-run     the dmsetup commands
  dmcopy snapshot take snap data /dev/vdc --reuse-store     again, after a restart
  dmcopy snapshot finish snap                       end what was interrupted,
  dmcopy snapshot undo snap                         or take it back: 'status' says what can be
  dmcopy snapshot forget snap                       or give it up, and leave the devices as they are

Sizes are sectors of 512 bytes, or 64K, 1G …; times are seconds.

Ends with 0 when all is well, 1 for what failed (watch: when the snapshot is lost), 2 for a command
line that is wrong, 4 when status finds a snapshot lost or a record damaged, 5 when something is not
installed, 6 when a device is in use, 130 when interrupted.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EXAMPLES
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    take = add_change(verbs, "take", "take a snapshot of a device that stays in use", _take)
    take.add_argument("name", metavar="NAME", help="the snapshot")
    take.add_argument("origin", metavar="ORIGIN", help="a mapped device's name, or a path")
    take.add_argument("cow", metavar="COW", help="device or file for what changes")
    take.add_argument(
        "-c",
        "--chunk-size",
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
    extend = add_change(verbs, "extend", "make the COW of a snapshot longer", _extend)
    extend.add_argument("name", metavar="NAME", help="the snapshot")
    extend.add_argument("size", type=_growth, metavar="SIZE", help=_SIZE)
    extend.add_argument("--with", dest="more", default="", metavar="DEV", help=_ROOM)
    extend.add_argument("-f", "--force", action="store_true", help="overwrite what is on DEV")
    roll_back = add_change(verbs, "merge", "roll the origin back to the snapshot", _merge)
    drop = add_change(verbs, "drop", "remove a snapshot; the origin stays as it is", _drop)
    finish = add_change(verbs, "finish", "end what was interrupted", _finish)
    undo = add_change(verbs, "undo", "take back what was interrupted", _undo)
    for parser in (roll_back, drop, finish, undo):
        parser.add_argument("name", metavar="NAME", help="the snapshot")
    for parser in (roll_back, finish):
        add_timeout(parser, "merge")
    add_forget(verbs, "snapshot")
    _configure_facts(verbs)


def _configure_facts(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    status = add_verb(verbs, "status", "how full, in which state, what was interrupted", _status)
    status.add_argument("name", nargs="?", default="", metavar="NAME", help="default: all")
    add_json(status)
    watch = add_verb(verbs, "watch", "print the fill level; act before it is too late", _watch)
    watch.add_argument("name", metavar="NAME", help="the snapshot")
    watch.add_argument("--at", type=_percent, metavar="PERCENT", help="when to act (default: 80)")
    watch.add_argument(
        "--extend", type=_growth, metavar="SIZE", help=f"make the COW longer: {_SIZE}"
    )
    watch.add_argument("--with", dest="more", default="", metavar="DEV", help=_ROOM)
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


def _growth(text: str) -> Growth:
    more = text.startswith("+")
    return Growth(size(text.removeprefix("+")), more)


def _percent(text: str) -> float:
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = -1.0
    if not 0 < value <= 100:
        raise argparse.ArgumentTypeError(f"{quoted(text)} is not a percentage")
    return value


def _take(args: argparse.Namespace) -> None:
    if isinstance(args.mapper, ServedMapper):
        origin = args.mapper.named(args.origin)
    else:
        mapped = args.origin.startswith("/dev/mapper/")
        origin = device_name(args.origin) if mapped else args.origin
    session = open_session(args)
    session.check_free(args.name, origin)
    how = {"chunk_size": args.chunk_size, "store": args.store}
    how |= {"force": args.force, "reuse": args.reuse_store}
    layout = _run_plan(session, plan_take(args.mapper, args.name, origin, args.cow, **how))
    if session.trial:
        return
    path = args.mapper.path
    if args.json:
        emit_json({**dataclasses.asdict(layout), "path": path(layout.name)})
        return
    when = "was when it was taken" if args.reuse_store else "is now"
    print(printable(f"{path(layout.name)} is {args.origin} as it {when}"))
    if path(layout.origin) != args.origin and layout.origin != args.origin:
        print(printable(f"use {path(layout.origin)} instead of {args.origin} from now on"))


def _extend(args: argparse.Namespace) -> None:
    session = open_session(args)
    session.check_free(args.name)
    plan = plan_extend(args.mapper, args.name, args.size, more=args.more, force=args.force)
    session.run(plan)
    if session.trial:
        return
    if args.json:
        emit_json({"name": args.name, "total": plan.total})
    else:
        print(printable(f"the COW of {args.name} has {format_sectors(plan.total)} now"))


def _merge(args: argparse.Namespace) -> None:
    with following(args.progress, snapshot_show.report) as progress:
        layout = merge(open_session(args, progress), args.name, timeout=args.timeout)
    if args.dry_run:
        return
    if args.json:
        emit_json(dataclasses.asdict(layout))
    else:
        # An origin that was not mapped is what it was before: the device made for it is gone.
        there = args.mapper.exists(layout.origin)
        rolled_back = layout.origin if there else layout.base
        print(printable(f"{rolled_back} is what it was when {layout.name} was taken"))


def _drop(args: argparse.Namespace) -> None:
    session = open_session(args)
    session.check_free(args.name)
    layout = _run_plan(session, plan_drop(args.mapper, args.name))
    if session.trial:
        return
    if args.json:
        emit_json(dataclasses.asdict(layout))
    else:
        print(printable(f"{layout.name} is gone"))


def _run_plan(session: Session, plan: Plan) -> SnapshotLayout:
    session.run(plan)
    assert plan.layout is not None  # every plan of a snapshot has one
    return plan.layout


def _finish(args: argparse.Namespace) -> None:
    with following(args.progress, snapshot_show.report) as progress:
        session = open_session(args, progress)
        _say_ended(args, session.finish("snapshot", args.name, timeout=args.timeout))


def _undo(args: argparse.Namespace) -> None:
    _say_ended(args, open_session(args).undo("snapshot", args.name))


def _say_ended(args: argparse.Namespace, ended: Ended) -> None:
    if args.dry_run:
        return
    if args.json:
        emit_json({"name": args.name, "ended": ended.how})
    elif ended.how == "by a restart":
        print("nothing is left of it: the machine was restarted since")
    else:
        print(printable(f"{ended.how}: {ended.record}"))


def _status(args: argparse.Namespace) -> int:
    from dmcopy.workflows.snapshot_status import LOST, states

    journal = open_journal(args)
    found = states(args.mapper, journal, args.name)
    if args.name and not found:
        journal.find("snapshot", args.name)  # a record that is damaged
        raise UsageError(f"there is no snapshot {args.name!r}")
    if args.json:
        emit_json([dataclasses.asdict(state) for state in found])
    else:
        snapshot_show.emit_states(found)
    lost = any(state.state in LOST for state in found)
    return ExitCode.MISMATCH if lost else code_of(journal)


def _watch(args: argparse.Namespace) -> int:
    from dmcopy.workflows.snapshot_watch import Threshold, watch

    threshold = None
    if args.at is not None or args.command or args.extend:
        threshold = Threshold(args.at or 80.0, tuple(args.command), args.extend, args.more)
        if args.more and not args.force:
            check_more(args.mapper, args.name, args.more)
    last = ""
    for level in watch(open_session(args), args.name, interval=args.interval, threshold=threshold):
        heard = emit_json_line(dataclasses.asdict(level))
        last = level.event
        if threshold is None and not heard:
            break  # it does nothing but tell
    return ExitCode.FAILED if last == "lost" else ExitCode.OK
