"""`dmcopy schema`, and that every command with --json has a schema."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator

import jsonschema
import pytest

from dmcopy.cli.main import NOUNS, _build_parser, main
from dmcopy.cli.parser import verbs_of as subparsers
from dmcopy.cli.schema import schemas
from dmcopy.errors import ExitCode
from tests.schemas import check_output, command_of, validator

NO_OPTION = {"progress", "snapshot watch"}  # --progress=json; and what always prints JSON


def takes_json(parser: argparse.ArgumentParser) -> bool:
    return "--json" in parser._option_string_actions


def with_json() -> Iterator[str]:
    for noun in NOUNS:
        parser = subparsers(_build_parser(noun))[noun]
        verbs = subparsers(parser)
        if takes_json(parser) and (not verbs or parser.get_default("verb")):
            yield noun
        yield from (f"{noun} {name}" for name, verb in verbs.items() if takes_json(verb))


def test_every_command_with_json_has_a_schema_and_no_other_has_one() -> None:
    assert sorted(with_json()) == sorted(set(schemas()) - NO_OPTION)


@pytest.mark.parametrize("command", sorted(schemas()))
def test_a_schema_is_one_and_names_its_version(command: str) -> None:
    schema = schemas()[command]
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["title"]
    assert schema["$id"].endswith(f":{schema['version']}")


def test_one_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "cow", "info"]) == 0
    assert json.loads(capsys.readouterr().out) == schemas()["cow info"]


def test_the_commands_with_one_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [one["command"] for one in listed] == sorted(schemas())
    assert [one["command"] for one in listed if one["lines"]] == [
        *("devices watch", "disk serve", "dm run", "progress", "serve", "snapshot watch"),
    ]
    assert main(["schema"]) == 0
    rows = [line.split(maxsplit=3) for line in capsys.readouterr().out.splitlines()]
    assert ["cow", "check", "1", "What is wrong with a store"] in rows


def test_a_typo_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "cow", "inof"]) == ExitCode.USAGE
    assert "no schema for 'cow inof' (did you mean 'cow info'?)" in capsys.readouterr().err


def test_what_a_schema_does_not_name_is_noticed() -> None:
    good = {"device": "a", "event": 3}
    validator("dm wait").validate(good)
    for wrong in (good | {"more": 1}, {"device": "a"}, good | {"event": -1}):
        with pytest.raises(jsonschema.ValidationError):
            check_output(["dm", "wait", "--json"], json.dumps(wrong), "")
    with pytest.raises(jsonschema.ValidationError):
        check_output(["copy", "--progress=json"], "", '{"event": "unheard of"}')


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ("dm --json status a", "dm status"),
        ("dm status --json ls", "dm status"),
        ("copy a b --json", "copy"),
        ("devices --json", "devices"),
        ("--traceback cow info c", "cow info"),
    ],
)
def test_a_command_line_is_of_one_command(words: str, command: str) -> None:
    assert command_of(words.split()) == command


def test_a_verb_of_dm_that_prints_text_refuses_json(capsys: pytest.CaptureFixture[str]) -> None:
    verbs = {f"dm {name}" for name in subparsers(subparsers(_build_parser("dm"))["dm"])}
    text = sorted(verbs - set(schemas()))
    assert "dm create" in text
    for verb in text:
        words = ["x"] if verb == "dm shim" else ["x", "0"]
        assert main(["dm", "--json", *verb.split()[1:], *words]) == ExitCode.USAGE
        said = capsys.readouterr()
        assert (said.out, "prints text: leave --json out" in said.err) == ("", True)


@pytest.mark.parametrize(
    "words", ["dm --json create x", "dm reap --json", "snapshot take s o c --json"]
)
def test_a_rehearsal_refuses_json(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words.split(), "--dry-run"]) == ExitCode.USAGE
    assert capsys.readouterr().err == (
        "dmcopy: --dry-run prints commands for a shell: leave --json out\n"
    )
