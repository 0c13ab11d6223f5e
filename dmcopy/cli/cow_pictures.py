"""`dmcopy cow diff` and `map`: what has changed."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

from dmcopy.cli.options import resolve
from dmcopy.cli.output import add_json, emit_json, printable, say, terminal_width
from dmcopy.errors import DeviceError, ExitCode, UsageError

if TYPE_CHECKING:
    from dmcopy.cow.store import Store

_ROWS: Final = 16
_PICTURE_WIDTH, _PICTURE_ROWS = 96, 64


def configure(verbs: argparse._SubParsersAction[Any]) -> None:
    diff = verbs.add_parser(
        "diff", help="compare two stores, or a store with its origin; 4 when they differ"
    )
    diff.add_argument("cow", metavar="A", help="a COW device")
    diff.add_argument("other", metavar="B", nargs="?", help="another one of the same origin")
    diff.add_argument("--origin", metavar="O", help="instead of B: what the snapshot is of")
    diff.set_defaults(verb=_diff)
    chart = verbs.add_parser("map", help="draw which chunks of the origin have changed")
    chart.add_argument("cow", metavar="COW", help="the COW device")
    chart.add_argument(
        "--origin", metavar="O", help="what it is of: the picture ends where it does"
    )
    chart.add_argument("--svg", metavar="FILE", help="write an SVG picture")
    chart.add_argument("--png", metavar="FILE", help="write a PNG picture (needs dmcopy[plot])")
    chart.add_argument(
        "--width", type=int, metavar="N", help="blocks in a row (default: as many as fit)"
    )
    chart.set_defaults(verb=_map)
    for verb in (diff, chart):
        add_json(verb)


def _diff(args: argparse.Namespace) -> int:
    from dmcopy.block import BlockDevice
    from dmcopy.cow.diff import Difference, diff_origin, diff_stores
    from dmcopy.cow.store import open_cow, read_store

    if (args.other is None) == (args.origin is None):
        raise UsageError("give a second store to compare with, or --origin: one of the two")
    with ExitStack() as stack:
        store = read_store(stack.enter_context(open_cow(resolve(args.cow))))
        if args.origin is not None:
            origin = stack.enter_context(BlockDevice.open(resolve(args.origin)))
            spans = diff_origin(store, origin)
        else:
            other = read_store(stack.enter_context(open_cow(resolve(args.other))))
            spans = diff_stores(store, other)
        counts = dict.fromkeys(Difference, 0)
        listed: dict[Difference, list[tuple[int, int]]] = {kind: [] for kind in Difference}
        for kind, old, count in spans:
            counts[kind] += count
            if args.json:
                listed[kind].append((old, count))
            elif kind != Difference.SAME:
                print(f"{old if count == 1 else f'{old}-{old + count - 1}'} {kind}")
    different = sum(counts.values()) - counts[Difference.SAME]
    if args.json:
        ranges = {kind.name.lower(): listed[kind] for kind in Difference}
        emit_json({"chunk_size": store.header.chunk_size, "same": not different, "chunks": ranges})
    else:
        words = [f"{count} {kind}" for kind, count in counts.items() if count]
        say(f"chunks: {', '.join(words) or 'none'}")
    return ExitCode.MISMATCH if different else ExitCode.OK


def _map(args: argparse.Namespace) -> int:
    from dmcopy.block import BlockDevice
    from dmcopy.cow.store import open_cow, read_store

    if args.width is not None and args.width < 1:
        raise UsageError(f"--width is a number of blocks, not {args.width}")
    origin_sectors = None
    if args.origin:
        with BlockDevice.open(resolve(args.origin)) as origin:
            origin_sectors = origin.sectors
    with open_cow(resolve(args.cow)) as device:
        store = read_store(device)
        if args.svg or args.png:
            _write_pictures(store, args, origin_sectors)
        if args.json or not (args.svg or args.png):
            _print_map(store, args, origin_sectors)
    return ExitCode.OK


def _print_map(store: Store, args: argparse.Namespace, origin_sectors: int | None) -> None:
    from dmcopy.cow.density import measure
    from dmcopy.cow.picture import ASCII_SHADES, LABEL, SHADES, to_text

    width = args.width or max(8, terminal_width() - LABEL)
    density = measure(store, width=width, rows=_ROWS, origin_sectors=origin_sectors)
    if args.json:
        emit_json(
            {
                "chunk_size": density.chunk_size,
                "chunks": density.chunks,
                "changed": density.total,
                "chunks_per_cell": density.per_cell,
                "cells": list(density.changed),
            }
        )
        return
    try:
        SHADES.encode(sys.stdout.encoding or "ascii")
        shades = SHADES
    except UnicodeEncodeError:
        shades = ASCII_SHADES
    sys.stdout.write(to_text(density, shades=shades))


def _write_pictures(store: Store, args: argparse.Namespace, origin_sectors: int | None) -> None:
    from dmcopy.cow.density import measure
    from dmcopy.cow.picture import title, to_png, to_svg
    from dmcopy.transfer.opening import is_same

    width = args.width or _PICTURE_WIDTH
    density = measure(store, width=width, rows=_PICTURE_ROWS, origin_sectors=origin_sectors)
    for path in filter(None, (args.svg, args.png)):
        if used := is_same(path, [store.path, *([args.origin] if args.origin else [])]):
            raise UsageError(f"{path} cannot be the picture: it is {used}")
        picture = to_svg(density).encode() if path == args.svg else to_png(density)
        try:
            _put(path, picture)
        except OSError as error:
            raise DeviceError(path, "write the picture", error.errno or 0) from error
        say(f"{printable(path)}: {title(density)}")


def _put(path: str, picture: bytes) -> None:
    """Write a picture: a file as a whole, or to a pipe; any other thing is refused."""
    from pathlib import Path

    from dmcopy.atomic import replace_file

    if Path(path).is_fifo():  # /dev/stdout, <(…)
        Path(path).write_bytes(picture)
    else:
        replace_file(path, picture)
