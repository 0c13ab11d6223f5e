"""What the kernel refuses is refused here first, in words that name the word and the rule.

tests/kernel/mapper/test_refusals.py shows the same lines to real kernels.
"""

import pytest

from dmcopy.errors import ExitCode, UsageError
from dmcopy.table import Linear, Snapshot, Table, TableError, TableLine, Zero

from .refusals import LAYOUTS, MIRRORS, OTHERS, SNAPSHOTS


@pytest.mark.parametrize(("words", "message"), SNAPSHOTS + MIRRORS + OTHERS)
def test_a_wrong_word_is_named_with_its_rule(words: str, message: str) -> None:
    with pytest.raises(TableError) as caught:
        Table.parse(f"0 16384 {words}")
    assert message in str(caught.value)
    assert str(caught.value).startswith(words.split()[0])


@pytest.mark.parametrize(("text", "message"), LAYOUTS)
def test_lines_must_follow_on_each_other(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Table.parse(text)


def test_the_line_is_named_when_there_are_several() -> None:
    with pytest.raises(TableError, match="line 2: snapshot: chunk_size '3'"):
        Table.parse("0 8 zero\n8 8 snapshot a b P 3")


def test_a_comment_sign_in_a_path_is_refused_as_dmsetup_would_cut_there() -> None:
    with pytest.raises(UsageError, match="dmsetup would cut the line"):
        Table.parse("0 8 linear /dev/a#1 0")
    assert Table.parse(r"0 8 linear /dev/a\#1 0").devices == ("/dev/a#1",)
    assert Table.parse("# a table\n0 8 zero # nothing\n\n") == Table.of(8, Zero())


def test_a_key_is_never_repeated_in_a_message() -> None:
    with pytest.raises(TableError) as caught:
        Table.parse("0 8 crypt aes-xts-plain64 secretkey 0 /dev/a 0")
    assert "secretkey" not in str(caught.value)


def test_values_are_checked_like_text() -> None:
    with pytest.raises(TableError, match="power of two"):
        Table.of(64, Snapshot("a", "b", "P", 5)).check()
    with pytest.raises(TableError, match="must not be empty"):
        Table.of(64, Linear("", 0)).check()
    with pytest.raises(TableError, match="leaves a gap"):
        Table((TableLine(1, 2, Zero()),)).check()
    assert TableError("linear", "offset", 1, "is odd").exit_code == ExitCode.USAGE
