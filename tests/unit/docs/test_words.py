"""The English of the code and the guides: phrases that leave a reader to guess are not used.

Whether a sentence reads by itself no test can say; these are the ones that a search finds.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PLACES = ("README.md", "CONTRIBUTING.md", "dmcopy", "scripts")
REFUSED = {
    r"at once": "immediately, together, or side by side?",
    r"go(es)? on|went on|going on|gone on": "continue, resume, or last?",
    r"somebody|anybody|nobody|whoever": "say what it is: the user, another process, a reader",
    r"so many|so much|each that there is": "say the number, or what it counts",
    r"(for|to|of|by|from) who": "'who' needs a person: say which",
    r"who (only|uses one|uses them|was cut|started it|sends|moves|waited|draw)": "say what does it",
    r"moods?|bells?|worlds?|sheets": "a word of the field",
}


def files() -> list[Path]:
    found = [path for place in PLACES for path in sorted(ROOT.glob(place))]
    listed = [
        inner
        for path in found
        for inner in ([path] if path.is_file() else sorted(path.rglob("*")))
        if inner.suffix in (".py", ".md", ".sh", "")
    ]
    return [path for path in listed if path.is_file()]


@pytest.mark.parametrize("phrase", REFUSED)
def test_no_phrase_that_leaves_one_guessing(phrase: str) -> None:
    pattern = re.compile(rf"(?i)\b({phrase})\b")
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()} ({REFUSED[phrase]})"
        for path in files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert wrong == []
