"""An argument parser that takes options anywhere, and says what a typo probably meant."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Collection
from typing import Any, ClassVar, Final, NoReturn

from dmcopy.cli import streams
from dmcopy.cli.output import printable, terminal_width
from dmcopy.cli.shown import brief
from dmcopy.errors import ExitCode, UsageError
from dmcopy.suggest import did_you_mean
from dmcopy.units import parse_count, parse_sectors, quoted

_MOST_SECONDS: Final = 1e8  # three years: what is longer no system call takes as a timeout

_NUMBER: Final = re.compile(r"-\d+|-\d*\.\d+")  # as argparse has it


class _Help(argparse.RawDescriptionHelpFormatter):
    """The help, as wide as the terminal: argparse by itself would ask shutil for the width."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=terminal_width() - 2)


class UndeclaredError(Exception):
    """A parser that knows some of its verbs only is to say what is wrong: have the whole say it."""


class Parser(argparse.ArgumentParser):
    """argparse's parser with examples kept as typed, options anywhere, and suggestions.

    Options may stand before, between and after operands, and before the verb: getopt sorts them so
    (man 3 getopt), and fingers have learned it. argparse by itself gives all operands away at the
    first of them, and takes no option of a verb before the verb.
    """

    abbreviates: ClassVar[bool] = False  # whether the beginning of an option's name is enough
    wanted: Collection[str] | None = None
    """Of the verbs below, those that are declared in full; None: all. See `_Verbs`."""

    def __init__(self, **kwargs: object) -> None:
        kwargs.setdefault("formatter_class", _Help)
        kwargs.setdefault("allow_abbrev", self.abbreviates)
        super().__init__(**kwargs)  # type: ignore[arg-type]
        self._words: list[str] = []
        self.register("action", "parsers", _Verbs)
        self.register("type", int, whole)
        self.register("type", float, seconds)

    def add_subparsers(self, **kwargs: Any) -> Any:
        """Return what verbs are added to."""
        verbs = super().add_subparsers(**kwargs)
        assert isinstance(verbs, _Verbs)
        verbs.wanted = self.wanted
        return verbs

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse; what is unknown is said here, where the verb and its help are known."""
        words = list(sys.argv[1:] if args is None else args)
        self._words = words
        verbs = verbs_of(self)
        words = _verb_before_its_options(self, verbs, words) if verbs else _sorted(self, words)
        found, unknown = super().parse_known_args(words, namespace)
        unknown = [word for word in unknown if word != "--"]
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """Refuse a word that is empty, unless it is declared as any `str`: another command's."""
        words_of_others = action.nargs in (argparse.PARSER, argparse.REMAINDER)
        if action.type is None and "" in arg_strings and not words_of_others:
            empty = "it is empty: is a variable of the shell not set?"
            raise argparse.ArgumentError(action, empty)
        return super()._get_values(action, arg_strings)

    def error(self, message: str) -> NoReturn:
        """Print one sentence and where the help is, or the verbs of a noun alone; exit 2.

        Raises UndeclaredError instead where it could be about a verb that is not declared.
        """
        if self.wanted is not None:
            raise UndeclaredError
        if message.startswith("the following arguments are required"):
            # The one that is missing may be the one that was mistyped.
            unknown = next(filter(self._is_unknown, self._words), None)
            if unknown is None and message.endswith(": VERB"):
                self.print_help(sys.stderr)
                sys.exit(ExitCode.USAGE)
            message = f"unrecognized arguments: {unknown}" if unknown else message
        hint = self._suggestion(message)
        if hint:
            # The list of what could be is of no use to a user who has mistyped one of them.
            message = re.sub(r" \(choose from .*\)", "", message)
        text = brief(printable(f"{message}{hint}"))
        print(f"{self.prog}: {text}; see '{self.prog} --help'", file=sys.stderr)
        sys.exit(ExitCode.USAGE)

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """Exit when what was printed, such as the help, is out: later no error would be told."""
        super().exit(streams.finish(status), message)

    def _is_unknown(self, word: str) -> bool:
        name = word.partition("=")[0]
        known = any(
            option == name or (self.abbreviates and option.startswith(name))
            for option in _options(self)
        )
        return len(name) > 2 and name.startswith("--") and not known

    def _suggestion(self, message: str) -> str:
        choice = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if choice:
            # Newer Pythons print the choices without quotes.
            return did_you_mean(choice[1], [word.strip("'") for word in choice[2].split(", ")])
        unknown = re.search(r"unrecognized arguments: (-\S+)", message)
        if unknown:
            return did_you_mean(unknown[1].partition("=")[0], _options(self))
        return ""


