"""The table of exceptions against a dict, and what ten million of them take."""

from __future__ import annotations

import os
import subprocess
import sys
from array import array

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dmcopy.ondisk import scattered
from dmcopy.ondisk.exceptions import _PLACES, RUN, ExceptionTable

# Few blocks, so that runs, single ones and the edges of blocks meet; and the largest numbers.
_OLD = st.integers(0, 700) | st.integers((1 << 64) - 300, (1 << 64) - 1)
_NEW = st.integers(2, 1 << 20) | st.sampled_from([(1 << 64) - 1, (1 << 64) - 2])
_RUN = st.tuples(st.integers(0, 700), st.integers(1, 400), _NEW)
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("insert"), _OLD, _NEW),
        st.tuples(st.just("sequence"), st.integers(0, 600), st.integers(250, 270)),
        st.tuples(st.just("remove"), _OLD),
        st.tuples(st.just("run"), _RUN),
        st.tuples(st.just("pairs"), st.lists(st.tuples(_OLD, _NEW), max_size=20)),
    ),
    max_size=20,
)


def _flat(pairs: list[tuple[int, int]]) -> array[int]:
    return array("Q", [number for pair in pairs for number in pair])


@pytest.fixture(params=[0, scattered.SPILL], ids=["many", "few"])
def spill(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take as many as there are for many, in few buckets, so that these are full."""
    monkeypatch.setattr(scattered, "SPILL", request.param)
    monkeypatch.setattr(scattered, "_BUCKETS", 8)
    monkeypatch.setattr(scattered, "_LAST", 7)


@pytest.mark.usefixtures("spill")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_STEPS)
def test_it_is_a_dict(steps: list[tuple[object, ...]]) -> None:
    table, model = ExceptionTable(), dict[int, int]()
    for step in steps:
        match step:
            case ("insert", int(old), int(new)):
                table.insert(old, new)
                model[old] = new
            case ("sequence", int(old), int(count)):
                for number in range(old, old + count):
                    table.insert(number, number + 7)
                    model[number] = number + 7
            case ("remove", int(old)):
                if old in model:
                    table.remove(old)
                    del model[old]
                else:
                    with pytest.raises(KeyError):
                        table.remove(old)
            case ("run", (int(old), int(count), int(new))):
                run = [(old + k, min(new + k, (1 << 64) - 1)) for k in range(count)]
                table.extend(_flat(run))
                model.update(run)
            case ("pairs", list(pairs)):
                table.extend(_flat(pairs))
                model.update(pairs)
        assert len(table) == len(model)
        assert sorted(table.items()) == sorted(model.items())
        for old in (*range(0, 1100, 7), *list(model)[:50]):
            assert table.get(old) == model.get(old)
            assert (old in table) == (old in model)


def test_what_is_written_in_order_is_compressed() -> None:
    table = ExceptionTable()
    for old in range(1000):
        table.insert(old, old + 2)
    assert len(table._blocks) == 3  # 768 of them; the last block is not whole yet
    assert len(table._scattered) == 1000 - 768
    run = ExceptionTable()
    run.extend(_flat([(old, old + 2) for old in range(100, 100 + RUN)]))
    assert not run._scattered


def test_an_area_without_order_keeps_its_numbers() -> None:
    """As many as a run has, but no two of them follow each other, nor does a pair of runs."""
    scattered = {old: old + 5 for old in range(0, 4 * RUN, 2)}
    runs = {old: old + 5 for first in (1024, 3072) for old in range(first, first + RUN)}
    table = ExceptionTable()
    table.extend(_flat([*scattered.items(), *runs.items()]))
    assert dict(table.items()) == scattered | runs
    assert set(table._scattered) == set(scattered)


def test_a_short_run_is_worth_a_block_only_where_there_is_one() -> None:
    """A store of many short runs would take 2 KiB for each; one in order would stay scattered."""
    table = ExceptionTable()
    table.extend(_flat([(old, 1) for old in range(_PLACES - 1, _PLACES + RUN)]))
    assert (set(table._scattered), set(table._blocks)) == ({_PLACES - 1}, {1})
    table.extend(_flat([(old, 1) for old in range(2 * _PLACES - RUN, 2 * _PLACES + RUN - 1)]))
    assert len(table._scattered) == RUN
    assert set(table._blocks) == {1}


@pytest.mark.parametrize("kind", ["consecutive", "random"])
def test_millions_fit(kind: str) -> None:
    """In a process of its own, whose peak is the table's. Ten million in the long run."""
    if os.environ.get("DMCOPY_TEST") == "long":
        _load(kind, 10_000_000, seconds=10, mebibytes=600)
    else:
        _load(kind, 1_000_000, seconds=None, mebibytes=150)
        _load(kind, 1_200_000, seconds=None, mebibytes=200)


def _load(kind: str, count: int, *, seconds: int | None, mebibytes: int) -> None:
    script = f"""
import random, re, time
from array import array
from dmcopy.ondisk.exceptions import ExceptionTable
rnd, table, spent = random.Random(1), ExceptionTable(), 0.0
for base in range(0, {count}, 256):
    size = min(256, {count} - base)
    olds = range(base, base + size)
    if {kind!r} == "random":
        olds = [rnd.randrange(1 << 40) for _ in range(size)]
    area = array("Q", bytes(16 * size))
    area[0::2], area[1::2] = array("Q", olds), array("Q", range(base + 2, base + 2 + size))
    began = time.process_time()
    table.extend(area)
    spent += time.process_time() - began
assert len(table) > {count} * 0.999, len(table)
# Not ru_maxrss, which begins with what the parent had when it forked.
status = open("/proc/self/status").read()
print(spent, int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) // 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    spent, rss = done.stdout.split()
    assert int(rss) <= mebibytes
    assert seconds is None or float(spent) <= seconds
