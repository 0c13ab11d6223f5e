"""What the commands print: JSON for programs, a table for people."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from dmcopy.cli.shown import drawing
from dmcopy.cli.shown import printable as printable
from dmcopy.cli.streams import is_heard
from dmcopy.errors import UsageError


def add_json(parser: argparse.ArgumentParser, *, verb: bool = False) -> None:
    """Add --json. On a noun's `verb` too: it then leaves alone what was said before the verb."""
    default = argparse.SUPPRESS if verb else False
    text = "print JSON on stdout"
    parser.add_argument("--json", action="store_true", default=default, help=text)
    parser.set_defaults(prints_json=True)


def refuse_json(args: argparse.Namespace) -> None:
    """Raise UsageError for a --json that would get text: of a verb without, or of a rehearsal."""
    if args.json and getattr(args, "dry_run", False):
        raise UsageError("--dry-run prints commands for a shell: leave --json out")
    if args.json and not args.prints_json:
        raise UsageError(f"'{args.called}' prints text: leave --json out")


def emit_json(value: object) -> None:
    """Print one JSON document."""
    import json

    print(json.dumps(value, indent=2))


def emit_json_line(value: object) -> bool:
    """Print one line of a stream of JSON objects and flush it; return whether there is a reader.

    A command that does nothing but print such lines may end when it was not.
    """
    import json

    print(json.dumps(value), flush=True)
    return is_heard()


def say(message: str) -> None:
    """Print a message to people: on stderr, so that it never mixes with data."""
    print(message, file=sys.stderr, flush=True)


def terminal_width() -> int:
    """Return the width of the terminal: COLUMNS, or what the kernel says of stdout, or 80.

    As shutil.get_terminal_size does, whose module (with bz2, lzma and zlib) takes longer to import
    than a help to print.
    """
    asked = os.environ.get("COLUMNS", "")
    if asked.isdecimal() and int(asked):
        return int(asked)
    try:
        return os.get_terminal_size(sys.__stdout__.fileno()).columns or 80  # type: ignore[union-attr]
    except (AttributeError, ValueError, OSError):  # no stdout, or closed, or no terminal
        return 80


def emit_table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()
) -> None:
    """Print a table; the columns named in `right` are aligned to the right."""
    clean = [[printable(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _emit_rich(headers, clean, right)
    else:
        _emit_plain(headers, clean, right)


def _emit_plain(
    headers: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str]
) -> None:
    table = [list(headers), *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(headers))]
    for row in table:
        cells = [
            cell.rjust(width) if header in right else cell.ljust(width)
            for cell, width, header in zip(row, widths, headers, strict=True)
        ]
        print("  ".join(cells).rstrip())


def _emit_rich(headers: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str]) -> None:
    # Here and not above: importing rich takes longer than most commands.
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for header in headers:
        table.add_column(header, justify="right" if header in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # Text: a label may hold rich's own markup
    Console(file=drawing(sys.stdout)).print(table)
