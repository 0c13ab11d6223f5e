"""The ublk driver's control device: whether it can be used, and layouts as the kernel has them."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import struct
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from dmcopy.io import ring, ublk

HEADER = Path("/usr/include/linux/ublk_cmd.h")
PROGRAM = r"""
#include <stddef.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <linux/io_uring.h>
#include <linux/ublk_cmd.h>
#define S(type) (int)sizeof(struct type)
#define AT(type, field) (int)offsetof(struct type, field)
int main(void) {
    printf("%d %d %d %d %d ", S(ublksrv_ctrl_cmd), S(ublksrv_ctrl_dev_info), S(ublksrv_io_cmd),
        S(ublksrv_io_desc), AT(ublk_params, discard.reserved0) + 2);
    printf("%d %d %d %d %d ", AT(ublksrv_ctrl_cmd, addr), AT(ublksrv_ctrl_cmd, data),
        AT(ublksrv_ctrl_dev_info, state), AT(ublksrv_ctrl_dev_info, flags),
        AT(ublksrv_ctrl_dev_info, ublksrv_flags));
    printf("%d %d %d %d %d ", AT(ublksrv_io_cmd, result), AT(ublksrv_io_cmd, addr),
        AT(ublk_params, basic.dev_sectors), AT(ublk_params, discard.discard_granularity),
        AT(ublk_params, discard.max_discard_segments));
    printf("%u %u %u %u ", (unsigned)_IOWR('u', UBLK_CMD_ADD_DEV, struct ublksrv_ctrl_cmd),
        (unsigned)_IOR('u', UBLK_CMD_GET_DEV_INFO, struct ublksrv_ctrl_cmd),
        (unsigned)_IOWR('u', UBLK_IO_FETCH_REQ, struct ublksrv_io_cmd),
        (unsigned)_IOWR('u', UBLK_IO_COMMIT_AND_FETCH_REQ, struct ublksrv_io_cmd));
    printf("%u %u %u ", (unsigned)_IOWR('u', UBLK_CMD_STOP_DEV, struct ublksrv_ctrl_cmd),
        (unsigned)_IOWR('u', UBLK_CMD_START_USER_RECOVERY, struct ublksrv_ctrl_cmd),
        (unsigned)_IOWR('u', UBLK_CMD_END_USER_RECOVERY, struct ublksrv_ctrl_cmd));
    printf("%d %d %d %d %d", IORING_OP_URING_CMD, AT(io_uring_sqe, user_data),
        AT(io_uring_sqe, cmd), UBLK_IO_OP_WRITE_ZEROES, (int)UBLK_IO_F_FUA);
}
"""


@pytest.mark.skipif(
    shutil.which("cc") is None or not HEADER.exists(), reason="no C compiler, or no headers"
)
def test_layouts_and_numbers_are_the_kernels(tmp_path: Path) -> None:
    (tmp_path / "print.c").write_text(PROGRAM)
    subprocess.run(["cc", "-o", tmp_path / "print", tmp_path / "print.c"], check=True, timeout=60)
    done = subprocess.run([tmp_path / "print"], capture_output=True, check=True, timeout=60)
    # fmt: off
    assert list(map(int, done.stdout.split())) == [
        ublk._ARGUMENT.size, ublk._INFO.size, ublk.IO_COMMAND.size, ublk.DESCRIPTION.size,
        ublk._PARAMS.size,
        8, 16, 4, 24, 32,
        ublk.IO_RESULT_AT, 8, 24, 44, 56,
        ublk._ADD, ublk._GET_INFO, ublk.FETCH, ublk.COMMIT,
        ublk._STOP, ublk._START_RECOVERY, ublk._END_RECOVERY,
        ring.OP_URING_CMD, 32, ring.COMMAND.size, ublk.WRITE_ZEROES, ublk.FUA,
    ]
    # fmt: on


@pytest.fixture
def control(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ublk.UblkControl:
    """One for root, on a kernel that has a driver; `features` must not be asked for otherwise."""
    node = tmp_path / "ublk-control"
    node.touch()
    monkeypatch.setattr(ublk, "CONTROL", str(node))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(ublk, "probe_ring", lambda: "")
    running(monkeypatch, "6.12.117+deb13-amd64")
    made = ublk.UblkControl()
    monkeypatch.setattr(made, "features", lambda: 0x1FE)
    return made


def running(patch: pytest.MonkeyPatch, release: str) -> None:
    patch.setattr(os, "uname", lambda: SimpleNamespace(release=release, machine="x86_64"))


def test_it_works_where_nothing_is_against_it(control: ublk.UblkControl) -> None:
    assert control.why_not() == ""


@pytest.mark.parametrize(
    ("release", "bad"),
    [
        ("6.18.4", True),
        ("6.18.5-arch1-1", True),
        ("6.17.0-1015-azure", True),
        ("6.17.0-1018-azure", True),
        ("6.18.3", False),
        ("6.18.6", False),
        ("6.18.44", False),
        ("6.18.50-1-lts", False),
        ("6.17.0-14-generic", False),
        ("6.12.117+deb13-amd64", False),
    ],
)
def test_a_kernel_that_would_hang_is_not_asked(
    control: ublk.UblkControl, monkeypatch: pytest.MonkeyPatch, release: str, *, bad: bool
) -> None:
    running(monkeypatch, release)
    assert (f"kernel {release} never returns" in control.why_not()) == bad


def refuse(number: int) -> int:
    raise OSError(number, os.strerror(number))


def test_what_is_against_it_is_said(
    control: ublk.UblkControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reason(where: object, name: str, value: object) -> str:
        with monkeypatch.context() as patch:
            patch.setattr(where, name, value)
            return control.why_not()

    assert reason(control, "features", lambda: 1 << 6) == (
        "this kernel's ublk driver cannot wait for another server"
    )
    old = "this kernel's ublk driver is older than 6.5"
    assert reason(control, "features", lambda: refuse(errno.EOPNOTSUPP)) == old
    assert "Permission denied" in reason(control, "features", lambda: refuse(errno.EACCES))
    assert reason(ublk, "probe_ring", lambda: "no io_uring") == "no io_uring"
    assert "modprobe ublk_drv" in reason(ublk, "CONTROL", "/dev/no-such-node")
    assert reason(os, "geteuid", lambda: 1) == "ublk devices need root"


def test_a_wide_ring_has_room_for_long_commands() -> None:
    if reason := ring.probe_ring():
        pytest.skip(reason)
    made = ring.Ring(2, wide=True)
    try:
        assert len(made.sqes) == 256
        ring.COMMAND.pack_into(made.sqes, 128, ring.OP_NOP, -1, 0, 7)
        made.queue([1])
        assert made.enter(1, 1, 5.0) == 1
        assert made.reap()[::2] == [7]
    finally:
        made.close()


def test_a_node_without_a_driver_refuses_commands(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The whole of a command on a real ring: a file has no commands."""
    if reason := ring.probe_ring():
        pytest.skip(reason)
    (tmp_path / "control").touch()
    monkeypatch.setattr(ublk, "CONTROL", str(tmp_path / "control"))
    with pytest.raises(OSError, match=os.strerror(errno.EOPNOTSUPP)):
        ublk.UblkControl().info(0)


