"""`dmcopy dm run`: the same operations on the same table, on either engine."""

from __future__ import annotations

import argparse
import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any, Final

from dmcopy.cli.dm_facts import read_file, read_input, table_text
from dmcopy.cli.dm_verbs import VerbParser
from dmcopy.cli.options import add_engine, engine_of
from dmcopy.cli.output import add_json, emit_json_line, printable, say
from dmcopy.cli.parser import seconds
from dmcopy.errors import DeadlineError, ExitCode, UsageError
from dmcopy.mapper.operation import Operation
from dmcopy.mapper.operations import help_text, parse
from dmcopy.mapper.run import Answer, Run, exit_code
from dmcopy.table import ConciseDevice, Table, parse_concise

_DEVICE: Final = "dev"
_EXAMPLES: Final = """
examples:
  dmcopy dm run --engine user --table '0 2048 linear disk.img 0' 'write 0 8 seq' 'read 0 8'
  dmcopy dm run --concise 'base,,,,0 2048 linear a.img 0;top,,,,0 2048 linear /dev/mapper/base 0' \\
      'write 0 8 0x5a' 'base: verify 0 8 0x5a' status
  diff <(dmcopy dm run --engine kernel T "${ops[@]}") <(dmcopy dm run --engine user T "${ops[@]}")

A plain file may stand for a device. Devices are made under names of their own and are gone at the
end. An operation is one argument, for the last device, or for the one named before it as in
'base: read 0 8'. Exit code 4 when something did not verify, 1 when something failed.
"""


def configure(verbs: argparse._SubParsersAction[VerbParser]) -> None:
    text = "run operations on a table, in the kernel or in userspace"
    parser = verbs.add_parser("run", help=text, description=text)
    parser.epilog = f"operations:\n{help_text()}\n{_EXAMPLES}"
    parser.add_argument(
        "words",
        nargs="*",
        metavar="[FILE] OPERATION",
        help="the file of the table (-: stdin) if no option has it, then the operations below",
    )
    add_engine(parser)
    parser.add_argument("--table", metavar="TABLE", help="the table, instead of its FILE")
    parser.add_argument("--concise", metavar="SPEC", help="several devices, as in dm create")
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=math.inf,
        metavar="S",
        help="begin no operation after S seconds, and let none take longer (default: no limit)",
    )
    parser.add_argument(
        "--call-timeout",
        type=seconds,
        default=30.0,
        metavar="S",
        help="limit of each operation (default: 30)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be done, and change nothing"
    )
    parser.takes_command = True
    add_json(parser, verb=True)
    parser.set_defaults(verb=_run, any_engine=True)


def _run(args: argparse.Namespace) -> int:
    words = [*args.words, *args.command]
    devices = devices_of(args, words)
    operations = [parse(word) for word in words]
    if not operations:
        raise UsageError("say what to do: dmcopy dm run FILE 'read 0 8'")
    if args.dry_run:
        _plan(devices, operations)
        return ExitCode.OK
    # Here and not above: the userspace engine takes time to import.
    from dmcopy.mapper.engines import engine

    outcomes = []
    name: Any = engine_of(args)
    limit = min(args.timeout, args.call_timeout)
    deadline = time.monotonic() + args.timeout
    with faults_told(args), engine(name, timeout=limit, say=say) as started:
        running = Run(started, devices)
        for operation in operations:
            running.check(operation)
        with running:
            for word, operation in zip(words, operations, strict=True):
                if time.monotonic() > deadline:
                    took = f"the operations before it took {args.timeout:g} s, see --timeout"
                    raise DeadlineError(f"{word!r} was not begun: {took}")
                outcomes.append(running.run(operation))
                _emit(outcomes[-1], as_json=args.json)
    return exit_code(outcomes)


@contextlib.contextmanager
def faults_told(args: argparse.Namespace) -> Iterator[None]:
    """Tell what a target raises in one sentence, once, and not with a traceback for each bio."""
    import logging

    told: set[str] = set()

    def tell(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if args.traceback or error is None:
            return True
        notes = "; ".join(getattr(error, "__notes__", ()))
        text = f"{type(error).__name__}: {error}; {notes}".removesuffix("; ")
        if text not in told:
            say(f"dmcopy: {text}")
        told.add(text)
        return False

    logger = logging.getLogger("dmcopy")
    logger.addFilter(tell)
    try:
        yield
    finally:
        logger.removeFilter(tell)


def devices_of(args: argparse.Namespace, words: list[str]) -> list[ConciseDevice]:
    """Return the devices to make; takes the FILE off `words` if that is where the table is."""
    if args.concise is not None and args.table is not None:
        raise UsageError("say either --table or --concise")
    if args.concise is not None:
        text = read_input() if args.concise == "-" else args.concise
        return list(parse_concise(text))
    if args.table is not None:
        table = Table.parse(table_text(args.table))
    elif words:
        first = words.pop(0)
        table = Table.parse(read_input() if first == "-" else read_file(first))
    else:
        raise UsageError("say a table: a FILE, --table or --concise")
    if not table.lines:
        raise UsageError("the table has no lines: write start, length, target and its words")
    return [ConciseDevice(_DEVICE, table)]


def _plan(devices: list[ConciseDevice], operations: list[Operation]) -> None:
    for device in devices:
        for line in device.table:
            print(printable(f"create {device.name}: {line}"))
    for operation in operations:
        print(printable(f"{operation.device or devices[-1].name}: {operation.text}"))
    for device in reversed(devices):
        print(printable(f"remove {device.name}"))


def _emit(outcome: Answer, *, as_json: bool) -> None:
    if as_json:
        emit_json_line(outcome.as_dict())
    else:
        for line in outcome.text.splitlines():
            print(printable(line), flush=True)
    if outcome.reason:
        say(f"dmcopy: {outcome.reason}")
