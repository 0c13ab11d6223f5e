"""dmcopy demo: every claim of it holds, and one that does not makes it fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from dmcopy.cli import demo_copy
from dmcopy.cli.main import main


def test_every_claim_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--folder", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "read_err=1 write_err=0b010" in out
    assert "30 of 30 claims hold" in out
    assert "NOT SO" not in out
    assert not list(tmp_path.iterdir()), "its files are gone again"


def test_a_claim_that_does_not_hold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_copy.Stage, "break_disks", lambda _stage: None)
    monkeypatch.setattr(demo_copy, "SECTORS", 64 << 11)
    assert main(["demo", "copy", "--folder", str(tmp_path), "--progress", "none"]) == 1
    assert "NOT SO: read_err is 1" in capsys.readouterr().out
