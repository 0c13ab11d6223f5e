"""The kernel mapper against a dmsetup that replays real ones: words, input, answers, errors."""

import contextlib
import errno
import logging
import time

import pytest

from dmcopy.errors import BusyError, DeadlineError, DeviceError, MissingError, UsageError
from dmcopy.ledger import Ledger
from dmcopy.mapper.kernel import KernelMapper
from dmcopy.mapper.reap import Reaper
from dmcopy.status import SnapshotStatus
from dmcopy.table import ConciseDevice, Linear, Raw, Snapshot, Table, Zero, parse_concise

from .conftest import Fake
from .recorded import (
    EMPTY,
    INFO,
    LIN,
    NO_DRIVER,
    NO_ROOT,
    NOBODY,
    ODD,
    failed,
    info,
    ioctl,
    ok,
)

ZERO = Table.of(8, Zero())


def test_create_gives_the_table_on_standard_input_and_notes_it_first(
    mapper: KernelMapper, fake: Fake, ledger: Ledger
) -> None:
    fake.answer(ok("create"))
    table = Table.concat([(8, Linear("/dev/loop0", 4)), (8, Zero())])
    device = mapper.create("one", table, uuid="DMCOPY-x", minor=7, readonly=True)
    (call,) = fake.calls
    assert call["words"] == [
        *("create", "--uuid", "DMCOPY-x", "--readonly", "--minor", "7", "--", "one")
    ]
    assert call["stdin"] == "0 8 linear /dev/loop0 4\n8 8 zero\n"
    assert call["env"] == {"LC_ALL": "C.UTF-8", "DM_DISABLE_UDEV": None}
    assert (device.name, device.path) == ("one", "/dev/mapper/one")
    assert [(entry.name, entry.uuid) for entry in ledger.entries()] == [("one", "DMCOPY-x")]


def test_every_device_gets_a_uuid_of_ours(mapper: KernelMapper, fake: Fake) -> None:
    fake.answer(ok("create"))
    mapper.create("one", ZERO)
    mapper.create("two")
    first, second = (call["words"] for call in fake.calls)
    assert first[2].startswith("DMCOPY-")
    assert first[2] != second[2]
    assert "--notable" in second


def test_without_a_uuid_the_ledger_has_the_disk(
    mapper: KernelMapper, fake: Fake, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = (254, 1)
    monkeypatch.setattr("dmcopy.mapper.names.number_of", {"one": number}.get)
    monkeypatch.setattr("dmcopy.mapper.kernel.disk_mark", {number: "disk 8", None: ""}.get)
    monkeypatch.setattr("dmcopy.mapper.reap.disk_mark", {number: "disk 8"}.get)
    fake.answer(ok("create"), info("new||254|1|0|1|0|Live|Active|Writeable"), {"words": []})
    mapper.uuid_prefix = ""
    mapper.create("one", ZERO, keep=True)
    mapper.create("bare", keep=True)
    assert all("--uuid" not in call["words"] for call in fake.calls)
    assert [entry.uuid for entry in ledger.entries()] == ["disk 8", ""]
    result = Reaper(mapper, ledger, wanted=lambda entry: entry.keep).run()
    assert [entry.name for entry in result.removed] == ["one"]  # which is called new by now
    assert [call["words"][-1] for call in fake.calls if call["words"][0] == "remove"] == ["new"]


def test_what_has_no_uuid_and_no_disk_is_told_and_left(
    mapper: KernelMapper, fake: Fake, ledger: Ledger
) -> None:
    ledger.add("dm", "lin", keep=True)
    fake.answer(info(LIN.replace("DMCOPY", "X")), {"words": []})
    result = Reaper(mapper, ledger, wanted=lambda entry: entry.keep).run()
    assert "nothing tells whether it is the one that was made" in result.left["lin"]
    assert not any(words.startswith("remove") for words in fake.words)
    assert [entry.name for entry in ledger.entries()] == ["lin"]


def test_a_create_that_met_another_of_its_name_removes_nothing(
    mapper: KernelMapper, fake: Fake, ledger: Ledger
) -> None:
    mapper.uuid_prefix = ""
    busy = ioctl("create", "lin", "Device or resource busy")
    fake.answer(failed("create", stderr=busy), info("lin||254|1|0|1|0|Live|Active|Writeable"))
    with pytest.raises(DeviceError, match="a mapped device has this name or UUID already"):
        mapper.create("lin", Table.of(8, Linear("/dev/null", 0)))
    assert [call["words"][0] for call in fake.calls] == ["create"]
    assert ledger.entries() == []


def test_a_uuid_that_is_there_already_is_the_reason(mapper: KernelMapper, fake: Fake) -> None:
    fake.answer(
        failed("rename", stderr=ioctl("rename", "lin", "Invalid argument")),
        info("lin|DMCOPY-7|254|1|0|1|0|Live|Active|Writeable"),
    )
    with pytest.raises(DeviceError, match="it has the UUID DMCOPY-7 already"):
        mapper.set_uuid("lin", "U")


def test_a_uuid_that_another_device_has_names_it(mapper: KernelMapper, fake: Fake) -> None:
    fake.answer(
        failed("rename", stderr=ioctl("rename", "lin", "Device or resource busy")),
        info(LIN, "other|U5|254|8|0|0|3|None|Active|Writeable"),
    )
    with pytest.raises(DeviceError, match="busy; other has the UUID U5 already") as caught:
        mapper.set_uuid("lin", "U5")
    assert caught.value.errno == errno.EBUSY


def test_nothing_that_is_wrong_reaches_dmsetup(mapper: KernelMapper, fake: Fake) -> None:
    with pytest.raises(UsageError, match="power of two"):
        mapper.create("one", Table.of(64, Snapshot("/dev/a", "/dev/b", "P", 3)))
    with pytest.raises(UsageError, match="overlaps"):
        mapper.load("one", Table.read("0 8 zero\n4 8 zero"))
    with pytest.raises(UsageError, match="cannot pass on"):
        mapper.create("one", Table.of(8, Raw("tomorrow", ("a#b",))))
    with pytest.raises(UsageError, match="must not be empty"):
        mapper.message("one", "mark", "")
    assert fake.calls == []


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "a\0b", "n" * 128, " " * 32, "é" * 16, r"x\x20y"]
)
def test_names_that_cannot_be_are_refused(mapper: KernelMapper, fake: Fake, name: str) -> None:
    with pytest.raises(UsageError):
        mapper.create(name, ZERO)
    assert fake.calls == []


