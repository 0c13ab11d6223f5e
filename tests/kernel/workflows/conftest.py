"""Workflows on real devices."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmcopy.ledger import Ledger
from dmcopy.mapper.kernel import KernelMapper
from dmcopy.testing.disks import Disks
from tests.kernel.snapshot.ioctls import IoctlReader

from .mirror_rig import SECTORS, Rig


@pytest.fixture(autouse=True)
def _asked_by_ioctl(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each `KernelMapper`, commands' too, ask by ioctl, and change by dmsetup.

    A workflow looks at all devices before each of its steps; in an emulated guest dmsetup takes
    half of its time for that. It is tests/kernel/mapper, and the long run, that look with dmsetup.
    """
    if os.environ.get("DMCOPY_TEST") != "long":
        for name, value in vars(IoctlReader).items():
            if not name.startswith("__"):
                monkeypatch.setattr(KernelMapper, name, value, raising=False)


@pytest.fixture(scope="module")
def disks() -> Iterator[Disks]:
    """Loop devices over files in memory, which outlive what a test leaves on them."""
    folder = Path("/dev/shm") / f"dmcopy-mirror-{os.getpid()}"
    with Disks(folder, dict.fromkeys("abcd", SECTORS), loops=True) as disks:
        yield disks


@pytest.fixture
def rig(tmp_path: Path, disks: Disks, no_device_is_left: None) -> Iterator[Rig]:  # noqa: ARG001
    """The disks, with nothing on them, and a check that nothing is noted at the end."""
    disks.wipe()
    rig = Rig(tmp_path, disks)
    yield rig
    assert rig.journal.records() == []
    assert rig.mapper.ledger.entries() == []


@pytest.fixture
def mapper(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_device_is_left: None,  # noqa: ARG001 - what is left is removed after this
) -> Iterator[KernelMapper]:
    """A mapper with a ledger of the test's own, for commands too, and the journal beside it."""
    monkeypatch.setattr("dmcopy.ledger.default_path", lambda: tmp_path / "ledger.jsonl")
    monkeypatch.setattr("dmcopy.workflows.journal.default_folder", lambda: tmp_path / "workflows")
    mapper = KernelMapper(ledger=Ledger(tmp_path / "ledger.jsonl"), timeout=60)
    yield mapper
    assert mapper.ledger.entries() == [], "the test left an entry in the ledger"
