"""The nbd driver's netlink: whether it can be used, and messages as the kernel has them."""

from __future__ import annotations

import errno
import os
import re
import struct
from pathlib import Path
from types import SimpleNamespace

import pytest

from dmcopy.io import nbd

HEADERS = Path("/usr/include/linux/nbd-netlink.h"), Path("/usr/include/linux/genetlink.h")


@pytest.mark.skipif(not all(map(Path.exists, HEADERS)), reason="no headers")
def test_numbers_are_the_kernels() -> None:
    numbers: dict[str, int] = {}
    for header in HEADERS:
        for body in re.findall(r"enum \{(.*?)\};", header.read_text(), re.DOTALL):
            words = re.findall(r"^\s*(\w+),", body, re.MULTILINE)
            numbers |= {word: place for place, word in enumerate(words)}
    ours = {
        "NBD_CMD_CONNECT": nbd._CONNECT,
        "NBD_CMD_DISCONNECT": nbd._DISCONNECT,
        "NBD_CMD_RECONFIGURE": nbd._RECONFIGURE,
        "NBD_ATTR_INDEX": nbd._INDEX,
        "NBD_ATTR_SIZE_BYTES": nbd._SIZE_BYTES,
        "NBD_ATTR_BLOCK_SIZE_BYTES": nbd._BLOCK_SIZE,
        "NBD_ATTR_TIMEOUT": nbd._TIMEOUT,
        "NBD_ATTR_SERVER_FLAGS": nbd._SERVER_FLAGS,
        "NBD_ATTR_SOCKETS": nbd._SOCKETS,
        "NBD_ATTR_DEAD_CONN_TIMEOUT": nbd._DEAD_TIMEOUT,
        "NBD_ATTR_BACKEND_IDENTIFIER": nbd._BACKEND,
        "NBD_SOCK_ITEM": nbd._SOCKET_ITEM,
        "NBD_SOCK_FD": nbd._SOCKET_FD,
        "CTRL_CMD_GETFAMILY": nbd._GET_FAMILY,
        "CTRL_ATTR_FAMILY_ID": nbd._FAMILY_ID,
        "CTRL_ATTR_FAMILY_NAME": nbd._FAMILY_NAME,
    }
    assert {word: numbers[word] for word in ours} == ours


def test_this_machines_kernel_answers() -> None:
    control = nbd.NbdControl()
    answer = control.exchange(16, 3, nbd._attribute(2, b"nlctrl\0"))
    assert nbd._attributes(answer)[1] == struct.pack("=H", 16)
    with pytest.raises(OSError, match="No such file"):
        control.exchange(16, 3, nbd._attribute(2, b"no-such\0"))
    with pytest.raises(OSError, match="Invalid argument"):
        control.exchange(16, 3, b"")


def test_attributes_are_padded_and_nested() -> None:
    assert nbd._attribute(10, b"abc\0d") == b"\x09\0\x0a\0abc\0d\0\0\0"
    assert nbd._attributes(nbd._attribute(10, b"abc\0d") + nbd._u32(1, 7)) == {
        10: b"abc\0d",
        1: b"\7\0\0\0",
    }
    inner = struct.pack("=HHHHI", 12, 1 | 1 << 15, 8, 1, 9)
    assert nbd._socket(9) == struct.pack("=HH", 16, 7 | 1 << 15) + inner


def test_two_messages_come_at_once() -> None:
    one = struct.pack("=IHHII", 16 + 5, 29, 0, 1, 0) + b"first"
    two = struct.pack("=IHHII", 16 + 4, 2, 0, 1, 0) + bytes(4)
    assert list(nbd._messages(one + bytes(3) + two)) == [(29, b"first"), (2, bytes(4))]


