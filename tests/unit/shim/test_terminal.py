"""What the shim prints to a terminal: dmsetup's words, and nothing that moves the cursor."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
MAIN = "from dmcopy.shim.main import main; main()"
ODD = "--d\u00e4\x1b[31m\x07"


def said(stderr: int) -> None:
    argv = [sys.executable, "-c", MAIN, ODD]
    env = {**os.environ, "LC_ALL": "C.UTF-8"}
    done = subprocess.run(argv, cwd=ROOT, env=env, stderr=stderr, timeout=60, check=False)
    assert done.returncode == 1


def test_no_control_character_reaches_a_terminal() -> None:
    ours, terminal = os.openpty()
    said(terminal)
    os.close(terminal)
    with open(ours, encoding="utf-8", newline="\n") as reader:
        line = reader.readline()
    assert line == "dmsetup: unrecognized option '--d\u00e4\\x1b[31m\\x07'\r\n"


def test_a_program_gets_the_bytes(tmp_path: Path) -> None:
    """As from dmsetup: a script that asks for a name must be able to use it."""
    with open(tmp_path / "said", "wb") as file:
        said(file.fileno())
    first = (tmp_path / "said").read_bytes().splitlines()[0]
    assert first == f"dmsetup: unrecognized option '{ODD}'".encode()
