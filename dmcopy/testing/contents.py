"""How pytest explains that the contents of two devices are not equal."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Final

import pytest

LONG_BYTES: Final = 512
"""Longer contents are compared by sectors."""
_CONTENTS: Final = (bytes, bytearray, memoryview)
_Explanations = list[list[str]]


@pytest.hookimpl(wrapper=True)
def pytest_assertrepr_compare(
    config: pytest.Config, op: str, left: object, right: object
) -> Generator[None, _Explanations, _Explanations]:
    """Tell which sector of long contents is the first that differs.

    pytest's own comparison, which -v and $CI ask for, takes six seconds for 2 KiB in lines that are
    all alike, minutes for 32 KiB and hours for more (measured with pytest 9.2); without
    them it ends with the advice to give -v.
    """
    if op != "==" or not isinstance(left, _CONTENTS) or not isinstance(right, _CONTENTS):
        return (yield)
    if max(len(left), len(right)) <= LONG_BYTES:
        return (yield)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "get_verbosity", lambda _kind=None: 0)
        for name in ("CI", "BUILD_NUMBER"):
            patch.delenv(name, raising=False)
        explanations = yield
    where = _where(left, right)
    return [[lines[0], *where] for lines in explanations if lines]


def _where(left: Any, right: Any) -> list[str]:
    from dmcopy.testing.compare import first_byte
    from dmcopy.units import SECTOR_SIZE

    lines = []
    if len(left) != len(right):
        lines.append(f"{len(left)} bytes are not {len(right)}")
    place = first_byte(left, right)
    if place is not None and place < min(len(left), len(right)):
        starts = range(0, min(len(left), len(right)), SECTOR_SIZE)
        pieces = (slice(start, start + SECTOR_SIZE) for start in starts)
        differ = sum(left[piece] != right[piece] for piece in pieces)
        lines.append(
            f"{differ} of {len(starts)} sectors differ, from sector {place // SECTOR_SIZE} on: "
            f"its byte {place % SECTOR_SIZE} is {left[place]:#04x}, not {right[place]:#04x}"
        )
    return lines