def test_what_the_driver_may_still_write_to_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if reason := ring.probe_ring():
        pytest.skip(reason)
    (tmp_path / "control").touch()
    monkeypatch.setattr(ublk, "CONTROL", str(tmp_path / "control"))
    monkeypatch.setattr(ublk, "SECONDS", 0.0)
    lent: list[ctypes.Array[ctypes.c_char]] = []
    monkeypatch.setattr(ublk, "_LENT", lent)
    with pytest.raises(TimeoutError):
        ublk.UblkControl().info(0)
    assert [len(one) for one in lent] == [ublk._INFO.size]


class Asked(NamedTuple):
    """A command as the driver reads it (struct ublksrv_ctrl_cmd), and what is in its buffer."""

    code: int
    number: int
    queue: int
    data: int
    buffer: bytes


class Driver:
    """In the place of the ring to it: notes what it is asked, and answers.

    Attributes:
        answer: what it writes to the buffer.
        results: of the next commands; then they succeed.
        rings: those that are open.
    """

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.answer = b""
        self.results: list[int] = []
        self.rings = 0

    def __call__(self, entries: int, *, wide: bool) -> FakeRing:
        assert (entries, wide) == (1, True)
        self.rings += 1
        return FakeRing(self)

    def take(self, entry: bytes | bytearray) -> int:
        op, _, code, _ = ring.COMMAND.unpack_from(entry)
        assert op == ring.OP_URING_CMD
        number, queue, size, address, data = struct.unpack_from("<IHHQQ", entry, 48)
        self.asked.append(Asked(code, number, queue, data, ctypes.string_at(address, size)))
        result = self.results.pop(0) if self.results else 0
        if result == 0:
            ctypes.memmove(address, self.answer, min(size, len(self.answer)))
        return result


