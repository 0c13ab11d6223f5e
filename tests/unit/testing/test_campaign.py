"""Campaigns: every seed once, whatever dies, and a failure as one command."""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dmcopy.cli.main import main
from dmcopy.errors import (
    BusyError,
    DeviceError,
    ExitCode,
    MetadataError,
    MissingError,
    UsageError,
)
from dmcopy.testing import seeds
from dmcopy.testing.campaign import Campaign
from dmcopy.testing.results import Results
from dmcopy.testing.seeds import Played

GOOD, SIZED, DIES, ONCE = (
    f"tests.unit.testing.played:{name}" for name in ("good", "sized", "dies", "dies_once")
)
Explore = Callable[..., tuple[int, str, str]]


class Here(Executor):
    """Plays in this very thread."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def submit(self, call: Any, /, *args: Any, **words: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.batches.append(list(args[1]))
        future.set_result(call(*args, **words))
        return future


@pytest.fixture
def explore(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Explore:
    """Run `dmcopy explore …` with two workers; return code, stdout, stderr."""
    monkeypatch.setenv("DMCOPY_TEST_FOLDER", str(tmp_path))

    def run(*words: str) -> tuple[int, str, str]:
        try:
            code = main(("explore", *words))
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return run


def test_every_seed_is_played_once_and_counted() -> None:
    executor = Here()
    with Results(None, GOOD, {}) as results:
        Campaign(GOOD, results, lambda: executor).run(range(1000))
    played = [seed for batch in executor.batches for seed in batch]
    assert sorted(played) == list(range(1000))
    assert results.counts == {"count": sum(range(1000))}
    assert list(results.done) == [(0, 1000)]
    assert len(executor.batches[0]) == 1
    assert max(map(len, executor.batches)) > 100, "batches become longer where seeds are quick"


def test_a_campaign_continues_where_it_ended(tmp_path: Path) -> None:
    path = str(tmp_path / "out")
    for wanted, played in ((range(10), 10), (range(5, 30), 20), (range(30), 0)):
        executor = Here()
        with Results(path, GOOD, {}) as results:
            Campaign(GOOD, results, lambda executor=executor: executor).run(wanted)  # type: ignore[misc]
        assert sum(map(len, executor.batches)) == played
    assert results.counts == {"count": sum(range(30))}


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_line_that_is_not_whole_is_played_again(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "out"
    with Results(str(path), GOOD, {}) as results:
        Campaign(GOOD, results, Here).run(range(20))
    path.write_bytes(path.read_bytes()[:-cut])
    with Results(str(path), GOOD, {}) as results:
        left = list(results.done.gaps(0, 20))
        assert left
        Campaign(GOOD, results, Here).run(range(20))
    with Results(str(path), GOOD, {}) as results:
        assert results.counts == {"count": sum(range(20))}


def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "out"
    for content, error in (
        (b"somebody's", MetadataError),
        (b"{}\n", MetadataError),
        (b'{"campaign": "other:one", "options": {}}\n', UsageError),
        (b'{"campaign": "a:b", "options": {}}\nx\n', MetadataError),
        (b"[1]\n", MetadataError),
    ):
        path.write_bytes(content)
        with pytest.raises(error):
            Results(str(path), GOOD, {})
        assert path.read_bytes() == content
    path.unlink()
    with Results(str(path), GOOD, {}), pytest.raises(BusyError):
        Results(str(path), GOOD, {})


@pytest.mark.parametrize(
    "line",
    [
        *(b"{}", b"[" * 100_000, b'{"seeds": 5}', b'{"seeds": [[0, "x"]]}', b'{"seeds": [[0]]}'),
        b'{"seeds": [], "counts": {}, "failures": [], "seconds": 1}',
        b'{"seeds": [], "counts": 7, "failures": {}, "seconds": 1}',
        b'{"seeds": [], "counts": {}, "failures": {"x": ""}, "seconds": 1}',
        b'{"seeds": [], "counts": {}, "failures": {}, "seconds": []}',
        b'{"seeds": [], "counts": {"n": Infinity}, "failures": {}, "seconds": 1}',
    ],
)
def test_a_line_that_is_damaged_is_named_and_the_file_left_alone(
    tmp_path: Path, line: bytes
) -> None:
    """Also what is JSON, and what no line of a campaign's could be."""
    path = tmp_path / "out"
    with Results(str(path), GOOD, {}):
        pass
    content = path.read_bytes() + line + b"\nand a part"
    path.write_bytes(content)
    with pytest.raises(MetadataError, match="line 2 is not a campaign's: name another file"):
        Results(str(path), GOOD, {})
    assert path.read_bytes() == content


