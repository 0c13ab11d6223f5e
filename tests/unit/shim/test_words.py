"""The shim's words, as getopt_long(3) reads them."""

from __future__ import annotations

import shlex

import pytest

from dmcopy.shim.words import CommandLine, WordsError, atoi, strtoull


def read(line: str) -> tuple[list[str], dict[str, str | int]]:
    words = CommandLine(shlex.split(line))
    return words.operands, {**words.counts, **words.options}


@pytest.mark.parametrize(
    ("line", "operands", "options"),
    [
        ("-v create n -uU --table '0 8 zero'", ["create", "n"],
         {"verbose": 1, "uuid": "U", "table": "0 8 zero"}),
        ("--noudevsync remove n --ret --force -f", ["remove", "n"],
         {"noudevsync": 1, "retry": 1, "force": 2}),
        ("info -Cco name --nohead --sep=: -S a=1", ["info"],
         {"columns": 2, "options": "name", "noheadings": 1, "separator": ":", "select": "a=1"}),
        ("message n 0 -- -x --force", ["message", "n", "0", "-x", "--force"], {}),
        ("create n - -ru -j", ["create", "n", "-"], {"readonly": 1, "uuid": "-j"}),
        ("--table '' create", ["create"], {"table": ""}),
    ],
)  # fmt: skip
def test_options_stand_anywhere(
    line: str, operands: list[str], options: dict[str, str | int]
) -> None:
    assert read(line) == (operands, options)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--no ls", "dmsetup: option '--no' is ambiguous; possibilities: '--noflush'"),
        ("--foo", "dmsetup: unrecognized option '--foo'"),
        ("--table", "dmsetup: option '--table' requires an argument"),
        ("--tree=x", "dmsetup: option '--tree' doesn't allow an argument"),
        ("-Z", "dmsetup: invalid option -- 'Z'"),
        ("ls -o", "dmsetup: option requires an argument -- 'o'"),
        ("-m 3 info", "Please specify both major number and minor number."),
        ("--count -1", "Count must be zero or greater."),
        ("--interval 0", "Interval must be a positive integer."),
        ("--mode x", "Invalid argument for --mode: x. "),
        ("--readahead -5", "Negative read ahead value (-5) is not understood."),
        ("--manglename x", "Unknown name mangling mode."),
        ("--table t -n", "--table and --notable are incompatible."),
    ],
)
def test_what_is_wrong_is_said_as_dmsetup_says_it(line: str, said: str) -> None:
    with pytest.raises(WordsError) as error:
        read(line)
    assert str(error.value).startswith(said)


def test_a_number_is_what_a_text_begins_with() -> None:
    texts = ["12", " 12x", "-3", "+4", "x", "", "-", "0x1f"]
    assert [atoi(text) for text in texts] == [12, 12, -3, 4, 0, 0, 0, 0]


def test_a_number_of_any_length_is_what_the_c_library_makes_of_it() -> None:
    """Measured with glibc 2.36; Python itself refuses numbers of more than 4,300 digits."""
    long = "9" * 5000
    texts = ["2147483647", "2147483648", "4294967301", "00000000000000000000012", long, f"-{long}"]
    assert [atoi(text) for text in texts] == [2**31 - 1, -(2**31), 5, 12, -1, 0]
    texts = ["0", "18446744073709551615", "18446744073709551616", long, "0" * 5000 + "7"]
    assert [strtoull(text) for text in texts] == [0, *[2**64 - 1] * 3, 7]
