"""The parts around the mapper: names, udev, ledger, faults, tree, events, the kernel's log."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmcopy import ledger as ledgers
from dmcopy.block.sysfs import Roots, disk_mark
from dmcopy.errors import UsageError
from dmcopy.ledger import Ledger, alive, identity
from dmcopy.mapper import names
from dmcopy.mapper.base import DmInfo
from dmcopy.mapper.dmsetup import error_code
from dmcopy.mapper.events import follow
from dmcopy.mapper.faults import Faulty
from dmcopy.mapper.kernel import KernelMapper
from dmcopy.mapper.kernel_log import KernelLog
from dmcopy.mapper.reap import Reaper
from dmcopy.mapper.tree import draw, top_down, tree
from dmcopy.mapper.udev import Udev, choose
from dmcopy.table import Delay, Delayed, Error, Flakey, Linear, Table, TableLine, Zero

from .conftest import Fake
from .recorded import LIN, info


@given(st.text(min_size=1, max_size=30))
def test_mangled_names_come_back_and_are_safe_in_a_path(name: str) -> None:
    text = name.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")
    mangled = names.mangle(text)
    assert names.unmangle(mangled) == text
    assert mangled.isascii()
    assert not set(mangled) & set(" /|\n'\"$`;")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("device-mapper: remove ioctl on x  failed: Device or resource busy\n", "EBUSY"),
        (
            "device-mapper: reload ioctl on x (254:9) failed: No such device\nCommand failed.",
            "ENODEV",
        ),
        ("Device does not exist.\nCommand failed.\n", "ENXIO"),
        ('Name "n" too long.\nCommand failed.\n', ""),
    ],
)
def test_the_errno_is_read_from_the_last_words(text: str, code: str) -> None:
    import errno

    assert error_code(text) == (getattr(errno, code) if code else 0)


def test_a_device_is_known_by_its_disk(tmp_path: Path) -> None:
    roots = Roots(sys=tmp_path / "sys", dev=tmp_path / "dev")
    (tmp_path / "sys/dev/block").mkdir(parents=True)
    disks = (
        ("dm-0", "other", "254:0", "7"),
        ("dm-1", r"a\x20b", "254:1", "8"),
        ("dm-2", "old", "254:2", ""),
    )
    for kernel_name, name, number, sequence in disks:
        folder = tmp_path / "sys/class/block" / kernel_name
        (folder / "dm").mkdir(parents=True)
        (folder / "dm/name").write_text(f"{name}\n")
        (folder / "dev").write_text(f"{number}\n")
        (tmp_path / "sys/dev/block" / number).symlink_to(folder)
        if sequence:
            (folder / "diskseq").write_text(f"{sequence}\n")
    (tmp_path / "dev/mapper").mkdir(parents=True)
    # A node that was left behind leads to what has its number now, which has another name.
    (tmp_path / "dev/mapper" / r"a\x20b").symlink_to("../dm-0")
    assert names.number_of("a b", roots) == (254, 1)
    assert names.number_of("nobody", roots) is None
    assert disk_mark((254, 1), roots) == "disk 8"
    assert disk_mark((254, 2), roots) == disk_mark(None, roots) == ""


def _proc(root: Path, pid: str, name: str, ipc: str) -> None:
    (root / pid / "ns").mkdir(parents=True)
    (root / pid / "comm").write_text(f"{name}\n")
    (root / pid / "ns" / "ipc").symlink_to(ipc)


def test_udev_is_found_by_looking(tmp_path: Path) -> None:
    proc, run = tmp_path / "proc", tmp_path / "run"
    _proc(proc, "self", "python", "ipc:[1]")
    assert choose(proc, run) is Udev.NODES  # no socket
    (run / "udev").mkdir(parents=True)
    (run / "udev" / "control").touch()
    assert choose(proc, run) is Udev.NODES  # a socket that a container was given, and no daemon
    _proc(proc, "7", "systemd-udevd", "ipc:[2]")
    assert choose(proc, run) is Udev.NODES  # one that would never see our semaphore
    _proc(proc, "8", "udevd", "ipc:[1]")
    assert choose(proc, run) is Udev.COOKIES
    (proc / "8").rename(proc / "gone")
    assert choose(proc, run) is Udev.NODES  # it has ended since, and others are looked for
    _proc(proc, "9", "udevd", "ipc:[1]")
    assert choose(proc, run) is Udev.COOKIES


def test_how_each_way_of_udev_is_told_to_dmsetup(fake: Fake, ledger: Ledger) -> None:
    from dmcopy.mapper.dmsetup import Dmsetup

    fake.answer({"words": []})
    for way in Udev:
        KernelMapper(Dmsetup(udev=way), ledger=ledger).suspend("one")
    assert fake.words == ["suspend -- one", "suspend -- one", "suspend --noudevsync -- one"]
    assert [call["env"]["DM_DISABLE_UDEV"] for call in fake.calls] == [None, "1", None]


def test_each_entry_is_synced_before_the_thing_is_made(ledger: Ledger, synced: list[int]) -> None:
    ledger.add("dm", "one")
    assert len(synced) == 1
    ledger.drop("dm", "one")
    assert len(synced) == 2


def test_entries_of_another_boot_are_forgotten(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledgers, "boot_id", lambda: "before")
    ledger.add("dm", "one")
    monkeypatch.setattr(ledgers, "boot_id", lambda: "now")
    assert ledger.entries() == []


def _add_many(path: str, mine: int) -> None:
    ledger = Ledger(path)
    for number in range(20):
        ledger.add("dm", f"{mine}-{number}")


def test_processes_share_a_ledger(ledger: Ledger) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_add_many, args=(str(ledger.path), n)) for n in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert len(ledger.entries()) == 40


def test_a_process_is_told_from_the_next_with_its_number() -> None:
    assert alive(identity(os.getpid()))
    assert not alive("")
    assert not alive(f"{os.getpid()} 1")
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait(60)
    assert identity(child.pid) == ""


@pytest.fixture
def server() -> Iterator[subprocess.Popen[bytes]]:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True)"
    child = subprocess.Popen(
        [sys.executable, "-c", f"{code}; time.sleep(60)"], stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    child.stdout.readline()
    yield child
    child.kill()
    child.wait(60)
    child.stdout.close()


def test_reap_ends_servers_that_were_left(
    mapper: KernelMapper,
    ledger: Ledger,
    server: subprocess.Popen[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dmcopy.mapper.reap._END_SECONDS", 0.3)
    ledger.add("server", "python", uuid=identity(server.pid))
    ledger.add("server", "another", uuid=f"{server.pid} 1")
    ledger.add("loop", "/dev/loop99", uuid="/nowhere")
    ledger.add("mount", "/nowhere", uuid="/dev/loop99")
    assert Reaper(mapper, ledger).run().removed == []  # this process, their owner, lives
    result = Reaper(mapper, ledger, wanted=lambda _entry: True).run()
    assert [entry.name for entry in result.removed] == ["python"]
    assert {entry.name for entry in result.vanished} == {"another", "/dev/loop99", "/nowhere"}
    assert (result.left, ledger.entries()) == ({}, [])
    assert server.wait(5) == -9


def test_the_kernel_log_is_read_from_now_on(tmp_path: Path) -> None:
    path = tmp_path / "kmsg"
    path.write_text("6,1,1,-;device-mapper: table: old\n")
    with KernelLog(path) as log:
        with path.open("a") as file:
            file.write("3,2,2,-;device-mapper: table: 254:0: linear: Gap in table (-EINVAL)\n")
        assert log.lines() == ["table: 254:0: linear: Gap in table (-EINVAL)"]
        assert log.lines() == []
    assert log.records() == []  # closed: what has its descriptor by now is another's
    with KernelLog(tmp_path / "none") as log:
        assert log.lines() == []


HEALTHY = Table.concat([(100, Linear("/dev/a", 1000)), (100, Linear("/dev/b", 0))])


class _Swaps:
    """A device that only notes the tables that it is given."""

    name, path = "work", "/dev/mapper/work"

    def __init__(self) -> None:
        self.tables: list[Table] = []
        self.options: list[dict[str, bool]] = []

    def swap(self, table: Table, **options: bool) -> None:
        table.check()
        self.tables.append(table)
        self.options.append(options)


def _faulty() -> tuple[Faulty, _Swaps]:
    device = _Swaps()
    return Faulty(device, HEALTHY), device  # type: ignore[arg-type]


def test_faults_cut_ranges_out_and_restore_puts_them_back() -> None:
    faulty, device = _faulty()
    faulty.error("90:20")
    assert device.tables[-1] == Table.concat(
        [
            (90, Linear("/dev/a", 1000)),
            (10, Error()),
            (10, Error()),
            (90, Linear("/dev/b", 10)),
        ]
    )
    faulty.delay(0, 50, (0, 10))
    assert device.tables[-1].lines[:2] == (
        TableLine(0, 10, Delay(Delayed("/dev/a", 1000, 0), Delayed("/dev/a", 1000, 50))),
        TableLine(10, 80, Linear("/dev/a", 1010)),
    )
    faulty.write_error("5:10")
    assert device.tables[-1].lines[1] == TableLine(
        5, 10, Flakey("/dev/a", 1005, 0, 10**6, ("error_writes",))
    )
    faulty.restore()
    assert device.tables[-1] == HEALTHY
    assert device.options[-1] == {"flush": False, "lockfs": False}
    assert faulty.table == HEALTHY


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["error", "zero", "write_error", "drop_writes", "delay", "restore"]),
            st.integers(0, 199),
            st.integers(1, 200),
        ),
        max_size=8,
    )
)
def test_every_sector_has_the_fault_that_was_put_there_last(
    steps: list[tuple[str, int, int]],
) -> None:
    faulty, device = _faulty()
    want = ["restore"] * 200
    for kind, start, count in steps:
        end = min(start + count, 200)
        arguments = (1, 2) if kind == "delay" else ()
        getattr(faulty, kind)(*arguments, (start, end - start), flush=True)
        want[start:end] = [kind] * (end - start)
    faulty.restore("0:1")
    want[0] = "restore"
    got = [_fault_at(device.tables[-1], sector) for sector in range(200)]
    assert got == want


def _fault_at(table: Table, sector: int) -> str:
    line = next(line for line in table if line.start <= sector < line.end)
    device, offset = ("/dev/a", 1000) if sector < 100 else ("/dev/b", -100)
    within = sector - line.start
    match line.target:
        case Linear(path, start):
            kind = "restore"
        case Flakey(path, start, 0, _, ("error_writes",)):
            kind = "write_error"
        case Flakey(path, start, 0, _, ("drop_writes",)):
            kind = "drop_writes"
        case Delay(Delayed(path, start, 1), Delayed(other, also, 2)):
            assert (path, start) == (other, also)
            kind = "delay"
        case Error():
            return "error"
        case Zero():
            return "zero"
        case other_target:
            raise AssertionError(other_target)
    assert (path, start + within) == (device, offset + sector)
    return kind


@pytest.mark.parametrize("text", ["5", "5:", ":5", "-1:5", "0:0", "199:2", "a:b", "0:201"])
def test_ranges_that_are_none(text: str) -> None:
    faulty, device = _faulty()
    with pytest.raises(UsageError):
        faulty.error(text)
    assert device.tables == []


def test_faults_need_linear_lines() -> None:
    with pytest.raises(UsageError, match="linear lines only"):
        Faulty(_Swaps(), Table.of(8, Zero()))  # type: ignore[arg-type]


def _info(number: int, *deps: int) -> DmInfo:
    return DmInfo(
        f"d{number}", number=(254, number), deps=tuple(f"254:{dep}" for dep in deps) or ("7:0",)
    )


def test_the_tree_and_the_order_of_removal() -> None:
    devices = [_info(0), _info(1, 0), _info(2, 0), _info(3, 1, 2), _info(4)]
    assert [node.name for node in tree(devices)] == ["d3", "d4"]
    assert list(draw(tree(devices)))[:3] == ["d3 (254:3)", " ├─d1 (254:1)", " │  └─d0 (254:0)"]
    assert [info.name for info in top_down(devices)] == ["d3", "d4", "d1", "d2", "d0"]
    assert len(top_down([_info(0, 1), _info(1, 0)])) == 2  # cannot be; must not hang


def test_events_are_followed(mapper: KernelMapper, fake: Fake, tmp_path: Path) -> None:
    later = LIN.replace("|1|0|Live", "|1|2|Live")
    other = LIN.replace("lin", "new").replace("254|0", "254|1")
    fake.answer({**info(LIN), "times": 1}, {**info(later, other), "times": 1}, info(other))
    control = str(tmp_path / "none")
    events = [
        (event.what, event.device, event.number)
        for event in itertools.islice(follow(mapper, timeout=60, control=control), 3)
    ]
    assert events == [("event", "lin", 2), ("appeared", "new", 0), ("gone", "lin", 2)]


def test_the_default_ledger_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert ledgers.default_path() == Path("/state/dmcopy/ledger.jsonl")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert ledgers.default_path() == Path("/run/dmcopy/ledger.jsonl")


def test_json_lines_are_whole(ledger: Ledger) -> None:
    ledger.add("dm", 'odd "name"\n')
    assert json.loads(ledger.path.read_text())["name"] == 'odd "name"\n'
    assert time.time() - ledger.entries()[0].made < 60
