"""What the process of the device server says to its starter: one line, and no more."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dmcopy.errors import DmcopyError, UsageError
from dmcopy.export import daemon


def begin(monkeypatch: pytest.MonkeyPatch, serve: Callable[..., None]) -> tuple[int, Any]:
    """Be the server, as its process would; return its exit code and what it said."""
    ours, theirs = os.pipe()
    monkeypatch.setattr(os, "fork", lambda: 0)
    monkeypatch.setattr("sys.argv", ["daemon", str(theirs)])
    monkeypatch.setattr(daemon, "_serve", serve)
    with open(ours, "rb") as pipe:
        try:
            daemon.main()
        except SystemExit as end:
            return int(str(end.code)), [json.loads(line) for line in pipe]
        return 0, [json.loads(line) for line in pipe]


def test_it_says_that_it_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    def serve(ready: Callable[[], object], *, resume: bool) -> None:
        assert not resume
        ready()

    assert begin(monkeypatch, serve) == (0, [{"version": 1, "ok": True}])


@pytest.mark.parametrize(
    ("error", "kind", "says", "logged"),
    [
        (UsageError("there is no place for it"), "UsageError", "there is no place for it", False),
        (MemoryError(), "MissingError", "there is no memory left for this", True),
        (RuntimeError("can't start new thread"), "MissingError", "no more processes", True),
        (ImportError("x.so: Cannot allocate memory"), "MissingError", "there is no memory", True),
        (OSError(24, "files"), "MissingError", "too many files are open", True),
        (ValueError("odd"), "DmcopyError", "the device server failed: ValueError: odd", True),
    ],
)
def test_whatever_is_in_its_way_is_said(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    kind: str,
    says: str,
    logged: bool,
) -> None:
    """Its starter would only know that it has gone: its stderr goes nowhere."""

    def serve(_ready: Callable[[], object], **_: object) -> None:
        raise error

    code, (said,) = begin(monkeypatch, serve)
    assert (code, said["ok"], said["kind"]) == (1, False, kind)
    assert said["error"].startswith(says)
    assert bool(caplog.records) is logged


def test_nothing_is_written_to_the_file_that_has_the_number_later(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first file that is opened once it has begun may be a disk's image."""
    caplog.set_level(logging.ERROR)
    image = tmp_path / "image"
    image.write_bytes(b"precious" * 64)

    def serve(ready: Callable[[], object], **_: object) -> None:
        number = int(sys.argv[1])
        ready()
        with open(image, "r+b", buffering=0) as disk:
            assert disk.fileno() == number
            raise DmcopyError("something went wrong at its end")

    assert begin(monkeypatch, serve) == (1, [{"version": 1, "ok": True}])
    assert image.read_bytes() == b"precious" * 64
