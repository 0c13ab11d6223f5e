"""Run in a process of its own: every command that there is, each with its exit code.

The codes go to the file `codes`. Some of the commands succeed and others fail, in whatever way they
do on this machine: what they have in common is that nothing about the streams changes it.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from dmcopy.cli import dm, main, streams
from dmcopy.cli.parser import verbs_of as subparsers

NONE = "dmcopy-no-such"
ALONE = {
    "demo": ["--folder", NONE],
    "doctor": [],
    "completion": ["bash"],
    "guide": [],
    "schema": [],
    "copy": ["big", "other", "small", "--on-error", "skip", "--verify"],
    "zero": ["zeroed", "--verify"],
    "explore": ["dmcopy.units:parse_sectors", "--seeds", "0-1", "--workers", "1"],
    "serve": ["--table", "0 8 no-such-target"],
}
WORDS = {
    "devices list": [],
    "devices watch": ["--timeout", "0"],
    "devices who": ["big"],
    "dm create": [NONE, "--table", "0 8 no-such-target"],
    "dm with": [NONE, "--table", "0 8 no-such-target", "--", "true"],
    "dm rename": [NONE, "dmcopy-neither"],
    "dm message": [NONE, "0", "word"],
    "dm run": ["--engine", "user", "--table", "0 8 zero", "read 0 8", "verify 0 8 0x5a"],
    "dm stats": ["list", NONE],
    "dm explain": ["0 8 linear /dev/null 0"],
    "dm help": [],
    **{f"dm {verb}": ["--dry-run"] for verb in (*dm.PASSED_ON, "reap")},
    **{f"dm {verb}": [] for verb in ("ls", "targets", "tree", "version", "events")},
    "snapshot take": [NONE, "/dev/dmcopy-neither", "/dev/dmcopy-nor"],
    "snapshot extend": [NONE, "+8"],
    "snapshot status": [],
    "mirror make": [NONE, "--leg", "/dev/dmcopy-neither", "--leg", "/dev/dmcopy-nor"],
    "mirror status": [],
    "mirror fail": [NONE, "1"],
    "mirror replace": [NONE, "1", "/dev/dmcopy-neither"],
    "mirror split": [NONE, "1", "--drop"],
    "mirror move": [NONE, "/dev/dmcopy-neither", "/dev/dmcopy-nor"],
    "mirror check": ["big", "other"],
    "cow extract": ["--origin", "origin", "--cow", "cow", "extracted"],
    "cow merge": ["merged", "merged-cow"],
    "cow check": ["damaged"],
    "cow diff": ["cow", "--origin", "origin"],
    **{f"cow {verb}": ["cow"] for verb in ("info", "dump", "map")},
    **{f"mirror-log {verb}": ["big"] for verb in ("info", "dump", "check")},
    **{f"write-log {verb}": ["big"] for verb in ("info", "dump", "check")},
    "write-log replay": ["big", "other"],
    "vm kernels": [],
    "vm run": ["--timeout", "0", "--", "true"],
    "vm shell": [],
    "vm test": [],
}


def commands() -> Iterator[list[str]]:
    """Yield each verb of each noun with its words; most take the name of a device."""
    yield ["--help"]
    yield ["copy", "--verfy"]
    for noun in main.NOUNS:
        verbs = list(subparsers(subparsers(main._build_parser(noun))[noun]))
        if not verbs:
            yield [noun, *ALONE[noun]]
        for verb in verbs:
            yield [noun, verb, *WORDS.get(f"{noun} {verb}", [NONE])]


def ended(words: list[str]) -> int:
    sys.argv = ["dmcopy", *words]
    try:
        return main.main()
    except SystemExit as stop:  # argparse's own refusals
        return int(stop.code or 0)


if __name__ == "__main__":
    streams.PATIENCE_SECONDS = 0.0  # type: ignore[misc]
    build = functools.cache(main._build_parser)  # most of the time goes there
    main._build_parser = lambda noun, _wanted=None: build(noun)  # type: ignore[assignment,misc]
    sys.modules["pytest"] = None  # type: ignore[assignment]  # `vm test` would become it
    Path("codes").write_text(json.dumps({" ".join(words): ended(words) for words in commands()}))
