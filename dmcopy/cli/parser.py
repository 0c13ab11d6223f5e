"""An argument parser that says what a typo probably meant."""

from __future__ import annotations

import argparse
import re
import sys
from typing import NoReturn

from dmcopy.errors import ExitCode
from dmcopy.suggest import did_you_mean


class Parser(argparse.ArgumentParser):
    """argparse's parser with examples kept as typed, whole option names, and suggestions."""

    def __init__(self, **kwargs: object) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(**kwargs)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        """Print one sentence and where the help is; exit 2."""
        hint = self._suggestion(message)
        if hint:
            # The list of what could be is of no use to somebody who has mistyped one of it.
            message = re.sub(r" \(choose from .*\)", "", message)
        print(f"{self.prog}: {message}{hint}; see '{self.prog} --help'", file=sys.stderr)
        sys.exit(ExitCode.USAGE)

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """Exit when what was printed, such as the help, is out: later nobody would say why not."""
        sys.stdout.flush()
        super().exit(status, message)

    def _suggestion(self, message: str) -> str:
        choice = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if choice:
            # Newer Pythons print the choices without quotes.
            return did_you_mean(choice[1], [word.strip("'") for word in choice[2].split(", ")])
        unknown = re.search(r"unrecognized arguments: (-\S+)", message)
        if unknown:
            return did_you_mean(unknown[1], _options(self))
        return ""


def seconds(text: str) -> float:
    """Return a number of seconds of the command line, for argparse's `type`."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def _options(parser: argparse.ArgumentParser) -> list[str]:
    """Return the options of a parser and of its verbs: it is the outermost that argparse asks."""
    found = list(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found += [option for verb in action.choices.values() for option in _options(verb)]
    return found
