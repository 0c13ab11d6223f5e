"""The life of devices on the real kernel: names, nodes, tables, events, statistics, holders."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmcopy.errors import BusyError, DeadlineError, DeviceError
from dmcopy.ledger import Ledger, LedgerEntry
from dmcopy.mapper.dmsetup import Dmsetup
from dmcopy.mapper.events import follow
from dmcopy.mapper.kernel import KernelMapper
from dmcopy.mapper.reap import Reaper
from dmcopy.mapper.tree import tree, with_deps
from dmcopy.mapper.udev import Udev
from dmcopy.table import (
    ConciseDevice,
    CoreLog,
    Leg,
    Linear,
    LogWrites,
    Mirror,
    Raw,
    Table,
    Zero,
    format_concise,
    parse_concise,
)

from .conftest import Disks

pytestmark = pytest.mark.kernel(either=True)
ZERO = Table.of(8, Zero())
SECONDS = 120.0  # for what takes one or two in a guest


def test_a_device_from_beginning_to_end(mapper: KernelMapper, disks: Disks) -> None:
    empty = mapper.create("dmcopy-life")
    assert not empty.info.live
    assert mapper.table("dmcopy-life") == Table()
    mapper.load("dmcopy-life", Table.of(100, Linear(disks.a, 3)), readonly=True)
    assert mapper.table("dmcopy-life", inactive=True).length == 100
    assert empty.info.inactive
    mapper.clear("dmcopy-life")
    assert not mapper.info("dmcopy-life").inactive
    mapper.load("dmcopy-life", Table.of(100, Linear(disks.a, 3)))
    mapper.resume("dmcopy-life")
    assert empty.table.length == 100
    mapper.suspend("dmcopy-life", flush=False, lockfs=False)
    assert empty.info.suspended
    mapper.resume("dmcopy-life")
    mapper.rename("dmcopy-life", "dmcopy-second life")
    info = mapper.info("dmcopy-second life")
    assert (info.suspended, info.segments, info.uuid[:7]) == (False, 1, "DMCOPY-")
    (number,) = mapper.deps("dmcopy-second life")
    assert number.startswith("7:")
    assert os.path.exists(mapper.path("dmcopy-second life"))
    mapper.remove("dmcopy-second life")
    assert not os.path.exists(mapper.path("dmcopy-second life"))


@pytest.mark.parametrize(
    "name", ["a b", "'\"", "new\nline", "-dash", "$(id)", "é", "back\\slash", "n" * 127]
)
def test_odd_names(mapper: KernelMapper, name: str) -> None:
    device = mapper.create(name, ZERO)
    assert name in [info.name for info in mapper.ls()]
    assert device.info.name == name
    assert Path(device.path).is_block_device()
    assert device.table == ZERO
    device.remove()
    assert not mapper.exists(name)


def test_a_path_with_a_comment_sign_is_passed_by_its_number(
    mapper: KernelMapper, disks: Disks, tmp_path: Path
) -> None:
    link = tmp_path / "a # disk"
    link.symlink_to(disks.a)
    with mapper.device("odd", Table.of(8, Linear(str(link), 0))) as device:
        assert device.table.devices == mapper.deps(device.name)


def test_names_uuids_and_numbers_that_are_taken(mapper: KernelMapper) -> None:
    first = mapper.create("dmcopy-first", ZERO, uuid="DMCOPY-U")
    with pytest.raises(DeviceError, match="busy; a mapped device has this name") as caught:
        mapper.create("dmcopy-first", ZERO)
    assert caught.value.errno == errno.EBUSY
    with pytest.raises(DeviceError, match="this name or UUID already"):
        mapper.create("dmcopy-second", ZERO, uuid="DMCOPY-U")
    other = mapper.create("dmcopy-other", ZERO)
    with pytest.raises(DeviceError, match="this name or UUID already"):
        mapper.rename("dmcopy-other", "dmcopy-first")
    for uuid, number in (("DMCOPY-U", errno.EBUSY), ("DMCOPY-W", errno.EINVAL)):
        with pytest.raises(DeviceError) as caught:
            mapper.set_uuid("dmcopy-other", uuid)
        assert caught.value.errno == number
        assert ("dmcopy-first has the UUID DMCOPY-U" in str(caught.value)) == (uuid == "DMCOPY-U")
    other.remove()
    with pytest.raises(DeviceError):
        mapper.set_uuid("dmcopy-first", "DMCOPY-V")
    first.remove()
    for call in (mapper.remove, mapper.table, mapper.status, mapper.suspend, mapper.info):
        with pytest.raises(DeviceError, match="there is no mapped device") as caught:
            call("dmcopy-first")
        assert caught.value.errno == errno.ENXIO


def test_a_device_that_is_open_is_waited_for_and_its_holder_named(mapper: KernelMapper) -> None:
    with mapper.device("held", ZERO) as device:
        with open(device, "rb", buffering=0):
            started = time.monotonic()
            with pytest.raises(BusyError, match=f"process {os.getpid()}") as caught:
                mapper.remove(device.name, timeout=1.5)
            assert 1.0 < time.monotonic() - started < mapper.timeout / 2
            assert caught.value.exit_code == 6
            mapper.remove(device.name, deferred=True)
            assert mapper.exists(device.name)
        deadline = time.monotonic() + SECONDS
        while mapper.exists(device.name):
            assert time.monotonic() < deadline, "deferred removal did not happen"
            time.sleep(0.1)
        mapper.create(device.name, ZERO)


def test_a_device_under_a_file_system_or_a_device_is_named(
    mapper: KernelMapper, disks: Disks
) -> None:
    with contextlib.ExitStack() as stack:
        low = stack.enter_context(mapper.device("low", Table.of(8, Linear(disks.a, 0))))
        stack.enter_context(mapper.device("top", Table.of(8, Linear(low.path, 0))))
        with pytest.raises(BusyError, match="dm device dmcopy-top"):
            mapper.remove(low.name, timeout=0.5)
        (node,) = tree(with_deps(mapper))
        assert node.name == "dmcopy-top"
        assert node.below[0].name == "dmcopy-low"


def test_swap_puts_another_table_under_io(mapper: KernelMapper, disks: Disks) -> None:
    with mapper.device("swap", Table.of(8, Linear(disks.a, 0))) as device:
        stop = threading.Event()
        reads: list[int] = []

        def reader() -> None:
            with open(device, "rb", buffering=0) as file:
                while not stop.is_set():
                    reads.append(len(os.pread(file.fileno(), 512, 0)))
                    stop.wait(0.001)  # or the swaps hardly get a turn where there is one processor

        thread = threading.Thread(target=reader)
        thread.start()
        for _ in range(3):
            device.swap(ZERO)
            device.swap(Table.of(8, Linear(disks.b, 0)))
        stop.set()
        thread.join(SECONDS)
        assert not thread.is_alive()
        assert set(reads) == {512}
        with pytest.raises(DeviceError):
            device.swap(Table.of(1 << 40, Linear(disks.b, 0)))
        assert not device.info.suspended
        assert not device.info.inactive


def test_paused_holds_io_and_swaps_a_loaded_table(mapper: KernelMapper, disks: Disks) -> None:
    with mapper.device("pause", Table.of(8, Linear(disks.a, 0))) as device:
        with device.paused():
            assert device.info.suspended
            device.load(ZERO)
        assert device.table == ZERO


def test_a_device_left_suspended_does_not_stop_the_end(mapper: KernelMapper) -> None:
    with mapper.device("left", ZERO) as device:
        device.suspend()


def test_events_are_waited_for_by_number(mapper: KernelMapper, disks: Disks) -> None:
    mirror = Mirror(CoreLog(1024, "nosync"), (Leg(disks.a, 0), Leg(disks.b, 0)))
    with mapper.device("event", Table.of(8192, mirror)) as device:
        with pytest.raises(DeadlineError, match="no event after number 0 within"):
            device.wait(timeout=0.5)
        seen: list[tuple[str, str]] = []
        watching = threading.Event()

        def watch() -> None:
            for event in follow(mapper, timeout=SECONDS, started=watching.set):
                seen.append((event.what, event.device))
                if event.what == "event":
                    return

        watcher = threading.Thread(target=watch)
        watcher.start()
        assert watching.wait(SECONDS)
        # A table that is not in sync gets in sync, and that is an event.
        device.swap(Table.of(8192, Mirror(CoreLog(1024), mirror.legs)))
        assert device.wait(0, timeout=SECONDS) >= 1
        watcher.join(SECONDS)
        assert ("event", device.name) in seen


def test_messages_reach_the_target(mapper: KernelMapper, disks: Disks) -> None:
    with mapper.device("log", Table.of(8, LogWrites(disks.a, disks.b))) as device:
        device.message("mark", "two words # and \\ more")
        os.sync()
        with pytest.raises(DeviceError, match="cannot send it a message"):
            device.message("mark", "two", "words")
    # Sector 0 is the super block, sector 1 the entry of the mark, 32 bytes of head and the text.
    entry = Path(disks.b).read_bytes()[512:1024]
    assert entry[32:].startswith(b"two words # and \\ more")


def test_statistics_count_io(mapper: KernelMapper, disks: Disks) -> None:
    with mapper.device("count", Table.of(64, Linear(disks.a, 0))) as device:
        region = device.measure()
        with open(device, "wb", buffering=0) as file:
            file.write(bytes(8192))
            os.fsync(file.fileno())
        (counters,) = region.read(clear=True)
        assert counters.sectors_written == 16
        assert region.read()[0].sectors_written == 0
        region.delete()


def test_concise_devices_and_readonly(mapper: KernelMapper, disks: Disks) -> None:
    text = f"dmcopy-1,,,rw,0 8 linear {disks.a} 0;dmcopy-2,,,ro,0 8 linear /dev/mapper/dmcopy-1 0"
    first, second = mapper.create_all(list(parse_concise(text)))
    assert (first.info.readonly, second.info.readonly) == (False, True)
    again = [ConciseDevice(one.name, one.table, one.info.uuid) for one in (first, second)]
    second.remove()
    first.remove()
    made = mapper.create_all(list(parse_concise(format_concise(again))))
    for device in reversed(made):
        device.remove()


def test_nodes_are_made_without_udevd_too(disks: Disks, tmp_path: Path) -> None:
    mapper = KernelMapper(Dmsetup(udev=Udev.NODES), ledger=Ledger(tmp_path / "ledger"))
    with mapper.device("by hand", Table.of(8, Linear(disks.a, 0))) as device:
        assert Path(device.path).is_block_device()
        assert not Path(device.path).is_symlink()
    assert not os.path.lexists(device.path)
    assert KernelMapper().dmsetup.udev is Udev.COOKIES  # the rig runs udevd


@pytest.fixture
def no_links() -> Iterator[None]:
    """Have udev's rules make no node for devices whose names begin with dmcopy-bare."""
    rules = Path("/run/udev/rules.d/99-dmcopy-test.rules")
    rules.parent.mkdir(parents=True, exist_ok=True)
    rules.write_text('ENV{DM_NAME}=="dmcopy-bare*", SYMLINK=""\n')
    subprocess.run(["udevadm", "control", "--reload"], check=True, timeout=60)
    yield
    rules.unlink()
    subprocess.run(["udevadm", "control", "--reload"], check=True, timeout=60)


