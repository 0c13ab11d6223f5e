"""`dmcopy mirror`: mirrors of devices in use, with dm-mirror: make, watch, repair, split, move."""

from __future__ import annotations

import argparse
from typing import Final

from dmcopy.cli.mirror_check import configure_check, run_check
from dmcopy.cli.mirror_show import configure_status, report, run_status, tell
from dmcopy.cli.output import add_json, emit_json, printable, say
from dmcopy.cli.parser import size
from dmcopy.cli.progress import following
from dmcopy.cli.workflows import (
    add_change,
    add_forget,
    add_timeout,
    add_verb,
    emit_done,
    open_session,
    run,
)
from dmcopy.errors import UsageError
from dmcopy.table.mirror import REGION_SIZE
from dmcopy.units import format_sectors
from dmcopy.workflows.mirror import Mirror
from dmcopy.workflows.mirror_change import plan_drop, plan_fail, plan_replace, plan_split
from dmcopy.workflows.mirror_end import complete_legs, plan_end
from dmcopy.workflows.mirror_make import (
    FEATURES,
    MirrorOptions,
    plan_from_device,
    plan_from_legs,
)
from dmcopy.workflows.mirror_move import plan_move
from dmcopy.workflows.mirror_resync import Waiter
from dmcopy.workflows.record import Plan
from dmcopy.workflows.session import Ended
from dmcopy.workflows.site import Site

__all__ = ["configure", "run"]

