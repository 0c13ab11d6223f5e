"""What `dmcopy mirror` prints: facts of mirrors, the progress of a resync, the map of regions."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from typing import Any, Final

from dmcopy.cli.mirror_map import draw
from dmcopy.cli.output import emit_json, printable, say
from dmcopy.cli.parser import seconds
from dmcopy.cli.progress import WorkflowProgress, pace
from dmcopy.cli.shown import drawing
from dmcopy.cli.streams import is_heard
from dmcopy.cli.workflows import code_of, open_journal
from dmcopy.errors import DmcopyError, ExitCode
from dmcopy.mapper.base import Mapper
from dmcopy.status.legs import LEG_HEALTH, LOG_HEALTH
from dmcopy.table.mirror import DiskLog
from dmcopy.units import SECTOR_SHIFT, format_bytes, format_sectors
from dmcopy.workflows.mirror import Mirror, mirrors
from dmcopy.workflows.mirror_hidden import in_drill
from dmcopy.workflows.mirror_resync import Resync
from dmcopy.workflows.session import Session
from dmcopy.workflows.site import Site

_CLEAR: Final = "\x1b[H\x1b[2J"


def configure_status(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `status`."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="default: every mirror")
    parser.add_argument("--watch", action="store_true", help="show the map of regions, live")
    parser.add_argument(
        "-i", "--interval", type=seconds, default=1.0, metavar="S", help="of --watch (default: 1)"
    )
    parser.add_argument(
        "--count", type=int, metavar="N", help="end --watch after N times (default: never)"
    )


def run_status(args: argparse.Namespace) -> int:
    """Print the state of each mirror, and the workflows that were interrupted."""
    if args.watch:
        return _watch(args)
    site = Site(args.mapper)
    found = _found(args, site)
    session = Session(args.mapper, open_journal(args))
    progress = _in_progress(session, found[0].name if args.name else None)
    if args.json:
        values = {one.name: mirror_values(one, site) for one in found}
        emit_json({"mirrors": values, "in_progress": progress})
    else:
        for one in found:
            print("\n".join(mirror_lines(one, site)))
        for item in progress:
            print(f"{item['workflow']}: {item['state']}; {item['advice']}".rstrip("; "))
        if not found and not progress:
            say("there are no mirrors")
    failed = any(one.trouble(site) for one in found)
    return ExitCode.PARTIAL if failed else code_of(session.journal)


def tell(args: argparse.Namespace, name: str) -> None:
    """Print what a device is after a change, if it is a mirror now."""
    site = Site(args.mapper)
    found = [one for one in mirrors(args.mapper) if one.name == name]
    if args.json:
        emit_json({one.name: mirror_values(one, site) for one in found})
        return
    for one in found:
        print("\n".join(mirror_lines(one, site)))
    if not found:
        table = args.mapper.table(name).with_devices(site.label)
        print("\n".join(f"{name}: {line}" for line in str(table).splitlines()))


def mirror_values(mirror: Mirror, site: Site) -> dict[str, Any]:
    """Return a mirror as JSON has it; sizes in sectors."""
    log = mirror.target.log
    return {
        "sectors": mirror.length,
        "regions": mirror.status.sync.total,
        "in_sync": mirror.status.sync.used,
        "region_size": mirror.region_size,
        "features": list(mirror.target.features or ()),
        "log": site.label(log.device) if isinstance(log, DiskLog) else "core",
        "log_health": mirror.status.log_health,
        "legs": [
            {
                "leg": at,
                "device": site.label(leg.device),
                "offset": leg.offset,
                "health": mirror.status.health[at],
                "means": LEG_HEALTH.get(mirror.status.health[at], "failed in an unknown way"),
                "drill": in_drill(site, leg.device),
            }
            for at, leg in enumerate(mirror.legs)
        ],
    }


def mirror_lines(mirror: Mirror, site: Site) -> Iterator[str]:
    """Yield the lines that describe a mirror to people."""
    sync, log = mirror.status.sync, mirror.target.log
    where = f"log on {site.label(log.device)}" if isinstance(log, DiskLog) else "log in memory"
    if mirror.status.log_health != "A":
        where += f" ({LOG_HEALTH.get(mirror.status.log_health, 'failed')})"
    yield (
        f"{printable(mirror.name)}: {format_bytes(mirror.length << SECTOR_SHIFT)}, "
        f"{sync.used} of {sync.total} regions of {format_sectors(mirror.region_size)} in sync, "
        f"{where}"
    )
    for at, leg in enumerate(mirror.legs):
        offset = f" at sector {leg.offset}" if leg.offset else ""
        health = LEG_HEALTH.get(mirror.status.health[at], "failed in an unknown way")
        if in_drill(site, leg.device):
            ends = f"'dmcopy mirror replace {mirror.name} {at} NEWDEV' ends that"
            health += printable(f"; it is in a drill, all of its I/O fails: {ends}")
        yield f"  leg {at}  {printable(site.label(leg.device))}{offset}  {health}"


def report(one: Resync) -> WorkflowProgress:
    """Return how far a resync is, for `following`."""
    how_far = one._asdict()
    details = {"in_sync": how_far.pop("in_sync"), "regions": how_far.pop("regions")}
    return WorkflowProgress("resync", line=progress_line(one), details=details, **how_far)


def progress_line(progress: Resync) -> str:
    """Return how far a resync is, in one line."""
    done = f"{progress.in_sync} of {progress.regions} regions in sync"
    return f"{progress.name}: {done}{pace(progress.rate, progress.seconds_left)}"


def _found(args: argparse.Namespace, site: Site) -> list[Mirror]:
    if not args.name:
        return mirrors(args.mapper)
    return [Mirror.read(args.mapper, site.named(args.name))]


def _in_progress(session: Session, name: str | None) -> list[dict[str, str]]:
    found = []
    for record in session.journal.records("mirror"):
        if name in (None, record.name):
            state = "is running" if record.running else "was interrupted"
            advice = "" if record.running else session.advice(record)
            found.append({"workflow": str(record), "state": state, "advice": advice})
    return found


def _watch(args: argparse.Namespace) -> int:
    """Print the mirrors and their maps again and again; on a terminal, in the same place."""
    names = [one.name for one in _found(args, Site(args.mapper))]
    times = 0
    while names and (args.count is None or times < args.count):
        if times:
            time.sleep(args.interval)
        times += 1
        lines = [line for name in names for line in _watched(args.mapper, name)]
        if sys.stdout.isatty():
            drawing(sys.stdout).write(_CLEAR)
        print("\n".join(lines), flush=True)
        if not is_heard():
            break
    return ExitCode.OK


def _watched(mapper: Mapper, name: str) -> Iterator[str]:
    mirror = Mirror.read(mapper, name)
    yield from mirror_lines(mirror, Site(mapper))
    try:
        yield from draw(mirror.status.sync, mirror.read_log())
    except DmcopyError as error:
        yield f"  {error}"
