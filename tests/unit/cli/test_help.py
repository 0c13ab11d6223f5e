"""What `--help` says: of each verb what it does, an example, every option, and how it ends."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import pytest

from dmcopy.cli.main import NOUNS, _build_parser, main
from dmcopy.cli.parser import Parser
from dmcopy.cli.parser import verbs_of as subparsers
from dmcopy.errors import ExitCode


def verbs(*nouns: str) -> Iterator[argparse.ArgumentParser]:
    for noun in nouns:
        yield from subparsers(subparsers(_build_parser(noun))[noun]).values()


DEVICES = list(verbs("snapshot", "cow", "mirror", "mirror-log", "write-log"))


@pytest.mark.parametrize("verb", DEVICES, ids=lambda verb: verb.prog)
def test_a_verb_says_what_it_does_with_an_example(verb: Parser) -> None:
    text = verb.format_help()
    assert verb.description
    assert f"  {verb.prog} " in text.partition("examples:")[2]
    assert "Ends with 0 " in text


def every_parser(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for verb in subparsers(parser).values():
        yield from every_parser(verb)


def test_every_word_that_a_command_takes_is_explained() -> None:
    silent = [
        f"{parser.prog} {action.metavar or action.dest}"
        for parser in every_parser(_build_parser(None, whole=True))
        for action in parser._actions
        if not action.help and not isinstance(action, argparse._SubParsersAction)
    ]
    assert silent == []


def test_a_number_of_any_length_is_refused_in_one_short_sentence() -> None:
    """By each option and operand that takes one: Python refuses 4,301 digits in words of its own.

    What is a name or a path takes it.
    """
    said: list[str] = []
    for parser in every_parser(_build_parser(None, whole=True)):
        for action in parser._actions:
            for before in ("", "-", "0-", "a="):
                try:
                    parser._get_value(action, before + "9" * 5000)
                except argparse.ArgumentError as error:
                    said.append(f"{parser.prog}: {error}")
    assert said
    assert [text for text in said if "invalid" in text or len(text) > 250] == []


@pytest.mark.parametrize(
    ("words", "short", "long"),
    [
        ("snapshot take a b c", "-c 16 -t -f", "--chunk-size 16 --dry-run --force"),
        ("snapshot watch a", "-i 3 -f", "--interval 3 --force"),
        ("mirror make a --leg b --leg c", "-R 512K -t -f", "--region-size 512K --dry-run --force"),
        ("mirror status", "--watch -i 3", "--watch --interval 3"),
        ("cow check c", "-c 16", "--chunk-size 16"),
    ],
)
def test_short_options_are_those_of_lvm(words: str, short: str, long: str) -> None:
    parser = _build_parser(words.split()[0])
    assert parser.parse_args([*words.split(), *short.split()]) == parser.parse_args(
        [*words.split(), *long.split()]
    )


def test_every_noun_has_a_help() -> None:
    for noun in NOUNS:
        assert "options:" in subparsers(_build_parser(noun))[noun].format_help()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            "cow info --jsno c",
            "dmcopy cow info: unrecognized arguments: --jsno (did you mean '--json'?)",
        ),
        ("mirror status a --json b", "dmcopy mirror status: unrecognized arguments: b"),
        ("cow inof c", "dmcopy cow: argument VERB: invalid choice: 'inof' (did you mean 'info'?)"),
        ("copy a b --dpeth 3", "dmcopy copy: unrecognized arguments: --dpeth (did you mean"),
        ("cow extract --origni o --cow c out", "--origni (did you mean '--origin'?)"),
        ("snapshot take a --dry-rnu", "--dry-rnu (did you mean '--dry-run'?)"),
        ("dm message a --uu b --dyr", "dm message: unrecognized arguments: --dyr"),
        (
            "mirror fail home --json",
            "dmcopy mirror fail: the following arguments are required: LEG",
        ),
        ("help snapshto", "invalid choice: 'snapshto' (did you mean 'snapshot'?)"),
        ("copyy a copy", "invalid choice: 'copyy' (did you mean 'copy'?)"),
        ("dm --engine user cretae a", "invalid choice: 'cretae' (did you mean 'create'?)"),
        ("write-log --limit 3 dmup log", "invalid choice: 'dmup' (did you mean 'dump'?)"),
    ],
)
def test_a_typo_is_told_by_the_verb(
    words: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words.split())
    assert ended.value.code == ExitCode.USAGE
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("", "usage: dmcopy [-h]"),
        ("help", "usage: dmcopy [-h]"),
        ("help copy", "usage: dmcopy copy [-h]"),
        ("help dm create", "usage: dmcopy dm create [-h]"),
        ("-V", "dmcopy "),
    ],
)
def test_help_is_found_by_whoever_looks_for_it(
    words: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words.split())
    out, err = capsys.readouterr()
    assert (ended.value.code, err) == (0, "")
    assert out.startswith(says)
