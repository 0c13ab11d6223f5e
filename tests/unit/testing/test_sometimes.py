"""States that a run never reached are named at its end, those of calls never made included."""

from __future__ import annotations

import importlib.util

import pytest

from dmcopy.testing.sometimes import add, known, never_reached, reached, sometimes

pytest_plugins = ["pytester"]


def _never_called() -> None:
    sometimes("a call that no test makes")
    sometimes(f"{1} is no literal")


def test_a_state_is_reached_or_named() -> None:
    assert sometimes("reached at once", 5 > 3)
    assert not sometimes("come by and never true", 5 < 3)
    assert "come by and never true" in never_reached()
    assert "a call that no test makes" in never_reached()
    assert "reached at once" not in never_reached()
    assert not any("no literal" in text for text in known())
    add({"come by and never true": 2, "a call that no test makes": 1})
    assert reached()["come by and never true"] == 2
    assert "come by and never true" not in never_reached()


SUITE = """
    from dmcopy.testing.sometimes import sometimes

    def merge(area):
        if area == 3:
            sometimes("a merge met a full area")
        sometimes("an area was empty", area == 0)

    def test_merge():
        merge(0)
        merge(1)
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_tells_at_its_end(pytester: pytest.Pytester, workers: int) -> None:
    if workers and importlib.util.find_spec("xdist") is None:
        pytest.skip("no pytest-xdist")
    pytester.makepyfile(SUITE)
    words = ["-n", str(workers)] if workers else []
    result = pytester.runpytest_subprocess(*words)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*states that were never reached*", "never: a merge met a full*"])
    assert "an area was empty" not in result.stdout.str()
    told = pytester.runpytest_subprocess("--collect-only").stdout.str()
    assert "never reached" not in told


def test_a_run_without_any_says_nothing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it():\n    pass\n")
    assert "never reached" not in pytester.runpytest_subprocess().stdout.str()
