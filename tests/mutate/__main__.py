"""`./scripts/mutate MODULE…`: tells which small changes of a module no test notices.

Each change is made in a copy of the tree, and the tests of the module run there with -x, as with
--quick, until one fails or the time is up; both count as caught. Without --tests they are those
that mirror the module: the file of its name, else the folder of its package. They run once
without a change, to see which of them run which lines; after that a change is shown only to those
that run its line, the quickest first (to all, when none is seen to: another process may run it).

A package stands for all of its modules, and a sample of it has each of their changes with the same
chance.
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
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.mutate.running import Chosen, Record, Recorder, choose, load
from tests.mutate.sites import Site, find_sites

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "build", "__pycache__", ".*_cache")
ARGUMENTS = ("-x", "-q", "-rfE", "-p", "no:cacheprovider", "-W", "ignore:Module already imported")
"""-rfE: which test failed is told, whatever $PYTEST_ADDOPTS has to say of summaries."""
NICE = 5
PATIENCE = 3.0
"""How many times as long as without a change the tests may run; and how many seconds more:"""
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
        mutations: dict[Path, Mutation] = {}
        chosen: dict[Path, list[Site]] = {}
        for word in args.modules:
            found = [Mutation(tree, module) for module in _modules(tree, word)]
            mutations |= {one.module: one for one in found}
            chosen |= _draw(found, args)
        by_tests: dict[tuple[str, ...], list[Path]] = {}
        for module in chosen:
            tests = args.tests or mirrored(tree, module)
            if not tests:
                print(f"{module}: no tests mirror it: name some with --tests", file=sys.stderr)
                return 1
            by_tests.setdefault(tuple(tests), []).append(module)
        for tests, modules in by_tests.items():
            trial = Trial(tree)
            if not trial.holds(tests, modules):
                print(trial.said(), file=sys.stderr)
                names = ", ".join(map(str, modules))
                print(f"{names}: its tests fail without any change", file=sys.stderr)
                return 1
            for module in modules:
                sites = chosen[module]
                survivors = list(mutations[module].survivors(sites, trial))
                caught += len(sites) - len(survivors)
                total += len(sites)
                _print_figure(str(module), len(sites) - len(survivors), len(sites))
    if len(chosen) > 1:
        _print_figure("all", caught, total)
    return 0


def _modules(tree: Path, word: Path) -> list[Path]:
    """Return the modules that a word of the command line names."""
    if not (tree / word).is_dir():
        return [word]
    return sorted(path.relative_to(tree) for path in (tree / word).glob("*.py"))


def _draw(mutations: Sequence[Mutation], args: argparse.Namespace) -> dict[Path, list[Site]]:
    """Return the changes to make of each module: all, those of some lines, or a sample by its seed.

    A module of several that none was drawn of is left out.
    """
    sites = [(one.module, site) for one in mutations for site in one.sites(args.line)]
    if args.sample is not None and args.sample < len(sites):
        chosen = random.Random(args.seed).sample(range(len(sites)), args.sample)
        sites = [sites[place] for place in sorted(chosen)]
    drawn: dict[Path, list[Site]] = {one.module: [] for one in mutations}
    for module, site in sites:
        drawn[module].append(site)
    return {module: found for module, found in drawn.items() if found or len(mutations) == 1}


def mirrored(tree: Path, module: Path) -> list[str]:
    """Return the tests that mirror a module: no guest's, and those of loop devices as root only."""
    found: list[str] = []
    for kind in ("unit", "simulated", *(["loop"] if not os.geteuid() else [])):
        folder = tree / "tests" / kind / Path(*module.parts[1:-1])
        files = sorted(folder.rglob("test_*.py")) if folder.is_dir() else []
        if len(module.parts) == 2:
            files = [path for path in files if path.parent == folder and module.stem in path.stem]
        found += [str(path.relative_to(tree)) for path in files]
    return found


class Trial:
    """Runs tests in a copy of the tree, each time in a process of its own."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        self._records: list[Record] = []
        self._output = tree.parent / "output"
        self._own = {path.name for path in tree.iterdir()}

    def holds(self, tests: Sequence[str], modules: Sequence[Path]) -> bool:
        """Whether the tests pass without a change; and record what they run of the modules."""
        recorded = self.tree.parent / "recorded"
        recorder = Recorder([self.tree / module for module in modules], recorded)
        if not self._passes(tests, recorder, limit=None, cache=True):
            return False
        self._records, used = load(recorded)
        for name in used:  # so that not each change pays for it; what is of the tree is read anew
            if name.partition(".")[0] not in ("__main__", "conftest", "tests", *self._own):
                with contextlib.suppress(Exception):
                    importlib.import_module(name)
        return True

    def notices(self, module: Path, line: int) -> bool:
        """Whether a test fails, or takes far too long, now that a line of a module is changed."""
        for records in choose(self._records, self.tree / module, line):
            files = sorted({record.test.partition("::")[0] for record in records})
            chosen = Chosen([record.test for record in records])
            limit = sum(record.seconds for record in records) * PATIENCE + GRACE_SECONDS
            if not self._passes(files, chosen, limit=limit, cache=False):
                return True
        return False

    def said(self) -> str:
        """Return the end of what the last run of the tests printed."""
        return "\n".join(self._output.read_text(errors="replace").splitlines()[-30:])

    def _passes(
        self, tests: Sequence[str], plugin: object, *, limit: float | None, cache: bool
    ) -> bool:
        child = os.fork()
        if not child:
            _run_tests(self.tree, tests, plugin, self._output, cache=cache)
        handle = os.pidfd_open(child)
        try:
            ended, _, _ = select.select([handle], [], [], limit)
        finally:
            os.close(handle)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)  # and what the tests have left
            _, status = os.waitpid(child, 0)
        return bool(ended) and os.waitstatus_to_exitcode(status) == pytest.ExitCode.OK


class Mutation:
    """The changes of one module in a copy of the tree, and which of them its tests notice."""

    def __init__(self, tree: Path, module: Path) -> None:
        self.module = module
        self._file = tree / module
        self._source = self._file.read_text()
        self._parsed = ast.parse(self._source)

    def sites(self, lines: Sequence[int]) -> list[Site]:
        """Return all changes, or those of some lines."""
        return [site for site in find_sites(self._parsed) if not lines or site.line in lines]

    def survivors(self, sites: Sequence[Site], trial: Trial) -> Iterator[Site]:
        """Print and yield the changes that no test notices; then the module is as it was."""
        # Of the same second and length, it would be taken for the changed module.
        cached = Path(importlib.util.cache_from_source(str(self._file)))
        cached.unlink(missing_ok=True)
        for site in sites:
            self._file.write_text(site.apply(self._parsed))
            if not trial.notices(self.module, site.line):
                print(f"{self.module}:{site.line}: survives: {site}", flush=True)
                yield site
        self._file.write_text(self._source)


def _run_tests(
    tree: Path, tests: Sequence[str], plugin: object, output: Path, *, cache: bool
) -> None:
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
        code = int(pytest.main([*ARGUMENTS, *tests], plugins=[plugin]))
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
    parser.add_argument(
        "modules", nargs="+", type=Path, help="dmcopy/cow dmcopy/targets/merge.py …"
    )
    parser.add_argument("--tests", nargs="+", help="run these, and not those that mirror it")
    parser.add_argument("--sample", type=int, metavar="N", help="N changes, not all")
    parser.add_argument("--seed", type=int, default=0, help="which ones")
    parser.add_argument("--line", type=int, nargs="+", default=[], help="changes of these lines")
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