@pytest.mark.parametrize(
    ("user", "release", "error", "said"),
    [
        (1000, "6.1.0-13-amd64", 0, "nbd devices need root"),
        (0, "5.10.0-28-amd64", 0, "kernel 5.10.0-28-amd64 is older than 5.14"),
        (0, "6.1.0-13-amd64", errno.ENXIO, "modprobe nbd"),
        (0, "6.1.0-13-amd64", errno.ENOENT, "in this network namespace"),
        (0, "6.1.0-13-amd64", errno.EPERM, "cannot be asked: Operation not permitted"),
        (0, "6.1.0-13-amd64", 0, ""),
    ],
)
def test_why_not(
    monkeypatch: pytest.MonkeyPatch, user: int, release: str, error: int, said: str
) -> None:
    def family(_: nbd.NbdControl) -> int:
        assert error != errno.ENXIO, "it would be loaded"
        if error:
            raise OSError(error, os.strerror(error))
        return 29

    monkeypatch.setattr(nbd, "_MODULE", "/no/module" if error == errno.ENXIO else "/sys")
    monkeypatch.setattr("os.geteuid", lambda: user)
    monkeypatch.setattr("os.uname", lambda: SimpleNamespace(release=release))
    monkeypatch.setattr(nbd.NbdControl, "_family", family)
    reason = nbd.NbdControl().why_not()
    assert said in reason
    assert bool(reason) == bool(said)


def test_what_is_connected_is_known_by_its_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nbd, "_BLOCKS", str(tmp_path))
    for name in ("nbd0", "nbd1", "nbd1p1", "nbd10", "loop0"):
        (tmp_path / name).mkdir()
    (tmp_path / "nbd10/backend").write_text("dmcopy-a\n")
    (tmp_path / "nbd1/backend").write_text("\n")
    control = nbd.NbdControl()
    assert control.numbers() == [1, 10]
    assert [control.mark(number) for number in (0, 1, 10)] == ["", "", "dmcopy-a"]
    assert control.find("dmcopy-a") == 10
    assert control.find("dmcopy-b") is None


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, dict[int, bytes]]]:
    """The commands that a stand-in of the driver, family 29, is given; it answers with number 7."""
    found: list[tuple[int, dict[int, bytes]]] = []

    def exchange(_: nbd.NbdControl, family: int, command: int, attributes: bytes) -> bytes:
        words = nbd._attributes(attributes)
        if family == 16:
            assert (command, words) == (3, {2: b"nbd\0"})
            return struct.pack("=HHHxx", 6, 1, 29)
        assert family == 29
        found.append((command, words))
        return struct.pack("=HHI", 8, 1, 7)

    monkeypatch.setattr(nbd.NbdControl, "exchange", exchange)
    return found


def sockets(descriptor: int) -> bytes:
    """Return the list of one socket."""
    return struct.pack("=HHHHI", 12, 1 | 1 << 15, 8, 1, descriptor)


@pytest.mark.parametrize(("wait", "seconds"), [(False, 0), (True, 1_000_000)])
def test_a_device_is_connected(
    asked: list[tuple[int, dict[int, bytes]]], *, wait: bool, seconds: int
) -> None:
    """No request is given up for the time that it takes; another server is waited for, if asked."""
    control = nbd.NbdControl()
    assert control.connect("m", 9, sectors=1 << 32, block_size=4096, flags=0x2D, wait=wait) == 7
    numbers = {2: 1 << 41, 3: 4096, 4: 0, 5: 0x2D, 8: seconds}
    words = {kind: struct.pack("=Q", number) for kind, number in numbers.items()}
    assert asked == [(1, words | {10: b"m\0", 7: sockets(9)})]


def test_what_is_asked_about_a_device(asked: list[tuple[int, dict[int, bytes]]]) -> None:
    """What would change it names its mark, too: a number may be another's by then."""
    control = nbd.NbdControl()
    control.reconnect(3, "m", 9)
    control.resize(3, "m", 8)
    control.disconnect(3)
    three = struct.pack("=I", 3)
    assert asked == [
        (3, {1: three, 10: b"m\0", 7: sockets(9)}),
        (3, {1: three, 10: b"m\0", 2: struct.pack("=Q", 4096)}),
        (2, {1: three}),
    ]


def test_requests_look_for_another_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nbd, "_BLOCKS", str(tmp_path))
    timeout = tmp_path / "nbd3/queue/io_timeout"
    timeout.parent.mkdir(parents=True)
    nbd.NbdControl().retry_soon(3)
    assert timeout.read_text() == "5000"
    nbd.NbdControl().retry_soon(4)  # as where it has gone meanwhile
    assert [path.name for path in tmp_path.iterdir()] == ["nbd3"]
