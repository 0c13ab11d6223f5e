"""What a mistyped word was probably meant to be."""

from __future__ import annotations

from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return " (did you mean 'linear'?)" for the known word that is nearest, or nothing.

    Near is what a slip of the fingers explains: one letter in four, two in eight, a word that was
    begun and not ended. A word that is known was not mistyped.
    """
    words = list(known)
    if word in words:
        return ""
    bare = word.lstrip("-")
    begun = [one for one in words if len(bare) > 2 and one.startswith(word)]
    slips, nearest = min(((_slips(word, one), one) for one in words), default=(0, ""))
    if slips > max(1, len(bare) // 4) or len(bare) < 2 or not nearest:
        nearest = min(begun, key=len, default="")
    return f" (did you mean '{nearest}'?)" if nearest else ""


def _slips(word: str, other: str) -> int:
    """Return how many letters were left out, put in, changed or swapped with their neighbour."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(word):
        before, last, row = row, before, [i + 1]
        for j, wanted in enumerate(other):
            row.append(min(before[j + 1] + 1, row[j] + 1, before[j] + (letter != wanted)))
            if i and j and letter == other[j - 1] and word[i - 1] == wanted:
                row[-1] = min(row[-1], last[j - 1] + 1)
    return row[-1]
