"""What holds for every test in the rig."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def no_cookie_is_left() -> Iterator[None]:
    """Check that the test leaves no semaphore: udev's cookies live until the machine goes down."""
    table = Path("/proc/sysvipc/sem")
    before = table.read_text()
    yield
    assert table.read_text() == before, "the test left a cookie of udev's"
