"""dmcopy demo: a claim that does not hold makes it fail. (README's block runs all of it.)"""

from __future__ import annotations

from pathlib import Path

import pytest

from dmcopy.cli import demo_copy
from dmcopy.cli.main import main


def test_a_claim_that_does_not_hold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_copy.Stage, "break_disks", lambda _stage: None)
    monkeypatch.setattr(demo_copy, "SECTORS", 64 << 11)
    assert main(["demo", "copy", "--folder", str(tmp_path), "--progress", "none"]) == 1
    assert "NOT SO: read_err is 1" in capsys.readouterr().out
    assert not list(tmp_path.iterdir()), "its files are gone again"
