"""An argument parser that says what a typo probably meant."""

from __future__ import annotations

import argparse
import re
import sys
from typing import Any, Final, NoReturn

from dmcopy.errors import ExitCode, UsageError
from dmcopy.suggest import did_you_mean
from dmcopy.units import parse_count, parse_sectors, quoted

_MOST_SECONDS: Final = 1e8  # three years: what is longer no system call takes as a timeout


class Parser(argparse.ArgumentParser):
    """argparse's parser with examples kept as typed, whole option names, and suggestions."""

    def __init__(self, **kwargs: object) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(**kwargs)  # type: ignore[arg-type]
        self.register("type", int, whole)
        self.register("type", float, seconds)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse; what is unknown is said here, where the verb and its help are known."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown

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


def whole(text: str) -> int:
    """Return a number of the command line; it is what argparse's `type=int` stands for."""
    try:
        return parse_count(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def seconds(text: str) -> float:
    """Return a number of seconds of the command line; argparse's `type=float` stands for it."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= _MOST_SECONDS:
        raise argparse.ArgumentTypeError(
            f"{quoted(text)} is not a number of seconds from 0 to {_MOST_SECONDS:.0e}"
        )
    return value


def size(text: str) -> int:
    """Return a size in sectors of the command line, for argparse's `type`."""
    try:
        return parse_sectors(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def share_help(noun: Parser) -> None:
    """Give the verbs of a noun their summary, and what the noun's help says of them.

    That is, of its examples those of the verb, and everything that follows them. A verb that has
    more to say says it all itself.
    """
    for action in noun._actions:
        if isinstance(action, argparse._SubParsersAction):
            summaries = {choice.dest: choice.help for choice in action._choices_actions}
            for name, verb in action.choices.items():
                verb.description = verb.description or summaries.get(name)
                verb.epilog = verb.epilog or _epilog_of_verb(noun.epilog or "", verb.prog)


def _epilog_of_verb(epilog: str, prog: str) -> str:
    examples, _, rest = epilog.partition("\n\n")
    title, *lines = examples.splitlines() or [""]
    own = [line for line in lines if f"{line.strip()} ".startswith(f"{prog} ")]
    return "\n".join([title, *own, "", rest] if own else [rest])


def _options(parser: argparse.ArgumentParser) -> list[str]:
    """Return the options of a parser and of its verbs: it is the outermost that argparse asks."""
    found = list(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found += [option for verb in action.choices.values() for option in _options(verb)]
    return found
