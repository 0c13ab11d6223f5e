"""Marks for tests that a normal run leaves out, and says so by name."""

from __future__ import annotations

import os

import pytest

long_only = pytest.mark.skipif(
    os.environ.get("DMCOPY_TEST") != "long",
    reason="takes minutes in an emulated guest: only with --long",
)
