"""What `dmcopy snapshot` and `dmcopy mirror` share: the journal, and giving a workflow up."""

from __future__ import annotations

import argparse

from dmcopy.cli.output import emit_json, printable, say
from dmcopy.errors import ExitCode
from dmcopy.workflows.journal import Journal, NoJournal

FORGET = "give up what was interrupted, and change no device"


def open_journal(*, dry_run: bool = False) -> Journal:
    """Return the journal; say which of its records are damaged."""
    journal = NoJournal() if dry_run else Journal()
    for damaged in journal.damaged():
        say(printable(f"dmcopy: {damaged}"))
    return journal


def code_of(journal: Journal) -> ExitCode:
    """Return what a command ends with that only shows the journal."""
    return ExitCode.MISMATCH if journal.damaged() else ExitCode.OK


def emit_done(args: argparse.Namespace, sentence: str) -> None:
    """Print what became of an interrupted workflow."""
    if args.json:
        emit_json({"name": args.name, "done": sentence})
    else:
        say(printable(sentence))
