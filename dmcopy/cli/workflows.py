"""What `dmcopy snapshot` and `dmcopy mirror` share: verbs, mapper, session, how one was ended."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from dmcopy.cli.options import add_engine, add_progress, engine_of
from dmcopy.cli.output import add_json, emit_json, printable, refuse_json, say
from dmcopy.cli.parser import seconds
from dmcopy.errors import ExitCode
from dmcopy.ledger import NoLedger
from dmcopy.mapper.dmsetup import ScriptDmsetup
from dmcopy.mapper.kernel import KernelMapper
from dmcopy.mapper.served import ServedMapper
from dmcopy.mapper.served_script import ServedScript
from dmcopy.workflows.journal import Journal, NoJournal, user_folder
from dmcopy.workflows.mirror_resync import ignore
from dmcopy.workflows.session import Session

Verb = Callable[[argparse.Namespace], int | None]

_CALL_SECONDS = 30.0


def run(args: argparse.Namespace) -> int:
    verb: Verb = args.verb
    args.mapper = open_mapper(args)
    return verb(args) or ExitCode.OK


def open_mapper(args: argparse.Namespace) -> KernelMapper | ServedMapper:
    """Return the engine's mapper, or one that prints dmsetup's commands."""
    if engine_of(args) == "user":
        if args.dry_run:
            refuse_json(args)
            return ServedScript(timeout=args.call_timeout)
        return ServedMapper(timeout=args.call_timeout)
    if args.dry_run:
        refuse_json(args)
        return KernelMapper(ScriptDmsetup(), ledger=NoLedger(), timeout=args.call_timeout)
    return KernelMapper(timeout=args.call_timeout)


def open_session(args: argparse.Namespace, observer: Callable[[Any], object] = ignore) -> Session:
    """Return a session over the journal, or a trial."""
    return Session(args.mapper, open_journal(args), observer)


def open_journal(args: argparse.Namespace) -> Journal:
    """Return the journal of the engine's workflows; say which of its records are damaged."""
    if args.dry_run:
        return NoJournal()
    journal = Journal(user_folder() if engine_of(args) == "user" else None)
    for damaged in journal.damaged():
        say(printable(f"dmcopy: {damaged}"))
    return journal


def add_verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str, verb: Verb
) -> argparse.ArgumentParser:
    """Declare a verb that changes nothing on devices."""
    parser = verbs.add_parser(name, help=text, description=text)
    parser.add_argument(
        "--call-timeout",
        type=seconds,
        default=_CALL_SECONDS,
        metavar="S",
        help=f"limit of each command of dmsetup (default: {_CALL_SECONDS:g})",
    )
    add_engine(parser)
    parser.set_defaults(verb=verb, dry_run=False)
    return parser


def add_change(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str, verb: Verb
) -> argparse.ArgumentParser:
    """Declare a verb that changes devices, and can be tried."""
    parser = add_verb(verbs, name, text, verb)
    add_json(parser)
    text = "print the commands of dmsetup, and change nothing"
    parser.add_argument("-t", "--dry-run", action="store_true", help=text)
    return parser


def add_forget(verbs: argparse._SubParsersAction[argparse.ArgumentParser], noun: str) -> None:
    """Declare the verb that gives a workflow up."""
    text = "give up what was interrupted, and change no device"

    def forget(args: argparse.Namespace) -> None:
        emit_done(args, open_session(args).forget(noun, args.name))

    parser = add_verb(verbs, "forget", text, forget)
    parser.add_argument("name", metavar="NAME", help=f"the {noun}")
    add_json(parser)


def add_timeout(parser: argparse.ArgumentParser, what: str) -> None:
    """Declare how long the whole command may wait, and how it tells how far it is."""
    parser.add_argument(
        "--timeout",
        type=seconds,
        metavar="S",
        help=f"wait no longer; the {what} continues (default: wait until it is done)",
    )
    add_progress(parser)


def code_of(journal: Journal) -> ExitCode:
    """Return what a command ends with that only shows the journal."""
    return ExitCode.MISMATCH if journal.damaged() else ExitCode.OK


def emit_done(args: argparse.Namespace, sentence: str) -> None:
    """Print what became of an interrupted workflow."""
    if args.json:
        emit_json({"name": args.name, "done": sentence})
    else:
        say(printable(sentence))
