"""The parser of a verb of `dmcopy dm`, and what all verbs that change something take."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from dmcopy.cli.parser import Parser, seconds


class VerbParser(Parser):
    """A verb's parser; one with `takes_command` leaves what follows `--` alone, `takes_all` all.

    argparse has no way to say this: a REMAINDER swallows the options between a name and the `--`.
    """

    abbreviates = True  # as getopt_long has it, and so dmsetup
    takes_command = False
    takes_all = False

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        """Parse what is before the `--`; what follows is `command`."""
        words = list(args or [])
        if self.takes_all:
            found, _ = Parser.parse_known_args(self, [], namespace)
            found.words = words
            return found, []
        cut = words.index("--") if self.takes_command and "--" in words else len(words)
        found, unknown = Parser.parse_known_args(self, words[:cut], namespace)
        if self.takes_command:
            found.command = words[cut + 1 :]
        return found, unknown


def changing(
    verbs: argparse._SubParsersAction[VerbParser],
    name: str,
    text: str,
    verb: Callable[[argparse.Namespace], object],
    *,
    aliases: tuple[str, ...] = (),
) -> VerbParser:
    parser = verbs.add_parser(name, help=text, description=text, aliases=aliases)
    parser.add_argument(
        "--dry-run", action="store_true", help="print the dmsetup commands, and change nothing"
    )
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=30.0,
        metavar="S",
        help="give up after S seconds",
    )
    parser.add_argument(
        "--noudevsync", action="store_true", help="do not wait until udev has made the node"
    )
    parser.set_defaults(verb=verb)
    return parser
