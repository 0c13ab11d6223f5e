"""What dmsetup printed on a kernel, of the same commands on a kernel that does no I/O."""

from __future__ import annotations

from pathlib import Path

import pytest

from .model import Model
from .recorded import SESSIONS, by_shim, unlike, write_files


@pytest.mark.parametrize("session", SESSIONS)
def test_all_is_printed_as_dmsetup_prints_it(
    session: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_files()
    wrong = unlike(session, by_shim(Model(), monkeypatch, capfd))
    assert not wrong, wrong
