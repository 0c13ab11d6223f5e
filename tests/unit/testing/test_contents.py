"""What a failed comparison of contents says."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]

# Some 2,000 lines for pytest, each like many others: its own comparison takes minutes.
UNEQUAL = """
import random

def test_it():
    before = random.Random(1).randbytes(64 << 9)
    now = bytearray(before)
    for sector in (12, 13, 40):
        now[(sector << 9) + 6 : (sector << 9) + 300] = random.Random(sector).randbytes(294)
    {}
"""


@pytest.mark.parametrize(
    ("words", "ci"),
    [((), False), (("-vv",), False), (("-o", "verbosity_assertions=3"), False), ((), True)],
)
@pytest.mark.timeout(60)
def test_the_first_sector_that_differs(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], ci: bool
) -> None:
    for name in ("CI", "BUILD_NUMBER"):
        monkeypatch.setenv(name, "1") if ci else monkeypatch.delenv(name, raising=False)
    pytester.makepyfile(UNEQUAL.format("assert now == before"))
    result = pytester.runpytest_inprocess(*words)
    result.assert_outcomes(failed=1)
    result.stdout.re_match_lines(
        [
            r"E +assert bytearray\(.*",
            r"E +3 of 64 sectors differ, from sector 12 on: its byte 6 is 0x.., not 0x..$",
        ]
    )
    result.stdout.no_fnmatch_line("*Use -v*")


@pytest.mark.parametrize(
    ("claim", "told"),
    [
        ("assert before == before[:-512]", ["32768 bytes are not 32256"]),
        (
            "assert memoryview(before)[:-1] == now",
            ["32767 bytes are not 32768", "4 of 64 sectors differ, from sector 12 on: *"],
        ),
        # Lines that are all alike: a second for pytest already, and a crash explorer fails often.
        ("assert bytes(1024) == b'x' * 1024", ["2 of 2 sectors differ, from sector 0 on: *"]),
    ],
)
def test_contents_of_two_lengths(pytester: pytest.Pytester, claim: str, told: list[str]) -> None:
    pytester.makepyfile(UNEQUAL.format(claim))
    result = pytester.runpytest_inprocess()
    result.stdout.fnmatch_lines([f"E * {line}" for line in told])


@pytest.mark.parametrize(
    "claim", ["assert now[:512] == b'x'", "assert [1] == [2]", "assert not before == before"]
)
def test_what_pytest_explains_well_is_left_to_it(pytester: pytest.Pytester, claim: str) -> None:
    pytester.makepyfile(UNEQUAL.format(claim))
    result = pytester.runpytest_inprocess("-v")
    result.assert_outcomes(failed=1)
    result.stdout.no_fnmatch_line("*sectors differ*")
