"""Workflows on real devices, and a check that no test leaves any."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dmcopy.mapper.kernel import KernelMapper
from dmcopy.mapper.ledger import Ledger
from dmcopy.mapper.tree import top_down, with_deps


@pytest.fixture
def mapper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KernelMapper]:
    """A mapper with a ledger of the test's own, for commands too, and the journal beside it."""
    monkeypatch.setattr("dmcopy.ledger.default_path", lambda: tmp_path / "ledger.jsonl")
    monkeypatch.setattr("dmcopy.workflows.journal.default_folder", lambda: tmp_path / "workflows")
    mapper = KernelMapper(ledger=Ledger(tmp_path / "ledger.jsonl"), timeout=60)
    yield mapper
    left = top_down(with_deps(mapper))
    for info in left:
        mapper.thaw(info.name)
        mapper.remove(info.name)
    assert left == [], "the test left devices"
    assert mapper.ledger.entries() == [], "the test left an entry in the ledger"
