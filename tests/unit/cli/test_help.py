"""What `--help` says: of each verb what it does, an example, every option, and how it ends."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import pytest

from dmcopy.cli.main import NOUNS, _build_parser, main
from dmcopy.cli.parser import Parser
from dmcopy.errors import ExitCode


def subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def verbs(*nouns: str) -> Iterator[argparse.ArgumentParser]:
    for noun in nouns:
        yield from subparsers(subparsers(_build_parser(noun))[noun]).values()


DEVICES = list(verbs("snapshot", "cow", "mirror", "mirror-log"))


@pytest.mark.parametrize("verb", DEVICES, ids=lambda verb: verb.prog)
def test_a_verb_says_what_it_does_with_an_example(verb: Parser) -> None:
    text = verb.format_help()
    assert verb.description
    assert f"  {verb.prog} " in text.partition("examples:")[2]
    assert "Ends with 0 " in text
    assert [
        action.dest for action in verb._actions if action.option_strings and not action.help
    ] == []


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
        ("help snapshto", "invalid choice: 'snapshto' (did you mean 'snapshot'?)"),
        ("copyy a copy", "invalid choice: 'copyy' (did you mean 'copy'?)"),
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
