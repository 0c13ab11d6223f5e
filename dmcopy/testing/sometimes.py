"""States that tests are to reach now and then: a run tells which of them never were.

    from dmcopy.testing.sometimes import sometimes

    if area.is_full:
        sometimes("a merge met a full area")
    sometimes("two snapshots share an origin", len(snapshots) > 1)

An assertion says what must always hold; this says what must hold at least once, or the tests prove
less than one thinks. Names are known from the calls in the modules that import `sometimes`, also
from calls that were never made, so the text is written there, as a literal.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

_reached: Counter[str] = Counter()


def sometimes(text: str, condition: object = True) -> bool:
    """Count that a state was reached, where `condition` is true; return whether it is."""
    _reached[text] += bool(condition)
    return bool(condition)


def reached() -> dict[str, int]:
    """Return how often each state was reached that was come by, by its text."""
    return dict(_reached)


def add(counts: dict[str, int]) -> None:
    """Add what another process has reached."""
    _reached.update(counts)


def known() -> set[str]:
    """Return the states that are named in the modules imported so far."""
    found = set(_reached)
    for module in list(sys.modules.values()):
        if getattr(module, "sometimes", None) is sometimes and module.__name__ != __name__:
            found.update(_named(getattr(module, "__file__", None)))
    return found


def never_reached() -> list[str]:
    """Return the states that no call has reached, sorted."""
    return sorted(text for text in known() if not _reached[text])


def _named(file: str | None) -> Iterator[str]:
    try:
        tree = ast.parse(Path(str(file)).read_bytes())
    except (OSError, SyntaxError, ValueError):  # no file, or none of Python's
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args and _is_sometimes(node.func):
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield first.value


def _is_sometimes(function: ast.expr) -> bool:
    name = getattr(function, "id", None) or getattr(function, "attr", None)
    return name == "sometimes"
