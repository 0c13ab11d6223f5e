"""Holds what commands print as JSON to the schemas that `dmcopy schema` prints.

While `holding` lasts, each command line that a test runs in this process is watched: what it writes
to stdout with --json, and to stderr with --progress=json, must be what its schema says, and nothing
that the schema does not name.
"""

from __future__ import annotations

import contextlib
import functools
import json
import sys
from collections.abc import Iterator
from typing import Any

import jsonschema

from dmcopy.cli import main
from dmcopy.cli.schema import schemas

DECODER = json.JSONDecoder()
SCHEMAS = schemas()


def closed(schema: Any) -> Any:
    """Return a schema in which an object has the properties that are named and no others."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict):
        found.setdefault("additionalProperties", False)
    return found


@functools.cache
def validator(command: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(closed(SCHEMAS[command]))


def command_of(words: list[str]) -> str:
    """Return `NOUN VERB` of a command line, or the noun of one without verbs."""
    noun = next((word for word in words if word in main.NOUNS), "")
    after = words[words.index(noun) + 1 :] if noun else []
    verbs = [f"{noun} {word}" for word in after if f"{noun} {word}" in SCHEMAS]
    return verbs[0] if verbs else noun


def documents(text: str) -> Iterator[Any]:
    """Yield the JSON values of a text that is nothing else, one after the other."""
    at = 0
    while text[at:].strip():
        at += len(text[at:]) - len(text[at:].lstrip())
        value, at = DECODER.raw_decode(text, at)
        yield value


class _Heard:
    """A stream, and what was written to it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return int(self._stream.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def check_output(words: list[str], out: str, err: str) -> None:
    """Raise ValidationError for JSON of a command that is not what its schema says."""
    command = command_of(words)
    if "--json" in words and command in SCHEMAS:
        for value in documents(out):
            validator(command).validate(value)
    if "--progress=json" in words or "--progress json" in " ".join(words):
        for line in err.splitlines():
            if line.startswith('{"event"'):
                validator("progress").validate(json.loads(line))


@contextlib.contextmanager
def holding() -> Iterator[None]:
    """Hold the output of every command that `main` runs to its schema."""
    real = main._run

    def run(words: list[str]) -> int:
        out, err = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = heard, told = _Heard(out), _Heard(err)
        try:
            return real(words)
        finally:
            sys.stdout, sys.stderr = out, err
            if not isinstance(sys.exception(), SystemExit):
                check_output(words, heard.text, told.text)

    main._run = run
    try:
        yield
    finally:
        main._run = real
