"""README and guides: every block runs as printed, and says what is shown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.blocks import (
    FILES,
    LANGUAGES,
    PLACES,
    READ_BY,
    ROOT,
    Step,
    blocks,
    matches,
    run,
    steps,
)

ROOTS = [ROOT / place for place in (".", "dmcopy", "dmcopy/testing", "tests/unit")]
"""What paths in the pages for those who change the code are relative to."""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_block_runs_as_printed(path: Path, tmp_path: Path) -> None:
    for block in [*blocks(path, ""), *blocks(path, "checkout")]:
        run(block, tmp_path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_block_says_how_it_is_run(path: Path) -> None:
    for block in blocks(path):
        assert block.language in LANGUAGES, f"{block.where}: ```{block.language}"
        assert block.is_file or block.place in PLACES, f"{block.where}: {block.place}"
    prose = path.read_text(encoding="utf-8")
    for block in blocks(path):
        prose = prose.replace(block.text, "", 1)
    assert "\n\n    " not in prose, "a block without a fence is not run"


def test_every_block_that_is_not_run_as_printed_is_run_by_a_test() -> None:
    left = [
        str(path.relative_to(ROOT))
        for path in FILES
        for block in blocks(path)
        if block.language == "text"
    ]
    assert left == sorted(READ_BY)
    for page, test in READ_BY.items():
        assert f'read_block("{page}")' in (ROOT / test).read_text(), test


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "dmcopy/README.md"])
def test_what_is_named_for_those_who_change_the_code_is_there(page: str) -> None:
    """Its paths, and what a line with the path of a module says is in there."""
    count = 0
    for line in (ROOT / page).read_text(encoding="utf-8").splitlines():
        paths = []
        for name in re.findall(r"(?<![\w/.-])(?:\./)?((?:[a-z_][\w-]*/)+[a-z_.][\w.-]*\b)", line):
            found = [place / f"{name}{end}" for place in ROOTS for end in ("", ".py")]
            paths += [path for path in found if path.exists()][:1]
            assert any(path.exists() for path in found) or "NAME" in name, f"{page}: {name}"
            count += 1
        sources = [path.read_text(encoding="utf-8") for path in paths if path.suffix == ".py"]
        for cls, method in re.findall(r"\b([A-Z]\w+[a-z])\.([a-z]\w+)", line) if sources else ():
            there = [one for one in sources if f"class {cls}" in one and f"def {method}(" in one]
            assert there, f"{page}: no {cls}.{method} in {paths}"
    assert count > 20


def test_the_readme_stays_short() -> None:
    """It says what there is; the guides say how."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_a_session_is_cut_into_commands_and_their_output() -> None:
    assert steps("$ a \\\n  b\nx\n$ c\n$ d\ny\nz\n") == [
        Step("a \\\n  b\n", "x\n"),
        Step("c\n", ""),
        Step("d\n", "y\nz\n"),
    ]


@pytest.mark.parametrize(
    ("shown", "said", "same"),
    [
        ("a\n", "a\n", True),
        ("a\n", "a\nb\n", False),
        ("a.c\n", "abc\n", False),
        ("a\n...\n", "a\nb\nc\n", True),
        ("...\nc\n", "a\nb\nc\n", True),
        ("...\nb\n", "a\nb\nc\n", False),
        ("a … c\n", "a b c\n", True),
        ("128 MiB in 0.579 s, 170.4 MiB/s\n", "128 MiB in 3 s, 1.4 GiB/s\n", True),
        ("128 MiB in 0.579 s\n", "64 MiB in 0.579 s\n", False),
        ("1 failed in 2.31s\n", "1 failed in 68.53s (0:01:08)\n", True),
        ("a  0.1%  144 KiB  b\n", "a  3.4%    8.594 MiB  b\n", True),
        ("a  0.1%  144 KiB  b\n", "a  3.4%  b\n", False),
        ("host: kernel 6.12.1+deb13, dm 4.48.0\n", "host: kernel 6.1.0-50, dm 4.47.0\n", True),
        ("linear 1.4.0\n", "linear 1.5.0\n", False),
    ],
)
def test_what_counts_as_the_same_output(shown: str, said: str, same: bool) -> None:
    assert matches(shown, said) is same


def test_a_page_that_is_wrong_fails(tmp_path: Path) -> None:
    page = ROOT / "README.md"
    from tests.docs.blocks import Block

    for text in ("$ echo a\nb\n", "$ false\n", "$ exit 0\n$ echo a\n"):
        with pytest.raises(AssertionError, match=r"README\.md:1"):
            run(Block(page, 1, "console", "", text), tmp_path)
    run(Block(page, 1, "console", "", "$ false\n$ echo $?\n1\n"), tmp_path)
    with pytest.raises(AssertionError, match="NameError"):
        run(Block(page, 1, "python", "", "print(no_such_name)\n"), tmp_path)