class FakeRing:
    """The part of a ring that a command needs."""

    def __init__(self, driver: Driver) -> None:
        self.sqes = bytearray(128)
        self._driver = driver
        self._found: list[int] = []

    def queue(self, entries: list[int]) -> None:
        assert entries == [0]

    def enter(self, submit: int, wait: int, timeout: float) -> int:
        assert (submit, wait, timeout > 0) == (1, 1, True)
        self._found = [0, self._driver.take(self.sqes) % (1 << 32)]
        return 1

    def reap(self) -> list[int]:
        return self._found

    def close(self) -> None:
        self._driver.rings -= 1


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    found = Driver()
    monkeypatch.setattr(ublk, "CONTROL", os.devnull)
    monkeypatch.setattr(ublk, "Ring", found)
    return found


NEW = (1 << 32) - 1
"""(__u32)-1: no device yet; the driver chooses a number."""
MARK = "00c0ffee00c0ffee"


def info(number: int, *, state: int = 0, pid: int = -1, flags: int = 0, depth: int = 0) -> bytes:
    """Return a struct ublksrv_ctrl_dev_info."""
    many = struct.pack("<HHHHII", 1, depth, state, 0, 1 << 20, number)
    return many + struct.pack("<iIQQ16x", pid, 0, flags, int(MARK, 16)) + bytes(8)


def test_a_driver_is_asked_what_it_can_do_about_no_device(driver: Driver) -> None:
    driver.answer = (1 << 10).to_bytes(8, "little")
    assert ublk.UblkControl().features() == 1 << 10
    assert ublk.UblkControl().can_resize
    assert driver.asked[0] == Asked(ublk._GET_FEATURES, NEW, 0xFFFF, 0, bytes(8))
    driver.answer = (0x3FF).to_bytes(8, "little")
    assert not ublk.UblkControl().can_resize
    assert driver.rings == 0


@pytest.mark.parametrize(("number", "wanted"), [(None, NEW), (0, 0), (7, 7)])
@pytest.mark.parametrize(("recoverable", "flags"), [(False, 0x40), (True, 0x58)])
def test_a_device_is_added(
    driver: Driver, number: int | None, wanted: int, *, recoverable: bool, flags: int
) -> None:
    """Commands by ioctl numbers; USER_RECOVERY with USER_RECOVERY_REISSUE, or neither."""
    driver.answer = info(7)
    made = ublk.UblkControl().add(
        MARK, depth=64, max_bytes=1 << 20, recoverable=recoverable, number=number
    )
    assert made == ublk.UblkInfo(7, ublk.DEAD, -1, MARK)
    (asked,) = driver.asked
    assert asked[:4] == (ublk._ADD, wanted, 0xFFFF, 0)
    assert asked.buffer == info(wanted, pid=0, flags=flags, depth=64)


