"""What `dmcopy copy` and `dmcopy zero` share: signals, the run, the summary."""

from __future__ import annotations

import argparse
import contextlib
import os

from dmcopy.cli import streams
from dmcopy.cli.output import emit_json
from dmcopy.cli.progress import make_renderer
from dmcopy.cli.signals import interrupting
from dmcopy.cli.summary import describe_plan, overwritten, print_summary
from dmcopy.errors import UsageError
from dmcopy.transfer.events import Overwrites
from dmcopy.transfer.opening import OpenedRegions, TransferRequest, open_all
from dmcopy.transfer.outcome import TransferOutcome
from dmcopy.transfer.session import TransferOptions, TransferSession
from dmcopy.units import parse_sectors


def run_transfer(request: TransferRequest, args: argparse.Namespace) -> int:
    """Run the transfer, print its result, and return the exit code."""
    options = _options(args)
    with open_all(request, create=not args.dry_run) as opened:
        try:
            if args.dry_run:
                settings = TransferSession(opened, options).settings if opened.dests else None
                describe_plan(opened, settings, options, as_json=args.json)
                return 0
            outcome = _run(opened, options, args)
        except BaseException:
            opened.discard_created()
            raise
        if outcome.nothing_written:
            opened.discard_created()
    if args.json:
        emit_json(outcome.as_dict())
    else:
        print_summary(outcome)
    if outcome.transfer.abandoned:
        # Requests are still in flight and may be for long: the kernel ends them when we are gone.
        os._exit(streams.finish(outcome.exit_code))
    return outcome.exit_code


def _run(
    opened: OpenedRegions, options: TransferOptions, args: argparse.Namespace
) -> TransferOutcome:
    renderer = make_renderer(args.progress)
    session = TransferSession(opened, options, renderer.show)
    with interrupting(session), contextlib.closing(renderer):
        if not os.path.lexists(options.map_path):  # else it is what an earlier run wrote
            for path, what in overwritten(opened).items():
                renderer.show(Overwrites(path, what))
        return session.run()


def _options(args: argparse.Namespace) -> TransferOptions:
    if not 1 <= args.throttle <= 100:
        raise UsageError(f"--throttle is a percentage from 1 to 100, not {args.throttle}")
    if not args.map_interval > 0:
        raise UsageError(f"--map-interval is a number of seconds above 0, not {args.map_interval}")
    if args.trust_map and not args.map:
        raise UsageError("--trust-map is about a map: give --map FILE, too")
    return TransferOptions(
        backend=args.io,
        depth=args.depth,
        piece=None if args.piece is None else parse_sectors(args.piece),
        pages=args.pages,
        throttle=args.throttle,
        limit=args.limit,
        on_error=args.on_error,
        sparse=args.sparse,
        verify=args.verify,
        map_path=args.map or "",
        map_interval=args.map_interval,
        retry=args.retry,
        trust_map=args.trust_map,
    )