def test_what_is_no_file_keeps_no_results(tmp_path: Path) -> None:
    """It would be read to its end first, and a FIFO or a device may have none."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (fifo, Path("/dev/full"), Path("/dev/null")):
        with pytest.raises(UsageError, match="is no file: results are read again"):
            Results(str(path), GOOD, {})


def test_a_file_that_cannot_be_read_is_told() -> None:
    """It is regular, and only reading it fails, as of a file system that is damaged."""
    with pytest.raises(DeviceError, match="/proc/self/mem: cannot read it: Input/output error"):
        Results("/proc/self/mem", GOOD, {})


def test_a_failure_is_made_small_and_told_as_one_command(explore: Explore, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    words = (SIZED, "--seeds", "0-9", "--workers", "2", "--out", out)
    code, said, _ = explore(*words)
    assert code == ExitCode.FAILED
    assert said.startswith("10 of 10 seeds, 360 steps, 4 odd, 1 failed; ")
    assert "AssertionError: seed 7 breaks after step 13" in said
    again = f"dmcopy explore {SIZED} --seeds 7 --set steps=13 --set width=1"
    assert f"this one alone: {again}\n" in said
    code, said, _ = explore(*again.split()[2:], "--json", "--workers", "1")
    facts = json.loads(said)
    assert (code, facts["failed"], facts["failures"][0]["again"]) == (1, [7], again)
    code, said, _ = explore(*again.split()[2:5], "--set", "steps=12", "--workers", "1")
    assert (code, said.split(",")[0]) == (0, "1 of 1 seeds")
    code, said, _ = explore(*words, "--json")
    assert (code, json.loads(said)["seeds"]) == (1, 10), "nothing is left to play"


def test_a_pool_that_hands_out_no_more_is_an_error_and_no_endless_wait() -> None:
    """Its thread ends without a word where it can start no other: prlimit --as, --nproc."""

    class Pool(Here):
        _executor_manager_thread = threading.Thread(target=lambda: None)

        def submit(self, *_: Any, **__: Any) -> Future[Any]:
            return Future()

    Pool._executor_manager_thread.start()
    with Results(None, GOOD, {}) as results, pytest.raises(MissingError, match="no more to do"):
        Campaign(GOOD, results, Pool).run(range(10))


def test_a_pool_that_cannot_begin_is_not_made_again_and_again() -> None:
    made: list[int] = []

    class Pool(Here):
        def submit(self, *_: Any, **__: Any) -> Future[Any]:
            made.append(1)
            assert len(made) < 10
            raise RuntimeError("can't start new thread")

    with Results(None, GOOD, {}) as results, pytest.raises(RuntimeError, match="new thread"):
        Campaign(GOOD, results, Pool).run(range(10))
    assert made == [1]


def test_until_a_failure() -> None:
    with Results(None, SIZED, {}) as results:
        Campaign(SIZED, results, Here, until_failure=True, width=1).run(range(1000))
    assert list(results.failures) == [7]
    assert results.done.total() < 20


def test_until_enough_is_counted(explore: Explore, tmp_path: Path) -> None:
    words = (SIZED, "--workers", "1", "--stop-at", "odd=5", "--stop-at", "nothing=1", "--json")
    out = ("--out", str(tmp_path / "out"))
    code, said, _ = explore(*words, "--seeds", "10-9999999", *out)
    facts = json.loads(said)
    assert (code, facts["failed"]) == (0, [])
    assert 10 <= facts["seeds"] < 100_000
    assert facts["counts"]["odd"] >= 5
    again = json.loads(explore(*words, "--seeds", "10-9999999", *out)[1])
    assert again["seeds"] == facts["seeds"], "it was enough already"


def test_a_worker_that_dies_costs_its_seeds_a_second_run(explore: Explore, tmp_path: Path) -> None:
    code, said, _ = explore(ONCE, "--seeds", "0-29", "--workers", "2", "--json")
    facts = json.loads(said)
    assert (code, facts["seeds"], facts["counts"]) == (0, 30, {"count": 30})
    assert facts["deaths"]
    played = Counter((tmp_path / "played").read_text().split())
    assert set(played) == {str(seed) for seed in range(30)}
    assert max(played.values()) == 2


def test_a_seed_that_a_worker_dies_of_is_a_failure(explore: Explore) -> None:
    code, said, _ = explore(DIES, "--seeds", "0-9", "--workers", "2", "--json")
    facts = json.loads(said)
    assert (code, facts["failed"], facts["seeds"], facts["counts"]) == (1, [5], 10, {"count": 9})
    assert facts["failures"][0]["text"].startswith("its worker died of it: BrokenProcessPool")


def test_what_is_no_history(explore: Explore) -> None:
    for words, says in (
        (("nowhere", "--seeds", "1"), "names no function"),
        (("no.such:thing", "--seeds", "1"), "cannot be imported"),
        (("tests.unit.testing.played:nothing", "--seeds", "1"), "has no function nothing"),
        ((GOOD, "--seeds", "9-1"), "is no range of seeds"),
        ((GOOD, "--seeds", "x"), "is no range of seeds"),
        ((GOOD, "--seeds", f"0-{2**63 - 1}"), "is no range of seeds"),
        ((GOOD, "--seeds", "0-" + "9" * 5000), "is too large"),
        ((GOOD, "--seeds", "1", "--set", "a"), "--set a: give NAME=N"),
        ((GOOD, "--seeds", "1", "--set", "a=" + "9" * 5000), "is too large"),
        ((SIZED, "--seeds", "1", "--set", "stepz=3"), "unexpected keyword argument 'stepz'"),
        ((GOOD, "--seeds", "1", "--stop-at", "7"), "--stop-at 7: give NAME=N"),
        ((GOOD, "--seeds", "1", "--stop-at", "a=-7"), "--stop-at a=-7: give NAME=N"),
        ((GOOD, "--seeds", "1", "--workers", "-3"), "-3 is too small"),
        ((GOOD, "--seeds", "1", "--workers", "99999999999"), "give 1024 at most"),
        ((GOOD, "--seeds", "1", "--out", ""), "it is empty"),
        ((GOOD, "--seeds", "1", "--workers", "1", "--cluster", "x"), "not allowed with"),
    ):
        code, _, err = explore(*words)
        assert (code, says in err) == (ExitCode.USAGE, True), err


def test_a_module_that_ends_the_process_is_no_history(
    explore: Explore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script without a guard: its exit code is not that of the campaign."""
    (tmp_path / "ends_at_its_import.py").write_text("raise SystemExit(0)\n")
    monkeypatch.syspath_prepend(tmp_path)
    code, _, err = explore("ends_at_its_import:thing", "--seeds", "1")
    assert (code, "cannot be imported: SystemExit: 0" in err) == (ExitCode.USAGE, True), err


def test_any_executor_will_do() -> None:
    with ThreadPoolExecutor(2) as pool, Results(None, GOOD, {}) as results:
        Campaign(GOOD, results, lambda: pool).run(range(50))
    assert results.counts == {"count": sum(range(50))}


def test_a_history_counts_what_it_returns() -> None:
    assert seeds.play(GOOD, [3, 4], {}, stop=False).counts == {"count": 7}
    played = seeds.play(SIZED, [6, 7, 8], {"steps": 20}, stop=True)
    assert (played.seeds, list(played.failures), played.counts) == (
        [6, 7],
        [7],
        {"steps": 20, "odd": 0},
    )
    assert seeds.shrink(SIZED, 7, {"width": 3}) == {"steps": 13, "width": 1}
    assert Played([1]).counts == {}
