"""`dmcopy schema [NOUN [VERB]]`: JSON Schemas of what the commands print with --json.

A schema's `commands` are those that print it; its `version` grows when a reader of the last one
could misunderstand the new one. A property may be added without that, so a reader passes over what
it does not know. `lines`: there is one such object for each line.
"""

from __future__ import annotations

import argparse
from typing import Any, Final

from dmcopy.cli.output import add_json, emit_json, emit_table
from dmcopy.errors import UsageError
from dmcopy.suggest import did_you_mean

_EXAMPLES: Final = """\
examples:
  dmcopy schema                         which commands have one, and its version
  dmcopy schema cow info                what 'dmcopy cow info --json' prints
  dmcopy schema progress                what '--progress=json' prints on stderr
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EXAMPLES
    parser.add_argument(
        "command",
        nargs="*",
        metavar="NOUN VERB",
        help="the command (default: list all that have one)",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print one schema, or the commands that have one."""
    found = schemas()
    command = " ".join(args.command)
    if command in found:
        emit_json(found[command])
        return 0
    if args.command:
        hint = did_you_mean(command, list(found))
        raise UsageError(f"there is no schema for '{command}'{hint}: see 'dmcopy schema'")
    facts = [
        {key: found[name][key] for key in ("title", "version")}
        | {"command": name, "lines": "lines" in found[name]}
        for name in sorted(found)
    ]
    if args.json:
        emit_json(facts)
    else:
        rows = [[str(one[key]) for key in ("command", "version", "title")] for one in facts]
        emit_table(["COMMAND", "VERSION", "WHAT IT PRINTS"], rows)
    return 0


def schemas() -> dict[str, dict[str, Any]]:
    import json
    from importlib import resources

    found = {}
    for entry in resources.files("dmcopy").joinpath("schemas").iterdir():
        schema = json.loads(entry.read_text(encoding="utf-8"))
        found.update(dict.fromkeys(schema["commands"], schema))
    return found
