"""`./scripts/mutate MODULE…`: tells which small changes of a module no test notices.

Each change is made in a copy of the tree, and the tests of the module run there with -x, as with
--quick, until one fails or the time is up; both count as caught. Without --tests they are those
that mirror the module: the file of its name, else the folder of its package.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.util
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.mutate.sites import Site, find_sites

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "build", "__pycache__", ".*_cache")
ARGUMENTS = ("-x", "-q", "-p", "no:cacheprovider", "-W", "ignore:Module already imported")
NICE = 10
PATIENCE = 3.0
"""How many times as long as without a change the tests may run; and so many seconds more:"""
GRACE_SECONDS = 20.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; 0 when the tests hold without a change, whatever survives, else 1."""
    args = _parse(argv)
    signal.signal(signal.SIGTERM, _end)  # with the tests under way, and the copy
    os.nice(NICE)
    os.environ.setdefault("DMCOPY_TEST", "quick")
    importlib.import_module("hypothesis")  # and pytest: once, and not for each change
    caught = total = 0
    with tempfile.TemporaryDirectory(prefix="dmcopy-mutate-") as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(args.root, tree, ignore=LEFT_OUT, symlinks=True)
        (tree / ".venv").symlink_to(ROOT / ".venv")
        for module in args.modules:
            tests = args.tests or mirrored(tree, module)
            if not tests:
                print(f"{module}: no tests mirror it: name some with --tests", file=sys.stderr)
                return 1
            mutation = Mutation(tree, module, tests)
            if not mutation.holds():
                print(mutation.said(), file=sys.stderr)
                print(f"{module}: its tests fail without any change", file=sys.stderr)
                return 1
            sites = mutation.choose(args.sample, args.seed, args.line)
            survivors = list(mutation.survivors(sites))
            caught += len(sites) - len(survivors)
            total += len(sites)
            _print_figure(str(module), len(sites) - len(survivors), len(sites))
    if len(args.modules) > 1:
        _print_figure("all", caught, total)
    return 0


def mirrored(tree: Path, module: Path) -> list[str]:
    """Return the tests that mirror a module, those first that are called after it.

    Only tests that need neither root nor a guest.
    """
    found: list[str] = []
    for kind in ("unit", "simulated"):
        folder = tree / "tests" / kind / Path(*module.parts[1:-1])
        files = sorted(folder.rglob("test_*.py")) if folder.is_dir() else []
        if len(module.parts) == 2:
            files = [path for path in files if path.parent == folder and module.stem in path.stem]
        files.sort(key=lambda path: module.stem not in path.stem)
        found += [str(path.relative_to(tree)) for path in files]
    return found


class Mutation:
    """The changes of one module in a copy of the tree, and what its tests say of each."""

    def __init__(self, tree: Path, module: Path, tests: Sequence[str]) -> None:
        self._tree = tree
        self._module = module
        self._tests = list(tests)
        self._source = (tree / module).read_text()
        self._parsed = ast.parse(self._source)
        self._limit = float("inf")
        self._output = tree.parent / "output"

    def holds(self) -> bool:
        """Whether the tests pass without a change; how long that takes sets the time limit."""
        began = time.monotonic()
        passed = self._passes(self._source)
        self._limit = (time.monotonic() - began) * PATIENCE + GRACE_SECONDS
        # It would be taken for a changed module of the same second and length.
        Path(importlib.util.cache_from_source(str(self._tree / self._module))).unlink(
            missing_ok=True
        )
        return passed

    def said(self) -> str:
        """Return the end of what the last run of the tests printed."""
        return "\n".join(self._output.read_text(errors="replace").splitlines()[-30:])

    def choose(self, sample: int | None, seed: int, lines: Sequence[int]) -> list[Site]:
        """Return the changes to make: all, those of some lines, or a sample by its seed."""
        sites = [site for site in find_sites(self._parsed) if not lines or site.line in lines]
        if sample is not None and sample < len(sites):
            chosen = random.Random(seed).sample(range(len(sites)), sample)
            sites = [sites[place] for place in sorted(chosen)]
        return sites

    def survivors(self, sites: Sequence[Site]) -> Iterator[Site]:
        """Print and yield the changes that no test notices; then the module is as it was."""
        for site in sites:
            if self._passes(site.apply(self._parsed)):
                print(f"{self._module}:{site.line}: survives: {site}", flush=True)
                yield site
        (self._tree / self._module).write_text(self._source)

    def _passes(self, source: str) -> bool:
        """Whether the tests pass, and in time, with this source of the module."""
        (self._tree / self._module).write_text(source)
        child = os.fork()
        if not child:
            _run_tests(self._tree, self._tests, self._output, cache=source == self._source)
        handle = os.pidfd_open(child)
        try:
            limit = None if self._limit == float("inf") else self._limit
            ended, _, _ = select.select([handle], [], [], limit)
        finally:
            os.close(handle)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)  # and what the tests have left
            _, status = os.waitpid(child, 0)
        return bool(ended) and os.waitstatus_to_exitcode(status) == pytest.ExitCode.OK


def _run_tests(tree: Path, tests: Sequence[str], output: Path, *, cache: bool) -> None:
    """Be a process of its own that runs the tests in the tree; never returns."""
    code = 3
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.chdir(tree)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        said = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        sys.dont_write_bytecode = not cache
        sys.path.insert(0, str(tree))
        for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
            del sys.modules[name]
        code = int(pytest.main([*ARGUMENTS, *tests]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _end(number: int, _frame: object) -> None:
    sys.exit(128 + number)


def _print_figure(name: str, caught: int, total: int) -> None:
    share = f" ({caught / total:.0%})" if total else ""
    print(f"{name}: {caught} of {total} caught{share}", flush=True)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./scripts/mutate", description=__doc__)
    parser.add_argument("modules", nargs="+", type=Path, help="dmcopy/targets/merge.py …")
    parser.add_argument("--tests", nargs="+", help="run these, and not those that mirror it")
    parser.add_argument("--sample", type=int, metavar="N", help="so many changes, not all")
    parser.add_argument("--seed", type=int, default=0, help="which ones")
    parser.add_argument("--line", type=int, nargs="+", default=[], help="changes of these lines")
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
