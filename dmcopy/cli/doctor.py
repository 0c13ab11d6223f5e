"""`dmcopy doctor`: what works on this machine, and what to install for the rest."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final

from dmcopy.cli.output import add_json, emit_json, emit_table, say
from dmcopy.errors import ExitCode

if TYPE_CHECKING:
    from dmcopy.cli.checks import Check

_NOTES: Final = """\
Only the lines marked 'needed' are needed to copy files and devices; the rest are for the parts that
they name. Ends with 5 when something needed is missing.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _NOTES
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print one line for each check."""
    import dataclasses

    from dmcopy.cli.checks import CHECKS

    found = [check for group in CHECKS for check in group()]
    lacking = [check.name for check in found if check.needed and not check.ok]
    if args.json:
        emit_json({"ok": not lacking, "checks": [dataclasses.asdict(check) for check in found]})
    else:
        emit_table(["", "WHAT", "FOUND", "TO GET IT"], [_row(check) for check in found])
    if lacking:
        say(f"dmcopy: copying cannot work here without: {', '.join(lacking)}")
    return ExitCode.MISSING if lacking else ExitCode.OK


def _row(check: Check) -> list[str]:
    state = "ok" if check.ok else "missing"
    name = f"{check.name} (needed)" if check.needed else check.name
    return [state, name, check.detail, "" if check.ok else check.fix]