@pytest.mark.parametrize(("read_only", "attributes"), [(False, 0xC), (True, 0xD)])
@pytest.mark.parametrize(("block", "shift", "most"), [(512, 9, 8388607), (4096, 12, 8388600)])
def test_a_device_is_described(
    driver: Driver, block: int, shift: int, most: int, *, read_only: bool, attributes: int
) -> None:
    """Volatile cache and FUA; a discard has whole blocks, as many as 32 bits have bytes for."""
    ublk.UblkControl().describe(
        3, sectors=1 << 40, block_size=block, max_bytes=1 << 20, read_only=read_only
    )
    (asked,) = driver.asked
    assert asked[:4] == (ublk._SET_PARAMS, 3, 0xFFFF, 0)
    length, types, *basic = struct.unpack_from("<III4BIIQQ", asked.buffer)
    assert (length, types) == (len(asked.buffer), 0b11)
    assert basic == [attributes, *[shift] * 4, 2048, 0, 1 << 40, 0]
    assert struct.unpack_from("<IIIIHH", asked.buffer, 40) == (0, block, most, most, 1, 0)


def test_what_is_asked_about_a_device(driver: Driver) -> None:
    control = ublk.UblkControl()
    control.start(3)
    control.stop(3)
    control.resize(3, 1 << 33)
    control.end_recovery(3)
    control.delete(3)
    control.delete(3, wait=False)
    assert [(one.code, one.data) for one in driver.asked] == [
        (ublk._START, os.getpid()),
        (ublk._STOP, 0),
        (ublk._UPDATE_SIZE, 1 << 33),
        (ublk._END_RECOVERY, os.getpid()),
        (ublk._DELETE, 0),
        (ublk._DELETE_LATER, 0),
    ]
    assert {one[1:3] for one in driver.asked} == {(3, 0xFFFF)}


def test_where_none_can_be_deleted_later_it_is_waited_for(driver: Driver) -> None:
    driver.results = [-errno.EOPNOTSUPP]
    ublk.UblkControl().delete(3, wait=False)
    assert [one.code for one in driver.asked] == [ublk._DELETE_LATER, ublk._DELETE]
    driver.results = [-errno.ENODEV]
    with pytest.raises(OSError, match=os.strerror(errno.ENODEV)):
        ublk.UblkControl().delete(3, wait=False)
    assert len(driver.asked) == 3


def test_a_recovery_begins_once_the_driver_knows_that_the_server_died(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.results = [-errno.EBUSY, -errno.EBUSY]
    ublk.UblkControl().begin_recovery(3)
    assert [one.code for one in driver.asked] == [ublk._START_RECOVERY] * 3
    driver.results = [-errno.ENODEV]
    with pytest.raises(OSError, match=os.strerror(errno.ENODEV)):
        ublk.UblkControl().begin_recovery(3)
    clock = SimpleNamespace(monotonic=iter(range(1000)).__next__, sleep=lambda _: None)
    monkeypatch.setattr("dmcopy.io.ublk.time", clock)
    driver.results = [-errno.EBUSY] * 1000
    with pytest.raises(OSError, match=os.strerror(errno.EBUSY)):
        ublk.UblkControl().begin_recovery(3)


def test_a_device_is_found_by_its_mark(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are gone meanwhile, or may not be looked at, are not it."""
    control = ublk.UblkControl()
    monkeypatch.setattr(os, "listdir", lambda _: ["ublkc10", "ublkc9"])
    driver.answer = info(10, state=ublk.QUIESCED, pid=12)
    driver.results = [-errno.ENODEV]
    assert control.numbers() == [9, 10]
    assert control.find(MARK) == ublk.UblkInfo(10, ublk.QUIESCED, 12, MARK)
    assert [one.number for one in driver.asked] == [9, 10]
    assert control.find("0" * 16) is None
    monkeypatch.undo()
    assert control.numbers() == [] or os.path.exists("/sys/class/ublk-char")
