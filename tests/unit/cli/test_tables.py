"""The text of a table, from wherever it comes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

DMCOPY = [sys.executable, "-m", "dmcopy"]


@pytest.mark.parametrize(
    "words",
    [
        ["dm", "explain", "/dev/zero"],
        ["dm", "explain", "-"],
        ["dm", "run", "--engine", "user", "/dev/full"],
        ["dm", "run", "--engine", "user", "--concise", "-"],
        ["dm", "create", "--engine", "user", "--concise"],
        ["dm", "create", "--engine", "user", "dmcopy-no-such"],
        ["serve", "--table", "/dev/zero"],
    ],
)
def test_one_that_has_no_end_is_none(words: list[str]) -> None:
    """It would be read until there is no memory, and no signal would end that."""
    with open("/dev/zero", "rb") as endless:
        done = subprocess.run(
            [*DMCOPY, *words], stdin=endless, capture_output=True, text=True, timeout=60
        )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith(" is no table: it has more than 64 MiB\n")


@pytest.mark.parametrize("given", ["utf-8:strict", "utf-8", "ascii:strict"])
def test_a_name_of_any_bytes_comes_by_standard_input(given: str, tmp_path: Path) -> None:
    """A name of a file is bytes, whatever the locale says that text is."""
    name = os.fsencode(tmp_path) + b"/a\xff\xc3"
    Path(os.fsdecode(name)).write_bytes(bytes(4096))
    done = subprocess.run(
        [*DMCOPY, "dm", "run", "--engine", "user", "-", "read 0 8"],
        input=b"0 8 linear %b 0\n" % name,
        env={**os.environ, "PYTHONIOENCODING": given},
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("byte", [b"\0", b"a", b"\\,", b"\\a", b"\n", b",", b";"])
@pytest.mark.parametrize("option", ["--table", "--concise"])
def test_a_disk_that_is_given_for_a_table_is_refused(option: str, byte: bytes) -> None:
    """By what takes time as it is long: a word of 2 MiB took hours."""
    done = subprocess.run(
        [*DMCOPY, "dm", "run", "--engine", "user", option, "-", "status"],
        input=byte * (2 << 20),
        capture_output=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1)
    assert len(done.stderr) < 8192
