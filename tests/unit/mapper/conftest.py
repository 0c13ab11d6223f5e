"""A fake dmsetup first on PATH, and a mapper that uses it."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from dmcopy.ledger import Ledger
from dmcopy.mapper.dmsetup import Dmsetup
from dmcopy.mapper.kernel import KernelMapper
from dmcopy.mapper.udev import Udev

Answer = dict[str, Any]


class Fake:
    """The answers to give, and the calls that came."""

    def __init__(self, script: Path) -> None:
        self.script = script
        self.answer()

    def answer(self, *answers: Answer) -> None:
        """Give these answers from now on."""
        self.script.write_text(json.dumps(answers))

    @property
    def calls(self) -> list[Answer]:
        """The calls so far: words, stdin, env."""
        path = self.script.with_suffix(".calls")
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def words(self) -> list[str]:
        """The calls so far, as a shell would be given them."""
        return [shlex.join(call["words"]) for call in self.calls]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    program = tmp_path / "bin" / "dmsetup"
    program.parent.mkdir()
    source = Path(__file__).with_name("fake_dmsetup.py")
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -SE {source} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_DMSETUP", str(tmp_path / "answers.json"))
    return Fake(tmp_path / "answers.json")


@pytest.fixture(autouse=True)
def synced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count syncs instead of waiting for a busy disk."""
    found: list[int] = []
    monkeypatch.setattr(os, "fsync", found.append)
    return found


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "state" / "ledger.jsonl")


@pytest.fixture
def mapper(fake: Fake, ledger: Ledger) -> KernelMapper:
    assert fake
    return KernelMapper(Dmsetup(udev=Udev.COOKIES), ledger=ledger, timeout=1.0)
