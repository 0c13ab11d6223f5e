"""A campaign on a Dask cluster on this machine: three workers, of which one is killed midway."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import pytest

from tests.docs.blocks import ROOT
from tests.waiting import until

pytestmark = pytest.mark.skipif(
    os.environ.get("DMCOPY_TEST") != "long" or not importlib.util.find_spec("distributed"),
    reason="only in ./scripts/test --long, with distributed (pip install 'dmcopy[cluster]')",
)
SLOW = "tests.unit.testing.played:slow"
SEEDS = 1500


def started(exits: ExitStack, *words: str, **more: str) -> subprocess.Popen[bytes]:
    """Start a program of Python's; it is killed at the end."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **more}
    errors = exits.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
    process = exits.enter_context(
        subprocess.Popen(
            [sys.executable, *words],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
    )
    exits.callback(lambda: sys.stderr.write(told(errors)))
    exits.callback(process.kill)
    return process


def told(errors: IO[bytes]) -> str:
    """Return what a process said at its end, for the report of a failure."""
    errors.seek(0)
    return errors.read().decode(errors="replace")[-3000:]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    with ExitStack() as exits:
        place = tmp_path / "scheduler.json"
        common = ("--no-dashboard", "--scheduler-file", str(place))
        scheduler = ("-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0")
        started(exits, *scheduler, *common)
        until(lambda: place.exists() and place.read_text(), "the scheduler")
        words = ("-m", "distributed.cli.dask_worker", "--nthreads", "1", "--no-nanny", *common)
        folder = {"DMCOPY_TEST_FOLDER": str(tmp_path)}
        workers = [started(exits, *words, **folder) for _ in range(3)]
        yield json.loads(place.read_text())["address"], workers


def test_every_seed_counts_once_though_a_worker_is_killed(
    cluster: tuple[str, list[subprocess.Popen[bytes]]], tmp_path: Path
) -> None:
    address, workers = cluster
    played = tmp_path / "played"
    out = str(tmp_path / "out")
    with ExitStack() as exits:
        words = ("-m", "dmcopy", "explore", SLOW, "--seeds", f"0-{SEEDS - 1}", "--json")
        campaign = started(exits, *words, "--cluster", address, "--out", out)
        deadline = time.monotonic() + 120
        while not played.exists() or played.read_text().count("\n") < SEEDS // 5:
            assert time.monotonic() < deadline, "the campaign does not begin"
            assert campaign.poll() is None
            time.sleep(0.05)
        pids = [int(line.split()[0]) for line in played.read_text().splitlines()]
        victim = next(worker for worker in workers if worker.pid in pids)
        os.kill(victim.pid, signal.SIGKILL)
        said, _ = campaign.communicate(timeout=300)
    facts = json.loads(said)
    assert (campaign.returncode, facts["seeds"]) == (0, SEEDS)
    assert facts["counts"] == {"count": SEEDS, "sum": sum(range(SEEDS))}
    by_seed: dict[int, int] = {}
    for line in played.read_text().splitlines():
        seed = int(line.split()[1])
        by_seed[seed] = by_seed.get(seed, 0) + 1
    assert set(by_seed) == set(range(SEEDS))
    assert max(by_seed.values()) <= 2
    assert sum(by_seed.values()) < 1.5 * SEEDS, "more was played again than what was lost"
    lines = [json.loads(line) for line in Path(out).read_text().splitlines()[1:]]
    kept = [seed for line in lines for start, end in line["seeds"] for seed in range(start, end)]
    assert sorted(kept) == list(range(SEEDS)), "each seed is in the file once"