class _Verbs(argparse._SubParsersAction):  # type: ignore[type-arg]
    """The verbs of a noun. Those that the command line does not name are there by name only.

    To declare them all takes longer than most commands of `dm`: one has some 50 verbs, with 800
    options.
    """

    wanted: Collection[str] | None = None

    def add_parser(self, name: str, **kwargs: Any) -> Any:
        """Return the parser of a verb, or what takes its declaration and forgets it."""
        aliases = kwargs.get("aliases", ())
        names = (name, *aliases)
        if self.wanted is None or any(one in self.wanted for one in names):
            return super().add_parser(name, **kwargs)
        if "help" in kwargs:
            self._choices_actions.append(self._ChoicesPseudoAction(name, aliases, kwargs["help"]))
        unnamed = _Unnamed()
        self._name_parser_map.update(dict.fromkeys(names, unnamed))
        return unnamed


class _Unnamed:
    """The parser of a verb that the command line does not name."""

    prog = ""
    description = epilog = None
    _actions = ()
    _option_string_actions: ClassVar[dict[str, argparse.Action]] = {}

    def add_argument(self, *_words: object, **_more: object) -> _Unnamed:
        return self

    add_argument_group = add_mutually_exclusive_group = set_defaults = add_argument


def whole(text: str) -> int:
    """Return a number of the command line; it is what argparse's `type=int` stands for."""
    try:
        return parse_count(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def positive(text: str) -> int:
    """Return a number from 1 on of the command line, for argparse's `type`."""
    value = whole(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is too small: give a number from 1 on")
    return value


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


def verbs_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parsers of a noun's verbs by name; empty for a parser without any."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _options(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Return the options of a parser and of its verbs: it is the outermost that argparse asks."""
    found = dict(parser._option_string_actions)
    for verb in verbs_of(parser).values():
        found = {**_options(verb), **found}
    return found


def _sorted(parser: Parser, words: list[str]) -> list[str]:
    """Return `words` with the options first, then `--` and the operands."""
    options: list[str] = []
    operands: list[str] = []
    left = _Left(parser, words)
    while left.words and left.words[0] != "--":
        taken = left.option()
        if taken and _takes_the_rest(parser, taken[0]):
            return [*options, *operands, *taken]
        options += taken
        if not taken:
            operands.append(left.words.pop(0))
    operands += left.words[1:]
    return [*options, "--", *operands] if operands else options


def _takes_the_rest(parser: Parser, option: str) -> bool:
    action = parser._option_string_actions.get(option)
    return action is not None and action.nargs == argparse.REMAINDER


def _verb_before_its_options(
    parser: Parser, verbs: dict[str, argparse.ArgumentParser], words: list[str]
) -> list[str]:
    """Return `words` with those options behind the verb that stood before it and are its own.

    Which word is the verb hangs on which options take a value, and that on the verb: it is the
    first word before which, by its own options, there is nothing but options.
    """
    for index, word in enumerate(words):
        if word not in verbs:
            continue
        before = _split(parser, verbs[word], words[:index])
        if before is not None:
            own, others = before
            return [*own, word, *others, *words[index + 1 :]]
    left = _Left(parser, words)
    if not {"-h", "--help", *verbs} & {*words}:
        # The verb was mistyped: it, and not an option's value, is what argparse is to complain of.
        while left.words and left.words[0] != "--" and left.option():
            pass
    return left.words or words


def _split(
    parser: Parser, verb: argparse.ArgumentParser, words: list[str]
) -> tuple[list[str], list[str]] | None:
    """Return the options in `words` that are the parser's own, and the verb's; None for others."""
    own: list[str] = []
    others: list[str] = []
    mine, its = _Left(parser, words, own=True), _Left(verb, words)
    while mine.words:
        taken = mine.option(known=True)
        if taken:
            own += taken
            its.words = list(mine.words)
            continue
        taken = its.option(known=not getattr(verb, "takes_all", False))
        if not taken:
            return None
        others += taken
        mine.words = list(its.words)
    return own, others


class _Left:
    """The words that are left, of which options are taken off the front as getopt reads them."""

    def __init__(
        self, parser: argparse.ArgumentParser, words: list[str], *, own: bool = False
    ) -> None:
        """Take the options of `parser` and its verbs, or only its `own`."""
        self.words = list(words)
        self._options = parser._option_string_actions if own else _options(parser)
        self._abbreviates = getattr(parser, "abbreviates", False)

    def option(self, *, known: bool = False) -> list[str]:
        """Take one option and its values; nothing where an operand comes first.

        What looks like an option and is none that is known is taken as one, for argparse to
        complain of, unless it must be `known`.
        """
        word = self.words[0]
        if not word.startswith("-") or word in ("-", "--"):
            return []
        name, equals, value = word.partition("=")
        if word.startswith("--"):
            name = self._whole(name)
        elif word not in self._options and not equals:
            cluster = self._cluster(word)
            if cluster:
                return cluster
        if name not in self._options:
            operand = _NUMBER.fullmatch(word) or " " in word
            return [] if known or operand else [self.words.pop(0)]
        self.words.pop(0)
        taken = [f"{name}={value}"] if equals else self._with_values(name)
        complete = taken != [name] or self._options[name].nargs is not None
        return taken if complete or not known else []

    def _whole(self, name: str) -> str:
        """Return the option that `name` is the beginning of, if there is just one."""
        if name in self._options or not self._abbreviates:
            return name
        found = {id(self._options[one]): one for one in self._options if one.startswith(name)}
        return next(iter(found.values())) if len(found) == 1 else name

    def _cluster(self, word: str) -> list[str]:
        """Take options of one letter in one word, the last with its value: -rn, -oname."""
        found: list[str] = []
        for place, letter in enumerate(word[1:], start=2):
            action = self._options.get(f"-{letter}")
            if action is None:
                return []
            found.append(f"-{letter}")
            if action.nargs != 0 and word[place:]:
                self.words.pop(0)
                return [*found[:-1], *_tied(found[-1], [word[place:]])]
        self.words.pop(0)
        return [*found[:-1], *self._with_values(found[-1])]

    def _with_values(self, name: str) -> list[str]:
        return _tied(name, self._values(self._options[name]))

    def _values(self, action: argparse.Action) -> list[str]:
        """Take the values of an option. What looks like an option is none, for most."""
        if action.nargs == argparse.REMAINDER:
            taken, self.words = self.words, []
            return taken
        taken = []
        most = 1 if action.nargs in (None, "?") else action.nargs
        while self.words and (not isinstance(most, int) or len(taken) < most):
            word = self.words[0]
            option = word.startswith("-") and word != "-" and not _NUMBER.fullmatch(word)
            if option and not getattr(action, "takes_dashes", False):
                break
            taken.append(self.words.pop(0))
        return taken


def _tied(name: str, values: list[str]) -> list[str]:
    """Return an option and its values; argparse wants one with a dash tied to the option."""
    if len(values) == 1 and values[0].startswith("-") and len(values[0]) > 1:
        return [f"{name}={values[0]}" if name.startswith("--") else f"{name}{values[0]}"]
    return [name, *values]
