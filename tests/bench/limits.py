"""Compiling the C limit programs, and running them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from tests.bench.process import BenchError, quiet


def compile_ring(directory: Path, name: str = "copyring") -> Path:
    """Compile a C limit into `directory`; raises BenchError where that cannot be done."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise BenchError("the C limit needs a C compiler (gcc, libc6-dev)")
    program = directory / name
    source = Path(__file__).with_name(f"{name}.c")
    try:
        quiet([compiler, "-O2", "-o", str(program), str(source), "-luring"])
    except BenchError:
        raise BenchError("the C limit did not compile (it needs liburing-dev)") from None
    return program


def ring_argv(
    program: Path,
    source: Path,
    dests: Sequence[Path],
    *,
    block: int,
    depth: int,
    count: int,
    pairs: Path | None = None,
    plain: bool = False,
) -> list[str]:
    """Return the words that copy `count` blocks, those of the list `pairs` or the first ones."""
    how = "plain" if plain else "ring"
    listed = str(pairs) if pairs else "-"
    numbers = [str(number) for number in (block, depth, count)]
    return [str(program), how, *numbers, listed, str(source), *map(str, dests)]
