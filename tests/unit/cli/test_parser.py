"""Options before, between and after operands, for every noun, as getopt sorts them."""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
from typing import Any

import pytest

from dmcopy.cli.main import NOUNS, _build_parser, main
from dmcopy.cli.parser import Parser, verbs_of
from dmcopy.errors import UsageError
from dmcopy.suggest import did_you_mean
from dmcopy.table.target import TARGETS

_build = functools.cache(_build_parser)


def parsed(*words: str, noun: str | None = None) -> dict[str, Any]:
    """Return what is read of the words, by a parser that has just these verbs as by the whole."""
    noun = noun or words[0]
    found = [vars(_build_parser(noun, wanted).parse_args(list(words))) for wanted in (words, None)]
    part, whole = ({k: v for k, v in one.items() if not callable(v)} for one in found)
    assert part == whole
    return whole


@pytest.mark.parametrize(
    ("first", "others"),
    [
        (
            "copy a b --verify --depth 4",
            ["copy --verify a --depth=4 b", "--depth 4 copy a --verify b"],
        ),
        (
            "copy a b c --map m --from 0",
            ["copy a --map m b --from 0 c", "--map m copy a b --from=0 c"],
        ),
        ("zero a b --dry-run", ["zero a --dry-run b", "--dry-run zero a b"]),
        (
            "cow diff a b --json",
            ["cow diff a --json b", "cow --json diff a b", "--json cow diff a b"],
        ),
        (
            "cow map a --svg f --width 3",
            ["cow --svg f map --width 3 a", "--width 3 cow map a --svg f"],
        ),
        ("mirror check a b --region-size 8", ["mirror check a --region-size 8 b"]),
        (
            "mirror split m 1 new --drop",
            ["mirror --drop split m 1 new", "mirror split m --drop 1 new"],
        ),
        (
            "snapshot take s o c --store N",
            ["snapshot take s --store N o c", "snapshot --store N take s o c"],
        ),
        (
            "vm run --kernel 6.1 -- uname -r",
            ["vm --kernel 6.1 run -- uname -r", "vm run uname --kernel 6.1 -- -r"],
        ),
        ("devices who /dev/a --json", ["devices --json who /dev/a", "devices who --json /dev/a"]),
    ],
)
def test_every_order_is_the_same_command(first: str, others: list[str]) -> None:
    noun = first.split()[0]
    wanted = parsed(*first.split())
    for other in others:
        assert parsed(*other.split(), noun=noun) == wanted, other


@pytest.mark.parametrize("noun", NOUNS)
def test_a_command_declares_only_the_verb_that_it_names(noun: str) -> None:
    """Most of what `dmcopy dm ls` did was to declare the 800 options of the other verbs."""
    verbs = list(verbs_of(verbs_of(_build_parser(noun))[noun]))
    for verb in verbs:
        known = verbs_of(verbs_of(_build_parser(noun, [noun, verb]))[noun])
        assert list(known) == verbs, "the others are known by their names"
        declared = {name for name, one in known.items() if isinstance(one, Parser)}
        assert declared in ({verb}, {"load", "reload"}), verb


