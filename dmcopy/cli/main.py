"""`dmcopy NOUN …`: finds the noun's module, parses, runs it, turns an error into one sentence.

Only the noun that was asked for is imported: a copy of a small device should not wait for the
imports of the VM rig. A noun's module has two functions, `configure(parser)` and `run(args)`.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Collection, Sequence
from typing import Final

from dmcopy import __version__
from dmcopy.cli import signals, streams
from dmcopy.cli.parser import Parser, UndeclaredError, share_help
from dmcopy.cli.shown import brief
from dmcopy.errors import DmcopyError, ExitCode, UsageError, of_limit

NOUNS: Final = {
    "demo": "show copies, snapshots and mirrors on sparse files, without root",
    "doctor": "say what works on this machine, and what to install for the rest",
    "devices": "find block devices, watch them, and say what uses one",
    "dm": "create, load, watch and explain mapped devices: dmsetup with types",
    "snapshot": "take, watch, extend, merge and drop snapshots of live devices",
    "copy": "copy a device or file to one or more others",
    "zero": "fill a device or file with zeroes",
    "mirror": "mirror devices in use: make, watch, repair, split, move, compare",
    "cow": "read, check, extract, merge, compare and draw snapshots' COW devices",
    "mirror-log": "look at the disk log of a mirror: which regions are clean",
    "write-log": "replay a log of writes, up to any of them, and check each state of the disk",
    "explore": "play a history with very many seeds, by processes or a cluster, and continue later",
    "serve": "serve a table's devices, or a file, as an NBD export, until it is told to stop",
    "disk": "serve a disk whose power can be cut, for any VM or program",
    "completion": "print the completion of dmcopy's words for a shell",
    "guide": "read the guides: copies, snapshots, mirrors, the library, the rig, figures",
    "schema": "print the JSON Schema of what a command prints with --json",
    "vm": "boot a kernel with real device-mapper and run a command in it",
}


def _build_parser(
    noun: str | None, wanted: Collection[str] | None = None, *, whole: bool = False
) -> Parser:
    """Return the parser, with what is below `noun`, or with all of it.

    Of the noun's verbs, those that are not among `wanted` are known by their names only.
    """
    parser = Parser(
        prog="dmcopy",
        description="The kernel's kcopyd in userspace, and dm-snapshot and dm-mirror on it.",
    )
    parser.add_argument("-V", "--version", action="version", version=f"dmcopy {__version__}")
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    nouns = parser.add_subparsers(dest="noun", metavar="NOUN", required=True)
    for name, summary in NOUNS.items():
        sub = nouns.add_parser(name, help=summary, description=summary)
        if whole or name == noun:
            sub.wanted = wanted
            module = importlib.import_module(f"dmcopy.cli.{name.replace('-', '_')}")
            module.configure(sub)
            share_help(sub)
            sub.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code (`dmcopy.errors.ExitCode`).

    Without `argv` it is the process's own, whose standard streams are then ours, too.
    """
    if argv is None:
        streams.open_streams()  # before a signal may have to be told of
    with signals.handled():
        try:
            return streams.finish(_run(list(sys.argv[1:] if argv is None else argv)))
        except KeyboardInterrupt as error:
            streams.drop_output()
            _tell(error, "interrupted")
            return streams.finish(ExitCode.INTERRUPTED)


def _run(words: list[str]) -> int:
    if words[:1] in ([], ["help"]):
        words = [*words[1:], "--help"]  # `dmcopy`, `dmcopy help`, `dmcopy help dm create`
    noun = next((word for word in words if word in NOUNS), None)
    try:
        try:
            code = _call(_build_parser(noun, words), words)
        except UndeclaredError:
            code = _call(_build_parser(noun), words)
    except DmcopyError as error:
        if "--traceback" in words:
            raise
        _tell(error, str(error))
        return error.exit_code
    except (OSError, MemoryError, RuntimeError, ImportError) as error:
        limit = of_limit(error) or _of_folder(error)
        if limit is None or "--traceback" in words:
            raise
        _tell(limit, str(limit))
        return limit.exit_code
    except UnicodeEncodeError as error:  # a name in some record, made under another locale
        lacks = f"the locale's {error.encoding} lacks this: set LC_ALL=C.UTF-8"
        _tell(error, f"{error.object}: {lacks}")
        return ExitCode.FAILED
    return code


def _of_folder(error: BaseException) -> DmcopyError | None:
    """Return what to tell of an error where the working folder is gone: no relative path is."""
    if isinstance(error, FileNotFoundError):
        try:
            os.getcwd()
        except FileNotFoundError:
            return UsageError("the working folder is gone: go to another one (cd)")
    return None


def _call(parser: Parser, words: list[str]) -> int:
    args = parser.parse_args(words)
    code: int = args.run(args)
    return code


def _tell(error: BaseException, text: str) -> None:
    """Print what happened, and the notes of those it passed through: what became of their work."""
    for line in (text, *getattr(error, "__notes__", ())):
        print(f"dmcopy: {brief(line)}", file=sys.stderr)
