"""Programs that tests in a guest run."""

from __future__ import annotations

import subprocess


def run(*words: object, code: int = 0) -> str:
    """Run one to its end, which must be with `code`; return what it printed."""
    argv = list(map(str, words))
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout
