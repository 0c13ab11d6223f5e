"""What short commands do not import: a second copy of a small file should not wait for Python."""

import subprocess
import sys

import pytest

HEAVY = {
    "asyncio",
    "concurrent.futures",
    "dataclasses",
    "difflib",
    "hashlib",
    "inspect",
    "json",
    "logging",
    "pathlib",
    "pyudev",
    "random",
    "rich",
    "secrets",
    "shutil",
    "socket",
    "subprocess",
    "tempfile",
    "urllib",
}


def _imported(*words: str) -> set[str]:
    """Return the modules that `dmcopy WORDS` imports, for which it must end well."""
    command = [sys.executable, "-X", "importtime", "-m", "dmcopy", *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    # "import time:       578 |        578 |       warnings"
    return {line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if "|" in line}


@pytest.mark.parametrize(
    "words",
    ["--version", "--help", "copy --help", "zero --help", "cow --help", "cow info --help"],
)
def test_a_help_imports_nothing_of_the_engine(words: str) -> None:
    imported = _imported(*words.split())
    assert "dmcopy.cli.main" in imported
    assert not imported & {*HEAVY, "ctypes", "dmcopy.io", "dmcopy.block", "dmcopy.transfer"}
