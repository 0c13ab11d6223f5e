"""Runs one dmcopy command in this process, and prints what it grew by. Started by `memory`.

A process of its own asks the kernel about itself: rusage's peak of a child would start at the
size of the parent that forked it.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

from dmcopy.cli.main import main


def _memory(key: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0])
    raise SystemExit(f"/proc/self/status has no {key}")


def run(words: list[str]) -> int:
    """Import the command, note the size, run it, print both sizes as the last line."""
    importlib.import_module(f"dmcopy.cli.{words[0]}")
    imported = _memory("VmRSS")
    code = main(words)
    print(json.dumps({"imported_kib": imported, "peak_kib": _memory("VmHWM")}))
    return code


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