@pytest.mark.parametrize(
    ("name", "node"),
    [
        ("a b", r"a\x20b"),
        ("a'b\"c", r"a\x27b\x22c"),
        ("new\nline", r"new\x0aline"),
        ("$(touch x); `y`", r"\x24\x28touch\x20x\x29\x3b\x20\x60y\x60"),
        ("-dash", "-dash"),
        ("é", r"\xc3\xa9"),
        ("back\\slash", r"back\x5cslash"),
        ("n" * 127, "n" * 127),
    ],
)
def test_odd_names_are_passed_on_as_they_are(
    mapper: KernelMapper, fake: Fake, name: str, node: str
) -> None:
    fake.answer(ok("create"))
    assert mapper.create(name, ZERO).path == f"/dev/mapper/{node}"
    assert fake.calls[0]["words"][-2:] == ["--", name]


def test_devices_are_read_whatever_their_names(mapper: KernelMapper, fake: Fake) -> None:
    fake.answer(info(LIN, EMPTY, ODD))
    odd, empty, lin = mapper.ls()
    assert (odd.name, odd.uuid, odd.number) == ('a b"c', "DMCOPY-1", (254, 1))
    assert (odd.suspended, odd.readonly, odd.live, odd.inactive) == (True, True, True, True)
    assert (empty.live, empty.inactive, empty.events, empty.devno) == (False, False, 3, "254:8")
    assert (lin.suspended, lin.segments) == (False, 1)
    fake.answer(info())
    assert mapper.ls() == []


def test_a_device_that_is_not_there(mapper: KernelMapper, fake: Fake) -> None:
    fake.answer(
        NOBODY,
        failed("table", stderr=ioctl("table", "nope", "No such device or address")),
        failed("status", stderr="Device does not exist.\n"),
    )
    assert not mapper.exists("nope")
    for ask in (mapper.info, mapper.table, mapper.status):
        with pytest.raises(DeviceError, match="there is no mapped device of that name") as caught:
            ask("nope")
        assert caught.value.errno == errno.ENXIO


