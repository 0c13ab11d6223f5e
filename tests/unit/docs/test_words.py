"""The English of the code and the guides: phrases that leave a reader to guess are not used.

Whether a sentence reads by itself no test can say; these are the ones that a search finds.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PLACES = ("README.md", "CONTRIBUTING.md", "dmcopy", "scripts", "tests")
REFUSED = {
    r"at once": "immediately, together, or side by side?",
    r"go(es)? on|went on|going on|gone on": "continue, resume, or last?",
    r"somebody|anybody|nobody|whoever": "say what it is: the user, another process, a reader",
    r"so many|so much|each that there is": "say the number, or what it counts",
    r"(for|to|of|by|from) who": "'who' needs a person: say which",
    r"who (only|uses one|uses them|was cut|started it|sends|moves|waited|draw)": "say what does it",
    r"moods?|bells?|worlds?|sheets": "a word of the field",
}


def is_prose(path: Path, line: str) -> bool:
    """Return whether a line is to be read: in a test a name or an input may be anything."""
    text = line.strip()
    return "tests" not in path.relative_to(ROOT).parts or text[:1] == "#" or text[:3] == '"""'


@functools.cache
def files() -> dict[Path, str]:
    found = [path for place in PLACES for path in sorted(ROOT.glob(place))]
    listed = [
        inner
        for path in found
        for inner in ([path] if path.is_file() else sorted(path.rglob("*")))
        if inner.suffix in (".py", ".md", ".sh", "")
    ]
    return {path: path.read_text(encoding="utf-8") for path in listed if path.is_file()}


@pytest.mark.parametrize("phrase", REFUSED)
def test_no_phrase_that_leaves_one_guessing(phrase: str) -> None:
    pattern = re.compile(rf"(?i)\b({phrase})\b")
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()} ({REFUSED[phrase]})"
        for path, text in files().items()
        if pattern.search(text)
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line) and is_prose(path, line)
    ]
    assert wrong == []


def test_no_sentence_of_three_whats() -> None:
    """Which thing each of them is, a reader would have to guess. A rule of errors has two."""
    wrong = []
    for path, text in files().items():
        if path.suffix == ".py" and "tests" not in path.relative_to(ROOT).parts:
            texts = re.findall(r'"""(.*?)"""', text, re.DOTALL)
        else:
            texts = text.split("\n\n") if path.suffix == ".md" else []
        for sentence in (
            one for some in texts for one in re.split(r"[.:;!?]\s|(?<=\S) {3,}|\n *[└├│|]", some)
        ):
            if len(re.findall(r"(?i)\bwhat\b", sentence)) - ("happened to what" in sentence) > 2:
                wrong.append(f"{path.relative_to(ROOT)}: {' '.join(sentence.split())}")
    assert wrong == []
