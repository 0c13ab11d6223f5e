"""`dmcopy explore`: a campaign, seeds of a history by many processes or machines."""

from __future__ import annotations

import argparse
import os
import shlex
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from dmcopy.cli.options import seeds_range
from dmcopy.cli.output import add_json, emit_json, say
from dmcopy.cli.parser import positive
from dmcopy.errors import ExitCode, MissingError, UsageError
from dmcopy.units import parse_count

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from dmcopy.testing.results import Results

_EXAMPLES: Final = """\
examples:
  dmcopy explore tests.power:cut --seeds 0-9999                  on every processor
  dmcopy explore tests.power:cut --seeds 0-9999999 --out power   again: continues where it ended
  dmcopy explore tests.power:cut --seeds 0-999999 --stop-at cuts=1000000   as many as it takes
  dmcopy explore tests.power:cut --seeds 7 --set steps=5         one seed, made smaller
  dmcopy explore tests.power:cut --seeds 0-99 --cluster tcp://head:8786

The function is called with a seed, and fails by raising; numbers that it returns are summed up. Its
parameters that are whole numbers by default can be --set, and are reduced where a seed fails. With
--cluster the workers of a Dask scheduler play, which must be able to import the module. The seeds
of a worker that dies, here or there, are played again.

Ends with 0 where all seeds pass, with 1 where one fails, and prints the command that repeats it.
"""
_EVERY: Final = 30.0
_FAILURES: Final = 5
_MOST_WORKERS: Final = 1024


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EXAMPLES
    parser.add_argument("function", metavar="MODULE:FUNCTION", help="what is played with a seed")
    parser.add_argument(
        "--seeds",
        required=True,
        type=seeds_range,
        metavar="A-B",
        help="from A up to B, both included",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--workers", type=positive, metavar="N", help="processes (default: one for each processor)"
    )
    where.add_argument("--cluster", metavar="ADDRESS", help="the address of a Dask scheduler")
    parser.add_argument("--until-failure", action="store_true", help="stop at the first failure")
    parser.add_argument(
        "--stop-at",
        action="append",
        default=[],
        metavar="NAME=N",
        help="stop when that much of what the function returns is summed up",
    )
    parser.add_argument(
        "--out", metavar="FILE", help="keep results in FILE, and continue what is in it"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=N", help="call the function with it"
    )
    add_json(parser)


def _options(words: list[str]) -> dict[str, int]:
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name.isidentifier() or not value.isdecimal():
            raise UsageError(f"--set {word:.40}: give NAME=N, N a whole number")
        found[name] = parse_count(value)
    return found


def _sums(words: list[str]) -> dict[str, int]:
    found = {}
    for word in words:
        name, _, value = word.rpartition("=")
        if not name or not value.isdecimal():
            raise UsageError(f"--stop-at {word:.40}: give NAME=N, as in cuts=1000000")
        found[name] = parse_count(value)
    return found


def run(args: argparse.Namespace) -> int:
    """Play the seeds, and tell what came of them."""
    from dmcopy.testing import seeds
    from dmcopy.testing.campaign import Campaign
    from dmcopy.testing.results import Results

    options, sums = _options(args.set), _sums(args.stop_at)
    seeds.check(seeds.find(args.function), options)
    workers = args.workers or len(os.sched_getaffinity(0))
    if workers > _MOST_WORKERS:
        raise UsageError(f"--workers {workers}: give {_MOST_WORKERS} at most")
    make, width = _executor(args, workers)
    with Results(args.out, args.function, options) as results:
        told = _Told(results, args.seeds)
        campaign = Campaign(
            args.function,
            results,
            make,
            options=options,
            width=width,
            until_failure=args.until_failure,
            stop_at=sums,
            told=told.perhaps,
        )
        try:
            campaign.run(args.seeds)
        except BaseException as error:
            _end_workers()  # which else are waited for at the end
            if args.out and isinstance(error, KeyboardInterrupt):
                say(f"dmcopy: {told.line()}; the same command continues it")
            raise
        return _tell(args, results, campaign.deaths, options)


def _executor(args: argparse.Namespace, workers: int) -> tuple[Callable[[], Executor], int]:
    """Return what makes an executor, and how many batches it can have under way."""
    if args.cluster is None:
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor

        def pool() -> Executor:
            spawn = multiprocessing.get_context("spawn")
            return ProcessPoolExecutor(workers, spawn, _ignore_interrupts)

        return pool, workers + 1
    try:
        from distributed import Client
    except ImportError:
        raise MissingError(
            "--cluster needs the package distributed: pip install 'dmcopy[cluster]'"
        ) from None
    try:
        client = Client(args.cluster, timeout=30)
    except (OSError, ValueError) as error:
        raise UsageError(f"--cluster {args.cluster}: no scheduler answers: {error}") from None
    threads = sum(client.nthreads().values())
    executor: Executor = client.get_executor(pure=False)
    return lambda: executor, max(2, 2 * threads)


def _ignore_interrupts() -> None:
    """The parent ends its workers; a Ctrl-C of the terminal reaches them, too."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _end_workers() -> None:
    import multiprocessing

    for process in multiprocessing.active_children():
        process.terminate()


class _Told:
    """Says now and then how far it is."""

    def __init__(self, results: Results, wanted: range) -> None:
        self._results = results
        self._wanted = wanted
        self._next = time.monotonic() + _EVERY

    def perhaps(self) -> None:
        """Say it where that is due."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _EVERY
            say(f"dmcopy: {self.line()}")

    def line(self) -> str:
        """Return what there is to say."""
        results, wanted = self._results, self._wanted
        left = sum(end - start for start, end in results.done.gaps(wanted.start, wanted.stop))
        counts = "".join(f", {number:,} {key}" for key, number in results.counts.items())
        failed = f", {len(results.failures)} failed" if results.failures else ""
        return f"{len(wanted) - left:,} of {len(wanted):,} seeds{counts}{failed}"


def _tell(args: argparse.Namespace, results: Results, deaths: int, options: dict[str, int]) -> int:
    failed = sorted(seed for seed in results.failures if seed in args.seeds)
    shown = [_failure(args, results, seed, options) for seed in failed[:_FAILURES]]
    if args.json:
        done = sum(
            max(0, min(end, args.seeds.stop) - max(start, args.seeds.start))
            for start, end in results.done
        )
        emit_json(
            {
                "function": args.function,
                "seeds": done,
                "counts": results.counts,
                "seconds": round(results.seconds, 3),
                "deaths": deaths,
                "failed": failed,
                "failures": shown,
            }
        )
    else:
        print(f"{_Told(results, args.seeds).line()}; {results.seconds:,.0f} s of processors")
        for one in shown:
            print(f"\nseed {one['seed']}:\n{one['text']}\nthis one alone: {one['again']}")
    return ExitCode.FAILED if failed else ExitCode.OK


def _failure(
    args: argparse.Namespace, results: Results, seed: int, options: dict[str, int]
) -> dict[str, Any]:
    from dmcopy.testing import seeds

    text = results.failures[seed]
    least = options
    if not text.startswith("its worker died"):
        least = seeds.shrink(args.function, seed, options)
    words = ["dmcopy", "explore", args.function, "--seeds", str(seed)]
    for name, value in least.items():
        words += ["--set", f"{name}={value}"]
    return {"seed": seed, "text": text.rstrip(), "again": shlex.join(words)}
