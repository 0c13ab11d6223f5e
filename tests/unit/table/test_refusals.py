"""What the kernel refuses is refused here first, in words that name the word and the rule.

tests/kernel/mapper/test_refusals.py shows the same lines to real kernels.
"""

import pytest

from dmcopy.errors import ExitCode, UsageError
from dmcopy.table import Linear, Snapshot, Table, TableError, TableLine, Zero

# (line, what the message says); A and B stand for two devices, L for a third.
SNAPSHOTS = [
    ("snapshot A B P", "chunk_size is missing"),
    ("snapshot A", "cow is missing"),
    ("snapshot A B X 8", "store 'X' must be P, PO or N"),
    ("snapshot A B persistent 8", "only O may follow a P"),
    ("snapshot A A P 8", "another device than the origin"),
    ("snapshot A B P 3", "chunk_size '3' must be a power of two"),
    ("snapshot A B P 7", "chunk_size '7' must be a power of two"),
    ("snapshot A B P -1", "chunk_size '-1' must be a decimal number"),
    ("snapshot A B P x", "chunk_size 'x' must be a decimal number"),
    ("snapshot A B P 4194304", "must be from 0 to 4194303"),
    ("snapshot A B N 0", "store N has no default"),
    ("snapshot A B P 8 1 discard_passdown_origin", "needs discard_zeroes_cow"),
    ("snapshot A B P 8 1 discard_everything", "feature 'discard_everything' is unknown"),
    ("snapshot A B P 8 3 discard_zeroes_cow x y", "must be from 0 to 2"),
    ("snapshot A B P 8 2 discard_zeroes_cow", "says that 2 words follow, but 1 do"),
    ("snapshot-merge A B N 8", "must be P or PO"),
    ("snapshot-origin", "origin is missing"),
    ("snapshot-origin A B", "'B' is one too many"),
]
MIRRORS = [
    ("mirror core 1 1024 1 A 0", "number of legs '1' must be from 2 to 9"),
    ("mirror core 1 1024 10" + " A 0" * 10, "number of legs '10' must be from 2 to 9"),
    ("mirror core 1 1000 2 A 0 B 0", "core log region_size '1000' must be a power of two"),
    ("mirror core 1 1 2 A 0 B 0", "region_size '1' must be from 2"),
    ("mirror core 1 65536 2 A 0 B 0", "must not exceed the length, 16384 sectors"),
    ("mirror core 2 1024 maybe 2 A 0 B 0", "must be one of sync, nosync"),
    ("mirror core 2 1024 block_on_error 2 A 0 B 0", "must be one of sync, nosync"),
    ("mirror core 3 1024 sync x 2 A 0 B 0", "'x' is one too many"),
    ("mirror disk 1 L 2 A 0 B 0", "region_size is missing"),
    ("mirror core 1 1024 2 A 0 B", "needs 2 pairs of device and offset, but 3 words follow"),
    ("mirror core 1 1024 2 A 0 B 0 1 keep_log", "keep_log' needs handle_errors"),
    ("mirror core 1 1024 2 A 0 B 0 1 Handle_Errors", "feature 'Handle_Errors' is unknown"),
    ("mirror core 1 1024 2 A 0 B 0 1 handle_errors x", "'x' is one too many"),
    ("mirror core 1 1024 2 A 0 B x", "offset 'x' must be a decimal number"),
    ("mirror core 9 1024 2 A 0 B 0", "number of log words '9' says that 9 words follow"),
]
OTHERS = [
    ("linear A", "offset is missing"),
    ("linear A 0x10", "offset '0x10' must be a decimal number"),
    ("linear A 0 1", "'1' is one too many"),
    ("zero 1", "'1' is one too many"),
    ("striped 2 8 A 0", "needs 2 pairs"),
    ("striped 3 8 A 0 A 0 B 0", "must divide the length"),
    ("striped 2 0 A 0 B 0", "chunk_size '0' must be from 1"),
    ("striped 2 24 A 0 B 0", "times 2 stripes must divide the length"),
    ("flakey A 0 0 0 0", "must add up to 1"),
    ("flakey A 0 1 1 1 explode", "feature 'explode' is unknown"),
    ("flakey A 0 1 1 2 drop_writes error_writes", "excludes"),
    ("flakey A 0 1 1 2 drop_writes drop_writes", "is there twice"),
    ("flakey A 0 1 1 5 corrupt_bio_byte 0 r 1 0", "must be from 1 to"),
    ("flakey A 0 1 1 5 corrupt_bio_byte 1 x 1 0", "must be r or w"),
    ("flakey A 0 1 1 5 corrupt_bio_byte 1 r 256 0", "must be from 0 to 255"),
    ("flakey A 0 1 1 6 drop_writes corrupt_bio_byte 1 w 1 0", "excludes corrupt_bio_byte w"),
    ("flakey A 0 1 1 4 corrupt_bio_byte 1 r 1", "needs 4 words after it"),
    ("delay A 0", "milliseconds is missing"),
    ("delay A 0 1 B 0", "milliseconds is missing"),
    ("delay A 0 x", "milliseconds 'x' must be a decimal number"),
    ("log-writes A", "log_device is missing"),
    ("thin-pool A B 127 0", "must be from 128"),
    ("thin-pool A B 192 0", "must be a multiple of 128"),
    ("thin-pool A A 128 0", "another device than the metadata"),
    ("thin-pool A B 128 0 1 speed", "feature 'speed' is unknown"),
    ("era A B 7", "must be from 8"),
    ("era A B 12", "must be a multiple of 8"),
    ("cache L B A 96 1 writeback default 0", "must be a multiple of 64"),
    ("cache L B A 64 2 writeback writethrough default 0", "excludes writeback"),
    ("cache L B A 64 1 sideways default 0", "feature 'sideways' is unknown"),
    ("writecache x A B 4096 0", "must be one of p, s"),
    ("writecache s A B 1000 0", "must be a power of two"),
    ("writecache s A B 4096 1 fua", "persistent memory (p) only"),
    ("writecache s A B 4096 2 high_watermark 101", "must be from 0 to 100"),
    ("unstriped 2 8 2 A 0", "stripe '2' must be from 0 to 1"),
    ("switch 1 8 1 x A 0", "number of options '1' must be 0"),
    ("raid raid1 1 0 0", "must be from 1"),
    ("raid raid7 1 8 1 - A", "level 'raid7' is unknown"),
    ("raid raid0 1 12 2 - A - B", "power of two of at least 8"),
    ("raid raid1 3 0 rebuild 5 2 - A - B", "must be from 0 to 1"),
    ("raid raid0 2 8 sync 2 - A - B", "option 'sync' is not for raid0"),
    ("raid raid1 3 0 sync nosync 2 - A - B", "excludes"),
    ("integrity A 0 - J 0", "internal_hash"),
    ("integrity A 0 4 X 0", "must be one of J, B, D, R, I"),
    ("crypt aes-xts-plain64 xyz 0 A 0", "key must be pairs of hexadecimal"),
    ("crypt aes-xts-plain64 " + "ba" * 64 + " 0 A 0 1 sector_size:1000", "must be 512, 1024"),
    ("multipath 0 0 0 1", "next group '1' must be 0"),
    ("multipath 1 fly 0 0 0", "feature 'fly' is unknown"),
]
# Tables whose lines do not follow on each other.
LAYOUTS = [
    ("8 8 zero", "leaves a gap: a table starts at 0"),
    ("0 8 zero\n16 8 zero", "leaves a gap: the line before ends at 8"),
    ("0 8 zero\n4 8 zero", "overlaps the line before: the line before ends at 8"),
    ("0 0 zero", "length '0' must be at least 1 sector"),
    (f"0 {1 << 60} zero", "ends beyond sector"),
    ("0 8 thin-pool A B 128 0\n8 8 zero", "thin-pool must be the only line"),
    ("0 8", "target is missing"),
    ("0 x zero", "length 'x' must be a decimal number"),
    ("-1 8 zero", "start '-1' must be a decimal number"),
]


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