_EXAMPLES: Final = """\
examples:
  dmcopy mirror make home --from home --leg /dev/sdc --log /dev/sdd1   mounted, and stays so
  dmcopy mirror make vol --leg /dev/sdb --leg /dev/sdc                 sdb is copied to sdc
  dmcopy mirror wait home                                              until it is in sync
  dmcopy mirror status home --watch                                    draws the region map
  dmcopy mirror fail home 1                                            a drill: replace ends it
  dmcopy mirror replace home 1 /dev/sde                                leg 1 has failed
  dmcopy mirror split home 1 home-copy                                 a consistent copy, as of now
  dmcopy mirror move home /dev/sdb /dev/sdf                            home leaves the disk sdb
  dmcopy mirror drop home                                              a plain device, as before
  dmcopy mirror finish home                                            end what was interrupted,
  dmcopy mirror undo home                                              or take it back: see status
  dmcopy mirror forget home                                            or leave all as it is

Sizes are sectors of 512 bytes, or 512K, 1G …; times are seconds.

After a restart, with the log that it had: dmcopy mirror make home --leg A --leg B --log L
--reuse-log copies only what the log calls dirty.

Ends with 0 when all is well, 1 for what failed, 2 for a command line that is wrong, 3 when a leg
has failed, 4 when the record of an interrupted workflow is damaged, 5 when something is not
installed, 6 when a device is in use, 130 when interrupted.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EXAMPLES
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    _configure_make(verbs)
    wait = add_verb(verbs, "wait", "wait until a mirror is in sync", _wait)
    wait.add_argument("name", metavar="NAME", help="the mirror")
    add_json(wait)
    _add_wait(wait)
    status = add_verb(verbs, "status", "legs, regions, and what was interrupted", run_status)
    add_json(status)
    configure_status(status)
    _configure_changes(verbs)
    text = "compare the legs of a mirror, and say what the log knew"
    check = verbs.add_parser("check", help=text, description=text)
    configure_check(check)
    check.set_defaults(verb=run_check, dry_run=False, call_timeout=30.0)


def _configure_make(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    make = add_change(verbs, "make", "make a mirror, of a device in use or of legs", _make)
    make.add_argument("name", metavar="NAME", help="the mirror; with --from, that device's name")
    make.add_argument("--from", dest="source", metavar="DEV", help="the mapped device to mirror")
    make.add_argument(
        "--leg",
        dest="legs",
        action="append",
        default=[],
        metavar="DEV",
        help="a leg; may be repeated",
    )
    make.add_argument(
        "--log",
        default="core",
        metavar="DEV|core",
        help="where to note what is dirty; core, in memory: all is copied after a restart "
        "(default: core)",
    )
    make.add_argument(
        "-R",
        "--region-size",
        type=size,
        metavar="S",
        help=f"sectors, or 512K … (default: {format_sectors(REGION_SIZE)})",
    )
    make.add_argument(
        "--size",
        type=size,
        metavar="S",
        help="use S of each leg (default: the smallest one's size)",
    )
    make.add_argument("--nosync", action="store_true", help="the legs are equal: copy nothing")
    make.add_argument(
        "--reuse-log", action="store_true", help="they were a mirror: copy what LOG calls dirty"
    )
    make.add_argument("--new-log", action="store_true", help="forget the mirror of the log on LOG")
    _add_force(make, "the legs that are copied to, and on LOG")
    make.add_argument(
        "--features",
        type=_features,
        default=FEATURES,
        metavar="WORD,…",
        help="handle_errors (the default): a failed leg is reported, and writes wait until it is "
        "replaced; without it the kernel reports success; with keep_log they do not wait; none",
    )
    _add_wait(make, leave=True)


def _configure_changes(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    fail = add_change(verbs, "fail", "make a leg fail, as a test", _fail)
    replace = add_change(verbs, "replace", "put another device in the place of a leg", _replace)
    split = add_change(verbs, "split", "take a leg off as a consistent copy", _split)
    for parser in (fail, replace, split):
        parser.add_argument("name", metavar="NAME", help="the mirror")
        parser.add_argument("leg", metavar="LEG", help="its number, from 0, or its device")
    replace.add_argument("new", metavar="NEWDEV", help="the device that takes its place")
    replace.add_argument(
        "--dirty-only",
        action="store_true",
        help="NEWDEV is the leg, back again: copy only what the log calls dirty",
    )
    _add_force(replace, "NEWDEV")
    _add_wait(replace, leave=True)
    split.add_argument("new", nargs="?", metavar="NEWNAME", help="the copy's name")
    split.add_argument(
        "--drop", action="store_true", help="make no copy: the mirror only loses that leg"
    )
    _add_wait(split)
    move = add_change(verbs, "move", "move a device's data to another disk, while in use", _move)
    move.add_argument("name", metavar="DEV", help="the mapped device")
    move.add_argument("source", metavar="FROM", help="the disk that it is to leave")
    move.add_argument("dest", metavar="TO", help="the disk that it is to be on")
    move.add_argument("--at", type=size, default=0, metavar="S", help="where on TO (default: 0)")
    move.add_argument(
        "-R",
        "--region-size",
        type=size,
        default=REGION_SIZE,
        metavar="S",
        help=f"copied at a time (default: {format_sectors(REGION_SIZE)})",
    )
    _add_force(move, "TO")
    _add_wait(move, leave=True)
    drop = add_change(verbs, "drop", "end a mirror: its device is as before, or goes", _drop)
    drop.add_argument("name", metavar="NAME", help="the mirror")
    drop.add_argument("--keep", default="", metavar="LEG", help="keep the device, on this leg")
    finish = add_change(verbs, "finish", "end what was interrupted", _finish)
    finish.add_argument("name", metavar="NAME", help="the mirror")
    _add_wait(finish)
    undo = add_change(verbs, "undo", "take back what was interrupted", _undo)
    undo.add_argument("name", metavar="NAME", help="the mirror")
    add_forget(verbs, "mirror")


def _add_force(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("-f", "--force", action="store_true", help=f"overwrite what is on {what}")


def _add_wait(parser: argparse.ArgumentParser, *, leave: bool = False) -> None:
    add_timeout(parser, "resync")
    if leave:
        text = "do not wait for the resync; 'dmcopy mirror wait' does, and completes the command"
        parser.add_argument("--no-wait", action="store_true", help=text)


def _features(text: str) -> tuple[str, ...]:
    if not text:
        raise argparse.ArgumentTypeError("it is empty: say none for none")
    return () if text == "none" else tuple(text.split(","))


def _make(args: argparse.Namespace) -> None:
    options = MirrorOptions(
        log=args.log,
        region_size=args.region_size,
        features=args.features,
        nosync=args.nosync,
        reuse_log=args.reuse_log,
        new_log=args.new_log,
        size=args.size,
        force=args.force,
    )
    if args.source is None:
        _run_plan(args, plan_from_legs(args.mapper, args.name, args.legs, options))
        return
    plan = plan_from_device(args.mapper, args.source, args.legs, options)
    if args.name != plan.name:
        raise UsageError(
            f"the mirror takes the place of {plan.name}, and keeps its name: "
            f"dmcopy mirror make {plan.name} --from {args.source}"
        )
    _run_plan(args, plan)


def _fail(args: argparse.Namespace) -> None:
    site = Site(args.mapper)
    mirror = Mirror.read(args.mapper, site.named(args.name))
    at = mirror.leg(args.leg, site)
    label = site.label(mirror.legs[at].device)
    _run_plan(args, plan_fail(args.mapper, args.name, args.leg))
    if not args.dry_run:
        say(printable(f"{mirror.name}: leg {at}, {label}, is in a drill from now on"))


def _replace(args: argparse.Namespace) -> None:
    how = {"dirty_only": args.dirty_only, "force": args.force}
    plan = plan_replace(args.mapper, args.name, args.leg, args.new, **how)
    _run_plan(args, plan)


def _split(args: argparse.Namespace) -> None:
    if args.drop == (args.new is not None):
        raise UsageError("say what to call the copy, NEWNAME, or --drop to have none")
    if args.drop:
        _run_plan(args, plan_drop(args.mapper, args.name, args.leg))
    else:
        _run_plan(args, plan_split(args.mapper, args.name, args.leg, args.new))


def _drop(args: argparse.Namespace) -> None:
    site = Site(args.mapper)
    mirror = Mirror.read(args.mapper, site.named(args.name))
    complete = complete_legs(mirror, site)
    legs = [site.label(mirror.legs[at].device) for at in complete]
    plan = plan_end(args.mapper, args.name, args.keep)
    session = open_session(args)
    session.run(plan)
    if session.trial:
        return
    if args.mapper.exists(plan.name):
        tell(args, plan.name)
    elif args.json:
        emit_json({"name": plan.name, "complete": legs})
    else:
        have = "has" if len(legs) == 1 else "have"
        said = f"{', '.join(legs)} {have} all of its data" if legs else "no leg has all of its data"
        print(printable(f"{plan.name} is gone; {said}"))


def _move(args: argparse.Namespace) -> None:
    place = {"start": args.at, "region_size": args.region_size, "force": args.force}
    _run_plan(args, plan_move(args.mapper, args.name, args.source, args.dest, **place))


def _wait(args: argparse.Namespace) -> None:
    name = Site(args.mapper).named(args.name)
    with following(args.progress, report) as observer:
        session = open_session(args, observer)
        record = session.interrupted("mirror", name)
        if record is None or record.undoing:
            Waiter(args.mapper, observer).wait(name, args.timeout)
        else:
            say(_sentence(session.finish("mirror", name, timeout=args.timeout)))
    tell(args, name)


def _finish(args: argparse.Namespace) -> None:
    with following(args.progress, report) as observer:
        ended = open_session(args, observer).finish("mirror", args.name, timeout=args.timeout)
    record = ended.record
    if ended.how == "taken back":
        emit_done(args, f"{record.name}: '{record}' was being taken back, and now is")
    else:
        emit_done(args, _sentence(ended))


def _undo(args: argparse.Namespace) -> None:
    emit_done(args, _sentence(open_session(args).undo("mirror", args.name)))


def _sentence(ended: Ended) -> str:
    record = ended.record
    if ended.how == "by a restart":
        return (
            f"{record.name}: '{record}' ended with the restart of the machine, which left no "
            "mapped device: make it again"
        )
    return f"{record.name}: '{record}' is {ended.how}"


def _run_plan(args: argparse.Namespace, plan: Plan) -> None:
    with following(getattr(args, "progress", "none"), report) as observer:
        session = open_session(args, observer)
        wait = not getattr(args, "no_wait", False)
        session.run(plan, wait=wait, timeout=getattr(args, "timeout", None))
    if session.trial:
        return
    if plan.wait and not wait:
        say(f"{plan.name}: the resync continues; 'dmcopy mirror wait {plan.name}' ends this")
    tell(args, plan.name)
