"""`dmcopy cow extract` and `merge`: what writes, an image or the origin."""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dmcopy.cli import cow_operands
from dmcopy.cli.options import add_limit, add_progress, resolve
from dmcopy.cli.output import add_json, emit_json, printable, say
from dmcopy.cli.signals import interrupting
from dmcopy.errors import DmcopyError, ExitCode
from dmcopy.units import SECTOR_SHIFT, format_bytes, format_sectors

if TYPE_CHECKING:
    from dmcopy.cow.extract import Extract
    from dmcopy.cow.merge import Merge
    from dmcopy.cow.moving import Mover
    from dmcopy.io.region import Device


def configure(verbs: argparse._SubParsersAction[Any]) -> None:
    extract = verbs.add_parser("extract", help="write the snapshot's content to a file or device")
    extract.add_argument("--origin", required=True, metavar="O", help="what the snapshot is of")
    extract.add_argument("--cow", required=True, metavar="COW", help="its COW device")
    extract.add_argument("out", metavar="OUT", help="a device, or a file, made if not there")
    extract.add_argument(
        "--changed-only",
        action="store_true",
        help="only the chunks that are in the store; the rest of OUT is left as it is",
    )
    extract.set_defaults(verb=_extract)
    merge = verbs.add_parser("merge", help="copy the snapshot's chunks back to its origin")
    cow_operands.add(
        merge,
        origin="what the snapshot is of; is written",
        cow="its COW device; is emptied on the way",
    )
    merge.set_defaults(verb=_merge)
    for verb in (extract, merge):
        verb.add_argument(
            "--dry-run", action="store_true", help="check, and say what would be done"
        )
        add_limit(verb)
        add_progress(verb)
        add_json(verb)


def _extract(args: argparse.Namespace) -> int:
    from dmcopy.cow.opening import opened_extract

    origin, cow, out = resolve(args.origin), resolve(args.cow), resolve(args.out)
    if args.dry_run:
        return _would_extract(origin, cow, out, args)
    is_new = not os.path.lexists(out)
    with opened_extract(origin, cow, out, changed_only=args.changed_only) as extract:
        if not extract.store.header.valid:
            say(f"{printable(cow)}: the snapshot was invalidated; what is in its store is good")
        with _moving(extract.out.device, extract, "extract", args) as mover:
            began = time.monotonic()
            try:
                extract.run(mover)
            except DmcopyError:
                if not is_new:  # a new one is removed
                    say(f"dmcopy: {_incomplete(out, mover, extract)}")
                raise
            facts = _facts(mover, time.monotonic() - began)
    if args.json:
        emit_json({"out": out, "exceptions": len(extract.exceptions), **facts})
    else:
        print(f"{printable(out)}: {_rate(facts)}")
    if mover.interrupted:
        say(f"dmcopy: interrupted: {_incomplete(out, mover, extract)}")
    return int(facts["exit_code"])


def _incomplete(out: str, mover: Mover, extract: Extract) -> str:
    done, total = format_sectors(mover.sectors), format_sectors(extract.total)
    return f"{printable(out)} is not complete: {done} of {total} had been written"


def _would_extract(origin: str, cow: str, out: str, args: argparse.Namespace) -> int:
    from dmcopy.block import BlockDevice
    from dmcopy.cow.load import load, load_any
    from dmcopy.cow.store import open_cow, read_store

    with open_cow(cow) as device, BlockDevice.open(origin) as source:
        read = load_any if args.changed_only else load
        store = read_store(device)
        exceptions = read(store, origin_sectors=source.sectors)
        changed = len(exceptions) * store.header.chunk_size
        total = changed if args.changed_only else source.sectors
    if args.json:
        facts = {"dry_run": True, "out": out, "exceptions": len(exceptions), "sectors": total}
        emit_json(facts)
    else:
        print(
            f"would write {format_sectors(total)} to {printable(out)}, "
            f"{format_sectors(changed)} of it from the COW"
        )
    return ExitCode.OK


def _merge(args: argparse.Namespace) -> int:
    from dmcopy.cow.opening import opened_merge

    cow_operands.settle(args, "origin", "cow")
    origin, cow = resolve(args.origin), resolve(args.cow)
    with opened_merge(origin, cow, dry_run=args.dry_run) as merge:
        if args.dry_run:
            return _would_merge(origin, merge, as_json=args.json)
        with _moving(merge.origin.device, merge, "merge", args) as mover:
            began = time.monotonic()
            try:
                merge.run(mover)
            finally:
                if merge.merged < merge.exceptions:
                    say(
                        f"dmcopy: {merge.merged} of {merge.exceptions} exceptions are merged; the "
                        f"same command resumes from here"
                    )
            facts = _facts(mover, time.monotonic() - began)
    if args.json:
        emit_json(
            {"origin": origin, "exceptions": merge.exceptions, "merged": merge.merged, **facts}
        )
    elif not mover.interrupted:
        print(f"{printable(origin)}: {merge.merged} exceptions merged, {_rate(facts)}")
    return int(facts["exit_code"])


def _would_merge(origin: str, merge: Merge, *, as_json: bool) -> int:
    if as_json:
        facts = {"dry_run": True, "origin": origin, "exceptions": merge.exceptions}
        emit_json({**facts, "sectors": merge.total})
    else:
        print(
            f"would copy {merge.exceptions} chunks ({format_bytes(merge.total << SECTOR_SHIFT)}) "
            f"to {printable(origin)}"
        )
    return ExitCode.OK


@contextlib.contextmanager
def _moving(
    dest: Device, work: Extract | Merge, phase: str, args: argparse.Namespace
) -> Iterator[Mover]:
    """Yield a mover whose progress is shown, and which SIGINT ends."""
    from dmcopy.cli.progress import make_renderer
    from dmcopy.cow.moving import make_mover
    from dmcopy.transfer.events import Progress

    renderer = make_renderer(args.progress)
    chunk_size = work.store.header.chunk_size

    def show(sectors: int, seconds: float) -> None:
        renderer.show(Progress(phase, sectors, work.total, (sectors,), seconds))

    with (
        contextlib.closing(renderer),
        make_mover(dest, chunk_size=chunk_size, limit=args.limit, observer=show) as mover,
        interrupting(mover),
    ):
        yield mover


def _facts(mover: Mover, seconds: float) -> dict[str, Any]:
    code = ExitCode.INTERRUPTED if mover.interrupted else ExitCode.OK
    return {
        "ok": not mover.interrupted,
        "exit_code": int(code),
        "interrupted": mover.interrupted,
        "sectors": mover.sectors,
        "seconds": round(seconds, 6),
    }


def _rate(facts: dict[str, Any]) -> str:
    from dmcopy.cli.progress import speed

    return speed(facts["sectors"] << SECTOR_SHIFT, facts["seconds"])