@pytest.mark.parametrize(
    "line",
    [
        "dm",
        "dm crate",
        "dm --dry-run",
        "dm --dry-rnu",
        "dm --dry-rnu create a",
        "dm ls --jsn",
        "dm help crate",
        "dm help create",
        "dm --help",
        "snapshot --stroe",
        "cow inof a",
        "cow info",
        "cow info a b",
        "--jsn cow info a",
        "help dm",
    ],
)
def test_what_is_wrong_is_said_as_by_the_parser_that_knows_all_verbs(
    line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def said() -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(line.split())
        return stop.value.code, *capsys.readouterr()

    by_part = said()
    with monkeypatch.context() as patch:
        patch.setattr(
            "dmcopy.cli.main._build_parser", lambda noun, _wanted=None: _build_parser(noun)
        )
        assert by_part == said()


def test_what_takes_the_rest_of_the_line_takes_it_as_it_is() -> None:
    words = ["snapshot", "watch", "--at", "80", "s", "--run", "sh", "-c", "--at", "x", "y"]
    assert parsed(*words)["command"] == words[6:]
    assert parsed(*words)["name"] == "s"


class _Verb(Parser):
    abbreviates = True


def _toy() -> Parser:
    parser = _Verb(prog="toy")
    parser.add_argument("-f", "--flag", action="store_true")
    parser.add_argument("-n", "--number", type=int)
    parser.add_argument("--noflush", action="store_true")
    parser.add_argument("--nolockfs", action="store_true")
    parser.add_argument("-o", "--option", type=str)
    parser.add_argument("name")
    parser.add_argument("file", nargs="?")
    parser.add_argument("rest", nargs="*")
    return parser


def test_operands_keep_their_order_wherever_the_options_stand() -> None:
    options = (["-f"], ["--number", "-3"], ["-ovalue"])
    for places in itertools.product(range(4), repeat=3):
        words = ["a", "b", "c"]
        for place, option in sorted(zip(places, options, strict=True), key=lambda x: -x[0]):
            words[place:place] = option
        found = _toy().parse_args(words)
        assert (found.name, found.file, found.rest) == ("a", "b", ["c"]), words
        assert (found.flag, found.number, found.option) == (True, -3, "value"), words


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ("-fn3 a", {"flag": True, "number": 3, "name": "a"}),
        ("-fn 3 a", {"flag": True, "number": 3, "name": "a"}),
        ("a --num=3", {"number": 3}),
        ("a --num 3 --fl", {"number": 3, "flag": True}),
        ("a --nof", {"noflush": True, "nolockfs": False}),
        ("-- -f --", {"name": "-f", "file": None, "flag": False}),
        ("a -- --noflush", {"name": "a", "file": "--noflush", "noflush": False}),
        ("- -1", {"name": "-", "file": "-1"}),
        ("a --option=", {"option": ""}),
        ("a --option= b", {"option": "", "file": "b"}),
    ],
)
def test_options_are_read_as_getopt_reads_them(words: str, values: dict[str, object]) -> None:
    found = vars(_toy().parse_args(words.split()))
    assert {key: found[key] for key in values} == values


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("a --no", "ambiguous option: --no could match --noflush, --nolockfs"),
        ("a -fx", "argument -f/--flag: ignored explicit argument 'x'"),
        ("a --option --flag", "argument -o/--option: expected one argument"),
        ("a --number x", "'x' is not a whole number"),
        ("--flag", "the following arguments are required: name"),
        ("a --fing", "unrecognized arguments: --fing; see"),
        ("a --flga", "(did you mean '--flag'?)"),
    ],
)
def test_what_is_wrong_is_said(words: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _toy().parse_args(words.split())
    assert says in capsys.readouterr().err


def test_an_option_before_a_verb_goes_to_the_verb() -> None:
    parser = Parser(prog="toy")
    parser.add_argument("--json", action="store_true")
    verbs = parser.add_subparsers(dest="verb", required=True, parser_class=Parser)
    take = verbs.add_parser("take")
    take.add_argument("-o", "--origin")
    take.add_argument("names", nargs="*")
    verbs.add_parser("drop").add_argument("--origin", action="store_true")

    def read(words: str) -> argparse.Namespace:
        found: argparse.Namespace = parser.parse_args(words.split())
        return found

    # Which word is the verb hangs on whether --origin takes a value, and that on the verb.
    assert (read("--origin x take a").origin, read("--origin x take a").verb) == ("x", "take")
    assert (read("--origin drop").origin, read("--origin drop").verb) == (True, "drop")
    found = read("-o x --json take drop take")
    assert (found.json, found.origin, found.names) == (True, "x", ["drop", "take"])


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("lineer", "linear"),
        ("linaer", "linear"),
        ("Linear", "linear"),
        ("zer", "zero"),
        ("snap", "snapshot"),
        ("stripe", "striped"),
        ("raid1", "raid"),
        ("linear", ""),  # the same word
        ("tomorrow", ""),
        ("origin", ""),
        ("x", ""),
        ("", ""),
        ("--", ""),
    ],
)
def test_a_suggestion_is_near_or_there_is_none(word: str, meant: str) -> None:
    hint = did_you_mean(word, TARGETS)
    assert hint == (f" (did you mean '{meant}'?)" if meant else "")


@pytest.mark.parametrize("noun", ["dm", "snapshot", "mirror", "cow", "vm"])
def test_a_noun_alone_is_answered_with_its_verbs(
    noun: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """On stderr and as a mistake, as dmsetup does it."""
    with pytest.raises(SystemExit) as stop:
        main([noun])
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, "")
    assert err.startswith(f"usage: dmcopy {noun} ")
    assert "examples:\n" in err


def _verbs(noun: str) -> list[tuple[list[str], argparse.ArgumentParser]]:
    parser = verbs_of(_build_parser(noun))[noun]
    return [([noun, name], verb) for name, verb in verbs_of(parser).items()] or [([noun], parser)]


@pytest.mark.parametrize("noun", NOUNS)
def test_an_empty_word_is_refused_wherever_it_stands(
    noun: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is a variable of the shell that is not set, and seldom what was meant."""
    for words, verb in _verbs(noun):
        actions = [one for one in verb._actions if one.nargs not in (0, argparse.REMAINDER)]
        needed = [one for one in actions if not one.option_strings and one.required]
        for action in actions:
            if action.type is str:
                continue  # what another command is given
            line = [
                str(next(iter(one.choices or "1"))) if one is not action else "" for one in needed
            ]
            if action.option_strings:
                line += [action.option_strings[-1], ""]
            elif action not in needed:
                line += [""]
            with pytest.raises((SystemExit, UsageError)) as stop:
                _build(noun).parse_args([*words, *line])
            if isinstance(stop.value, SystemExit):
                assert stop.value.code == 2, line
                said = capsys.readouterr().err
                assert (said.count("\n"), len(said) < 999) == (1, True), said


def test_a_command_of_another_may_have_empty_words() -> None:
    assert parsed("vm", "run", "--", "printf", "%s", "")["command"] == ["printf", "%s", ""]
    assert parsed("snapshot", "watch", "s", "--run", "printf", "")["command"] == ["printf", ""]
    assert parsed("dm", "message", "d", "0", "")["words"] == [""]
    assert parsed("dm", "info", "-c", "--separator", "")["separator"] == ""


@pytest.mark.parametrize(
    "line", ["--{}", "copy {} there", "cow info {}", "dm create {} --table {}"]
)
def test_a_very_long_word_is_not_said_whole(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):
        main(line.format("x" * 5000, "y" * 5000).split())
    assert 0 < len(capsys.readouterr().err) < 1000
