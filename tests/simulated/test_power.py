"""Power cuts over snapshots, merges, mirrors, logs and copies, as a campaign of seeds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dmcopy.cli.main import main

SEEDS = {"quick": 10, "long": 20_000}.get(os.environ.get("DMCOPY_TEST", ""), 100)
"""Some 490 cuts each: ten million in a long run, on every processor."""


def test_no_power_cut_breaks_any_promise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["explore", "tests.simulated.power:cut", "--seeds", f"0-{SEEDS - 1}"]
    words += ["--out", os.environ.get("DMCOPY_CAMPAIGN", str(tmp_path / "power.jsonl"))]
    if os.environ.get("DMCOPY_TEST") != "long":
        words += ["--workers", "1"]
    code = main(words)
    assert code == 0, capsys.readouterr().out