def test_tables_and_statuses_come_back_typed(mapper: KernelMapper, fake: Fake) -> None:
    fake.answer(
        ok("table", "--inactive", stdout="0 100 linear 7:0 3\n"),
        ok("table", "--", "empty", stdout="\n"),
        ok("table", stdout="0 4096 snapshot 7:0 7:1 P 32\n"),
        ok("status", stdout="0 4096 snapshot 64/32768 64\n"),
        ok("deps", stdout="2 dependencies\t: (7, 0) (7, 1)\n"),
        ok("targets", stdout="snapshot         v1.16.0\nlinear           v1.4.0\n"),
    )
    assert mapper.table("one", inactive=True) == Table.of(100, Linear("7:0", 3))
    assert mapper.table("empty") == Table()
    assert mapper.table("one") == Table.of(4096, Snapshot("7:0", "7:1", "P", 32))
    (line,) = mapper.status("one")
    assert isinstance(line.status, SnapshotStatus)
    assert line.status.empty
    assert mapper.deps("one") == ("7:0", "7:1")
    assert str(mapper.targets()["snapshot"]) == "1.16.0"


def test_all_tables_come_with_one_call(mapper: KernelMapper, fake: Fake) -> None:
    said = [r"a\x20b: 0 8 linear 7:0 3", r"a\x20b: 8 8 zero ", "c:d: 0 8 zero ", "empty: "]
    said += [r"e:\x20f: 0 8 zero ", "by hand: 3: 0 8 zero "]
    fake.answer(ok("table", "--manglename", "none", stdout="\n".join(said) + "\n", times=1))
    assert mapper.active_tables() == {
        "a b": Table.concat([(8, Linear("7:0", 3)), (8, Zero())]),
        "c:d": Table.of(8, Zero()),
        "empty": Table(),
        "e: f": Table.of(8, Zero()),
        "by hand: 3": Table.of(8, Zero()),
    }
    fake.answer(ok("table", stdout="No devices found\n"))
    assert mapper.active_tables() == {}


def test_a_failed_create_is_forgotten_and_explained(
    mapper: KernelMapper, fake: Fake, ledger: Ledger
) -> None:
    refused = ioctl("reload", "bad (254:9)", "Invalid argument").replace("  ", " ")
    fake.answer(failed("create", stderr=refused), info())
    with pytest.raises(DeviceError, match="bad: cannot create it: Invalid argument") as caught:
        mapper.create("bad", ZERO)
    assert caught.value.errno == errno.EINVAL
    assert ledger.entries() == []


def test_a_missing_device_of_a_table_is_named(mapper: KernelMapper, fake: Fake) -> None:
    refused = "device-mapper: reload ioctl on bad (254:9) failed: No such device\n"
    fake.answer(failed("create", stderr=refused), info())
    with pytest.raises(DeviceError, match="there is no block device /dev/nope"):
        mapper.create("bad", Table.of(8, Linear("/dev/nope", 0)))
    fake.answer(failed("load", stderr=refused))
    with pytest.raises(DeviceError, match="/dev/null is not a block device"):
        mapper.load("bad", Table.of(8, Linear("/dev/null", 0)))


def test_a_name_that_is_taken(mapper: KernelMapper, fake: Fake, ledger: Ledger) -> None:
    busy = ioctl("create", "lin", "Device or resource busy")
    fake.answer(failed("create", stderr=busy), info(LIN))
    with pytest.raises(DeviceError, match="busy; a mapped device has this name or UUID") as caught:
        mapper.create("lin", ZERO)
    assert caught.value.errno == errno.EBUSY  # dm_hash_insert in dm-ioctl.c
    assert ledger.entries() == []  # the device is not ours: its UUID is another


def test_remove_retries_until_the_deadline_and_names_the_holders(
    mapper: KernelMapper, fake: Fake, ledger: Ledger
) -> None:
    busy = ioctl("remove", "lin", "Device or resource busy")
    ledger.add("dm", "lin", uuid="DMCOPY-x")
    fake.answer(failed("remove", stderr=busy))
    started = time.monotonic()
    with pytest.raises(BusyError, match=r"lin is in use by .*still open after 0.5 s"):
        mapper.remove("lin", timeout=0.5)
    # It gives up when the next pause would outlast the deadline; pauses are 0.25 s at most.
    assert time.monotonic() - started > 0.2
    assert len(ledger.entries()) == 1
    fake.answer(failed("remove", stderr=busy, times=3), ok("remove"))
    mapper.remove("lin", timeout=60)
    assert ledger.entries() == []
    assert fake.words[-4:] == ["remove -- lin"] * 4


