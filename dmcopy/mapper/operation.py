"""An operation on a mapped device, as `dmcopy.mapper.run` does it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Result = tuple[tuple[str, ...], dict[str, Any]]
"""Lines for people, and values for programs."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation: `text` as it was given, without the name of the device before it.

    `perform(run, device, *words)` does it.
    """

    device: str
    text: str
    perform: Callable[..., Result]
    words: tuple[str, ...]
