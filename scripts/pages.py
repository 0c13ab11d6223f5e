"""Makes the man pages and the shells' completions where a wheel is built: a build hook of hatch.

Both are made of the parser, so that they say what `--help` says. In a checkout too: an editable
installation has them in the virtual environment's `share`.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # what is built here, and no other dmcopy

import shtab  # noqa: E402
from argparse_manpage.manpage import Manpage  # noqa: E402

from dmcopy import __version__  # noqa: E402
from dmcopy.cli.completion import FILES  # noqa: E402
from dmcopy.cli.main import NOUNS, _build_parser  # noqa: E402
from dmcopy.cli.parser import verbs_of  # noqa: E402
from dmcopy.errors import ExitCode  # noqa: E402

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # in the tests of the rest
    BuildHookInterface = object

# Of the words that stand for something in the help: mapped devices by name; files and devices.
NAMED = {"NAME", "ORIGIN"}
PATHS = {"SRC", "DST", "DEV", "FILE", "COW", "LEG", "LOG", "NEWDEV", "FROM", "TO", "OUT", "A", "B"}
PATHS |= {"O", "DIR", "DEV|core", "O COW", "COW", "ORIGIN COW", "[FILE] OPERATION"}

NAMES = {
    "bash": "_dmcopy_names",
    "zsh": "_dmcopy_names",
    "fish": "(for file in /sys/block/dm-*/dm/name; cat $file; end)",
}
PREAMBLE = {
    "bash": """
_dmcopy_names() {
  compgen -W "$(cat /sys/block/dm-*/dm/name 2>/dev/null)" -- "$1"
}
""",
    "zsh": """
_dmcopy_names() {
  local -a names=(/sys/block/dm-*/dm/name(N))
  names=(${(f)"$(cat /dev/null $names)"})
  compadd -a names
}
""",
}


class CustomBuildHook(BuildHookInterface):  # type: ignore[misc, valid-type]
    """Puts man pages and completions among a wheel's shared data."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Make them in a folder of their own, which `finalize` removes."""
        del version
        self.folder = tempfile.TemporaryDirectory()
        for place, text in files().items():
            path = Path(self.folder.name, place)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            build_data["shared_data"][str(path)] = place

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove them again."""
        del version, build_data, artifact_path
        self.folder.cleanup()


def files() -> dict[str, str]:
    """Return all texts, by where they are installed."""
    completions = {place: completion(shell) for shell, place in FILES.items()}
    return completions | {f"share/man/man1/{name}.1": text for name, text in man_pages()}


def completion(shell: str) -> str:
    """Return what `shell` completes with."""
    parser = _build_parser(None, whole=True)
    for one in _all(parser):
        for action in one._actions:
            if action.metavar == "TOPIC":
                action.choices = sorted(path.stem for path in ROOT.glob("dmcopy/guide/*.md"))
            elif action.metavar in NAMED:
                action.complete = NAMES  # type: ignore[attr-defined]
            elif action.metavar in PATHS:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    return shtab.complete(parser, shell, preamble=PREAMBLE)


def man_pages() -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each page: dmcopy, and dmcopy-NOUN for each noun."""
    top = _build_parser(None)
    nouns = verbs_of(top)
    codes = {"0": "done", **_CODES}
    top._action_groups[0]._group_actions[:] = []  # the nouns have pages of their own
    page = _page(top, "dmcopy", "the kernel's kcopyd in userspace, and dm-snapshot and dm-mirror")
    page.add_section("commands", ">", _list({f"dmcopy-{k}(1)": v for k, v in NOUNS.items()}))
    page.add_section("exit status", ">", _list(codes))
    yield "dmcopy", str(page)
    for noun in nouns:
        yield f"dmcopy-{noun}", str(_noun_page(noun))


_CODES = {
    str(int(code)): text
    for code, text in {
        ExitCode.FAILED: "failed",
        ExitCode.USAGE: "the command line is wrong, or asks for what cannot be",
        ExitCode.PARTIAL: "some destination, leg or block failed, and the rest is good",
        ExitCode.MISMATCH: "a verification found a difference, or metadata contradicts itself",
        ExitCode.MISSING: "this machine lacks something that is needed",
        ExitCode.BUSY: "a device is in use",
        ExitCode.INTERRUPTED: "interrupted",
    }.items()
}


def _noun_page(noun: str) -> Manpage:
    parser = verbs_of(_build_parser(noun))[noun]
    examples, notes, status = _told(parser)
    for verb in verbs_of(parser).values():
        for all_of_them, own in zip((examples, notes, status), _told(verb), strict=True):
            all_of_them += [line for line in own if line not in all_of_them]
        verb.epilog = verb.description = None  # the summary is there already
    parser.epilog = None
    if verbs_of(parser):
        parser._positionals.title = "verbs"
    _leave_out_what_has_no_help(parser)
    page = _page(parser, f"dmcopy-{noun}", NOUNS[noun])
    for heading, lines in (("examples", examples), ("notes", notes)):
        if lines:
            page.add_section(heading, ">", f".nf\n{_escaped(chr(10).join(lines))}\n.fi")
    ends = " ".join(status) or "0 when all is well; dmcopy(1) lists the others."
    page.add_section("exit status", ">", _escaped(ends))
    page.add_section("see also", ">", "dmcopy(1), dmsetup(8)")
    return page


def _page(parser: argparse.ArgumentParser, name: str, summary: str) -> Manpage:
    data = {"project_name": "dmcopy", "version": __version__, "manual_title": "dmcopy"}
    page = Manpage(parser, _data=data, format="single-commands-section")
    page.prog = name
    page.description = summary
    return page


def _told(parser: argparse.ArgumentParser) -> tuple[list[str], list[str], list[str]]:
    """Return the lines of a help's end: its examples, how the command ends, and the rest."""
    examples: list[str] = []
    notes: list[str] = []
    status: list[str] = []
    for block in (parser.epilog or "").strip("\n").split("\n\n"):
        lines = block.splitlines()
        if lines[:1] == ["examples:"]:
            examples += lines[1:]
        elif block.startswith("Ends with "):
            status += lines
        elif lines:
            notes += ["", *lines] if notes else lines
    return examples, notes, status


def _leave_out_what_has_no_help(parser: argparse.ArgumentParser) -> None:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            told = {choice.dest for choice in action._choices_actions}
            for name in [name for name in action.choices if name not in told]:
                del action.choices[name]


def _all(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for verb in verbs_of(parser).values():
        yield from _all(verb)


def _list(items: dict[str, str]) -> str:
    return "\n".join(f".TP\n.B {_escaped(name)}\n{_escaped(text)}" for name, text in items.items())


def _escaped(text: str) -> str:
    """Return text as roff takes it: no backslash, hyphen, quote or dot of it is an instruction."""
    text = text.replace("\\", "\\e").replace("-", r"\-").replace("'", r"\(aq").replace("`", r"\(ga")
    return re.sub(r"(?m)^\.", r"\\&.", text)