@pytest.mark.parametrize(
    ("stderr", "message"),
    [(NO_DRIVER, r"this kernel has no device-mapper.*dmcopy doctor"), (NO_ROOT, "needs root")],
)
def test_no_device_mapper_is_said_at_once(
    mapper: KernelMapper, fake: Fake, stderr: str, message: str
) -> None:
    fake.answer({"words": [], "stderr": stderr, "code": 1})
    with pytest.raises(MissingError, match=message):
        mapper.ls()
    assert len(fake.calls) == 1  # a question or two, and nothing is tried again
    with pytest.raises(MissingError, match=message):
        mapper.create("one", ZERO)
    assert len(fake.calls) == 3


def test_no_dmsetup(mapper: KernelMapper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmcopy.block.tools.search_path", lambda: "/nonexistent")
    with pytest.raises(MissingError, match=r"dmsetup is not on PATH.*dmcopy doctor"):
        mapper.ls()


def test_a_dmsetup_that_hangs_is_given_up(mapper: KernelMapper, fake: Fake) -> None:
    fake.answer(ok("suspend", sleep=30), NOBODY)
    mapper.dmsetup.timeout = 0.3
    with pytest.raises(DeadlineError, match=r"suspend -- one did not end within 0.3 s"):
        mapper.suspend("one")


def test_wait_gives_the_new_number_or_says_what_it_waited_for(
    mapper: KernelMapper, fake: Fake
) -> None:
    fake.answer(ok("wait"), info("lin||254|0|0|1|5|Live|Active|Writeable"))
    assert mapper.wait("lin", 4, timeout=5) == 5
    assert fake.words[0] == "wait -- lin 4"
    fake.answer(ok("wait", sleep=30))
    with pytest.raises(DeadlineError, match=r"lin: no event after number 4 within 0\.2 s"):
        mapper.wait("lin", 4, timeout=0.2)


def test_words_of_each_command(mapper: KernelMapper, fake: Fake) -> None:
    fake.answer({"words": []})
    mapper.suspend("one", flush=False, lockfs=False)
    mapper.suspend("one")
    mapper.resume("one")
    mapper.clear("one")
    mapper.load("one", ZERO, readonly=True)
    mapper.rename("one", "two words")
    mapper.set_uuid("one", "U")
    mapper.message("one", "mark", "two words", sector=8)
    mapper.remove("one", deferred=True)
    mapper.table(r"theirs\x20", showkeys=True)
    assert fake.words == [
        "suspend --noflush --nolockfs -- one",
        "suspend -- one",
        "resume -- one",
        "clear -- one",
        "load --readonly -- one",
        "rename -- one 'two words'",
        "rename --setuuid -- one U",
        r"message -- one 8 mark 'two\ words'",
        "remove --deferred -- one",
        r"table --manglename hex --showkeys -- 'theirs\x20'",
    ]


def test_swap_goes_back_to_the_old_table_when_it_fails(mapper: KernelMapper, fake: Fake) -> None:
    suspended = "lin||254|0|0|1|0|Both|Suspended|Writeable"
    refused = ioctl("resume", "lin", "Invalid argument")
    fake.answer(failed("resume", stderr=refused, times=1), info(suspended), {"words": []})
    with pytest.raises(DeviceError, match="cannot resume it"):
        mapper.swap("lin", ZERO)
    verbs = [call["words"][0] for call in fake.calls]
    assert verbs == ["load", "suspend", "resume", "info", "clear", "resume"]


def test_several_devices_are_made_all_or_none(mapper: KernelMapper, fake: Fake) -> None:
    bad = ioctl("reload", "c (254:9)", "Invalid argument")
    fake.answer(ok("create", times=2), failed("create", stderr=bad), info(), ok("remove"))
    devices = list(parse_concise("a,,,rw,0 8 zero;b,,,ro,0 8 zero;c,,,rw,0 8 zero"))
    assert isinstance(devices[0], ConciseDevice)
    with pytest.raises(DeviceError, match="c: cannot create it"):
        mapper.create_all(devices)
    assert fake.words[-2:] == ["remove -- b", "remove -- a"]


def test_a_device_lives_as_long_as_its_block(mapper: KernelMapper, fake: Fake) -> None:
    fake.answer({"words": []})
    with mapper.device("one", ZERO) as device:
        assert device.name == "dmcopy-one"
        assert open_path(device) == "/dev/mapper/dmcopy-one"
    assert [call["words"][0] for call in fake.calls] == ["create", "remove"]


def open_path(device: object) -> str:
    return device.__fspath__()  # type: ignore[attr-defined,no-any-return]


def test_the_first_error_is_the_one_that_is_seen(mapper: KernelMapper, fake: Fake) -> None:
    gone = ioctl("remove", "dmcopy-one", "No such device or address")
    fake.answer(ok("create"), info(LIN), failed("remove", stderr=gone))
    with pytest.raises(ValueError, match="mine") as caught, mapper.device("one", ZERO):
        raise ValueError("mine")
    (note,) = caught.value.__notes__
    assert "while cleaning up: dmcopy-one: cannot remove it" in note


def test_a_stack_goes_from_the_top_and_a_suspended_device_is_resumed(
    mapper: KernelMapper, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dmcopy.mapper.base.QUICK_SECONDS", 0)
    suspended = "x||254|0|0|1|0|Both|Suspended|Writeable"
    busy = ioctl("remove", "dmcopy-top", "Device or resource busy")
    fake.answer(
        failed("remove", "--", "dmcopy-top", stderr=busy, times=1), info(suspended), {"words": []}
    )
    with contextlib.ExitStack() as stack:
        low = stack.enter_context(mapper.device("low", ZERO))
        stack.enter_context(mapper.device("top", Table.of(8, Linear(low.path, 0))))
    tail = [(call["words"][0], call["words"][-1]) for call in fake.calls[2:]]
    assert tail == [
        ("remove", "dmcopy-top"),
        ("info", "dmcopy-top"),
        ("clear", "dmcopy-top"),
        ("resume", "dmcopy-top"),
        ("remove", "dmcopy-top"),
        ("remove", "dmcopy-low"),
    ]


def test_paused_resumes_whatever_happens(mapper: KernelMapper, fake: Fake) -> None:
    fake.answer(info(LIN), {"words": []})
    with mapper.device("one", ZERO) as device:
        with pytest.raises(ValueError, match="x"), device.paused():
            raise ValueError("x")
        assert [call["words"][0] for call in fake.calls] == ["create", "suspend", "resume"]


def test_a_table_is_tried_on_a_device_that_never_runs(mapper: KernelMapper, fake: Fake) -> None:
    fake.answer({"words": []})
    assert mapper.refusal(ZERO) == ""
    assert [call["words"][0] for call in fake.calls] == ["create", "load", "remove"]
    bad = ioctl("reload", "x (254:9)", "Invalid argument")
    fake.answer(failed("load", stderr=bad), {"words": []})
    assert "Invalid argument" in mapper.refusal(ZERO)


def test_statistics(mapper: KernelMapper, fake: Fake) -> None:
    fake.answer(
        info(LIN),
        ok("message", "--", "dmcopy-one", "0", "@stats_create", stdout="0\n"),
        ok(
            *("message", "--", "dmcopy-one", "0", "@stats_print"),
            stdout="0+8192 1 2 3 4 5 6 7 8 9 10 11 12 13 1:2:3\n8192+8192" + " 0" * 13 + "\n",
        ),
        {"words": []},
    )
    with mapper.device("one", ZERO) as device:
        region = device.measure(0, 16)
        first, second = region.read()
        assert (first.start, first.length, first.reads, first.total_write_ms) == (0, 8192, 1, 13)
        assert (first.histogram, second.start) == ((1, 2, 3), 8192)
        region.delete()
        with pytest.raises(UsageError, match="both a start and a length"):
            device.measure(0)
    assert "message -- dmcopy-one 0 @stats_create 0+16 /1 dmcopy" in fake.words


def test_every_call_is_logged(
    mapper: KernelMapper, fake: Fake, caplog: pytest.LogCaptureFixture
) -> None:
    fake.answer(failed("remove", stderr=ioctl("remove", "one", "No such device or address")))
    with caplog.at_level(logging.DEBUG, "dmcopy.mapper"), pytest.raises(DeviceError):
        mapper.remove("one")
    assert "'remove', '--', 'one'" in caplog.text
    assert "exit 1" in caplog.text
    assert "No such device or address" in caplog.text


def test_info_is_asked_in_the_mode_that_one_odd_name_cannot_break(
    mapper: KernelMapper, fake: Fake
) -> None:
    fake.answer(info(r"x\x5cx20y||254|3|0|1|0|Live|Active|Writeable"))
    assert mapper.ls()[0].name == r"x\x20y"
    assert fake.calls[0]["words"] == INFO
