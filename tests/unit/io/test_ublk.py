"""The ublk driver's control device: whether it can be used, and layouts as the kernel has them."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

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