@pytest.mark.usefixtures("no_links")
def test_a_node_that_udev_does_not_make_is_made(mapper: KernelMapper, disks: Disks) -> None:
    table = Table.of(8, Linear(disks.a, 0))
    with mapper.device("dmcopy-bare", table) as device:
        assert Path(device.path).is_block_device()
        mapper.rename("dmcopy-bare", "dmcopy-bare2")
        path = Path(mapper.path("dmcopy-bare2"))
        assert path.is_block_device()
        path.unlink()
        mapper.suspend("dmcopy-bare2")
        mapper.resume("dmcopy-bare2")
        assert path.is_block_device()
        path.unlink()
        with mapper.open("dmcopy-bare2") as bare:
            assert bare.sectors == 8
        mapper.rename("dmcopy-bare2", "dmcopy-bare")
    assert not os.path.lexists(path)


def test_a_device_that_another_program_left_suspended_is_named(
    disks: Disks, tmp_path: Path, mapper: KernelMapper
) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    impatient = KernelMapper(Dmsetup(timeout=4, ledger=ledger), ledger=ledger)
    with mapper.device("left", Table.of(8, Linear(disks.a, 0))) as left:
        left.suspend()
        started = time.monotonic()
        try:
            # udev looks at a new device, and its read waits for the one below.
            top = impatient.create("dmcopy-top", Table.of(8, Linear(left.path, 0)))
        except DeadlineError as error:
            assert "/dev/mapper/dmcopy-left is suspended" in str(error)  # noqa: PT017
        else:
            top.remove()
        assert time.monotonic() - started < 30
        left.resume()
        # What could not be undone in time is still in the ledger, and can go now.
        deadline = time.monotonic() + SECONDS
        while stays := Reaper(mapper, impatient.ledger, wanted=_is_top).run().left:
            assert time.monotonic() < deadline, stays


def _is_top(entry: LedgerEntry) -> bool:
    return entry.name == "dmcopy-top"


def test_a_target_that_the_kernel_lacks_is_named(mapper: KernelMapper, disks: Disks) -> None:
    with pytest.raises(DeviceError, match="tomorrow: unknown target type"):
        mapper.create("dmcopy-new", Table.of(8, Raw("tomorrow", (disks.a,))))
