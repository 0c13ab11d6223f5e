"""Status lines as kernels print them: each becomes the right value, and the same text again."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmcopy.errors import UsageError
from dmcopy.status import (
    STATUSES,
    DelayStatus,
    EraStatus,
    FailedStatus,
    MirrorStatus,
    Ratio,
    Silent,
    SnapshotStatus,
    Status,
    StatusLine,
    ThinStatus,
    Unparsed,
    parse_lines,
    parse_status,
)

# From the kernel's documentation of 6.12, and measured in guests with 6.1 and 6.12.
LINES = [
    "0 8388608 snapshot 397896/2097152 1560",
    "0 8388608 snapshot-merge 281688/2097152 1104",
    "0 8388608 snapshot-merge 16/2097152 16",
    "0 32768 snapshot 48/8192 16",
    "0 32768 snapshot 48/8192",
    "0 32768 snapshot Invalid",
    "0 32768 snapshot Overflow",
    "0 32768 snapshot Unknown",
    "0 32768 snapshot-merge Merge failed",
    "0 32768 snapshot-origin",
    "0 16384 mirror 2 7:17 7:18 16/16 1 AA 3 disk 7:19 A",
    "0 16384 mirror 2 7:17 7:18 15/16 1 AD 1 core",
    "0 16384 mirror 2 7:17 7:18 15/16 1 AA 3 disk 7:19 D",
    "0 16384 mirror 2 7:17 7:18 0/16 1 AA userspace 1 COM_FAILURE",
    "0 16384 striped 2 7:17 7:18 1 AA",
    "0 1960893648 raid raid4 5 AAAAA 2/490221568 init 0",
    "0 16384 raid raid1 2 AD 16384/16384 idle 0 0 -",
    "0 10 multipath 2 0 0 0 1 1 E 0 2 1 8:0 A 0 0 8:16 A 0 0",
    "0 10 multipath 2 0 0 0 1 1 E 0 2 2 8:0 A 0 0 1 8:16 A 0 0 4",
    "0 33552384 dust 252:17 bypass verbose",
    "0 33552384 dust 252:17 fail_read_on_bad_block quiet",
    "0 33552384 dust 252:17 bypass",
    "0 16384 delay 0 1 2",
    "0 16384 log-writes 5 14",
    "0 16384 log-writes 5 14 logging_disabled",
    "0 16384 flakey",
    "0 16384 linear",
    "0 16384 zero",
    "0 16384 error",
    "0 16384 crypt",
    "0 16384 era 8 9/1024 1 -",
    "0 16384 era 8 9/1024 7 12",
    "0 16384 era Error",
    "0 16384 clone 8 12/1024 8 5/2048 1 1 no_hydration 4 hydration_threshold 1 "
    "hydration_batch_size 1 rw",
    "0 16384 clone Fail",
    "0 16384 thin-pool 0 10/1024 0/128 - rw discard_passdown queue_if_no_space - 1024",
    "0 16384 thin-pool 3 10/1024 128/128 7 out_of_data_space no_discard_passdown "
    "error_if_no_space needs_check 1024",
    "0 16384 thin-pool Fail",
    "0 16384 thin 128 127",
    "0 16384 thin 0 -",
    "0 16384 thin -",
    "0 16384 cache 8 18/1024 128 0/64 0 12 0 0 0 0 0 2 metadata2 writethrough "
    "2 migration_threshold 2048 smq 0 rw -",
    "0 16384 cache 8 18/1024 128 0/64 0 12 0 0 0 0 0 1 writeback "
    "2 migration_threshold 2048 mq 4 sequential_threshold 1024 random_threshold 8 ro needs_check",
    "0 16384 writecache 0 3996 3996 0 0 0 0 0 0 0 0 0 0 0",
    "0 16384 writecache 5 3996 3996 0",
    "0 16384 verity V",
    "0 16384 verity C",
    "0 16384 integrity 0 16000 -",
    "0 16384 integrity 3 16000 512",
    "0 16384 vdo /dev/dm-1 normal - online offline 12 262144",
    "0 16384 zoned 6 zones 3/4 random 1/2 sequential",
    "0 16384 zoned 6 zones 0/0 cache 3/4 random 1/2 sequential",
    "0 16384 tomorrow 1 2/3 x",
]


@pytest.mark.parametrize("text", LINES)
def test_a_status_is_typed_and_written_back(text: str) -> None:
    line = StatusLine.parse(text)
    assert str(line) == text
    assert isinstance(line.status, Unparsed) == (line.target == "tomorrow")


def test_values_of_some_statuses() -> None:
    def status(text: str) -> Status:
        return StatusLine.parse(f"0 8 {text}").status

    snapshot = status("snapshot 48/8192 16")
    assert snapshot == SnapshotStatus("", Ratio(48, 8192), 16)
    assert isinstance(snapshot, SnapshotStatus)
    assert (snapshot.valid, snapshot.empty, snapshot.percent) == (True, False, 48 / 81.92)
    assert status("snapshot Invalid") == SnapshotStatus("Invalid")
    assert status("delay 1 2 3") == DelayStatus(1, 2, 3)
    assert status("era 8 9/1024 1 -") == EraStatus(8, Ratio(9, 1024), 1, None)
    assert status("thin 0 -") == ThinStatus(0, None)
    assert status("thin -") == FailedStatus("-")
    assert status("linear") == Silent()
    mirror = status("mirror 2 7:1 7:2 3/4 1 AD 3 disk 7:3 F")
    assert isinstance(mirror, MirrorStatus)
    assert (mirror.legs, mirror.sync, mirror.health) == (("7:1", "7:2"), Ratio(3, 4), "AD")
    assert (mirror.log, mirror.log_health, mirror.in_sync) == (("disk", "7:3", "F"), "F", False)


@pytest.mark.parametrize(
    ("text", "trouble"),
    [
        ("snapshot 48/8192 16", ""),
        ("snapshot Invalid", "the snapshot is lost"),
        ("snapshot Overflow", "the store is full"),
        ("snapshot-merge Merge failed", "merging stopped"),
        ("mirror 2 7:1 7:2 4/4 1 AA 1 core", ""),
        ("mirror 2 7:1 7:2 4/4 1 DR 3 disk 7:3 D", "7:1: a write failed"),
        ("mirror 2 7:1 7:2 4/4 1 DR 3 disk 7:3 D", "the log device failed"),
        ("striped 2 7:1 7:2 1 AD", "7:2: an error"),
        ("raid raid1 2 AD 16384/16384 idle 0 0 -", "dead devices: 1"),
        ("multipath 2 0 0 0 1 1 E 0 1 1 8:0 F 3 0", "8:0: failed 3 times"),
        ("thin-pool Fail", "needs repair"),
        ("era Error", "cannot read its own state"),
        ("thin-pool 0 1/2 3/3 - out_of_data_space a b - 1", "no free data blocks"),
        ("thin-pool 0 1/2 3/4 - rw a b needs_check 1", "needs a check"),
        ("cache 8 1/2 8 0/6 0 1 0 0 0 0 0 0 0 smq 0 ro -", "read-only"),
        ("writecache 5 3996 3996 0", "error 5"),
        ("verity C", "corruption"),
        ("integrity 3 16000 -", "3 checksums"),
        ("log-writes 1 2 logging_disabled", "logging stopped"),
        ("vdo /dev/dm-1 read-only - online offline 1 2", "read-only"),
    ],
)
def test_trouble_is_said_in_words(text: str, trouble: str) -> None:
    found = StatusLine.parse(f"0 8 {text}").status.trouble
    assert trouble in found
    assert bool(trouble) == bool(found)


def test_several_lines_and_a_line_that_is_none() -> None:
    first, second = parse_lines("0 8 linear \n8 8 snapshot Invalid\n")
    assert (first.length, second.start) == (8, 8)
    with pytest.raises(UsageError, match="is not one status line"):
        StatusLine.parse("")
    with pytest.raises(UsageError, match="status line 1: start 'x'"):
        StatusLine.parse("x 8 linear")


SOME = "Invalid Merge failed A AA 1 2 0/1 - core disk rw Fail zones 7:1"
WORD = st.sampled_from(SOME.split())


@settings(max_examples=300)
@given(st.sampled_from([*STATUSES, "other"]), st.lists(WORD, max_size=18))
def test_any_status_text_comes_back_as_it_was(target: str, words: list[str]) -> None:
    text = " ".join(words)
    status = parse_status(target, text)
    assert str(status) == text
    assert isinstance(status.trouble, str)
