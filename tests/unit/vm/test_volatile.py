"""The write cache of a guest's disk: what a power cut takes, and the protocol that QEMU speaks."""

from __future__ import annotations

import random
import socket
import struct
from pathlib import Path

import pytest

from dmcopy.errors import BusyError
from dmcopy.vm.volatile import DiskServer, VolatileFile

SIZE = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(bytes(SIZE))
    return path


def test_unflushed_writes_are_lost(path: Path) -> None:
    disk = VolatileFile(path)
    disk.write(0, b"a" * 1024)
    disk.flush()
    disk.write(512, b"b" * 1024)
    assert disk.read(0, 2048) == b"a" * 512 + b"b" * 1024 + bytes(512)
    disk.crash()
    disk.close()
    assert path.read_bytes()[:2048] == b"a" * 1024 + bytes(1024)


def test_a_chosen_half_is_kept_by_the_sector(path: Path) -> None:
    def cut(seed: int) -> bytes:
        path.write_bytes(bytes(SIZE))
        disk = VolatileFile(path)
        disk.write(0, b"x" * 51200)
        disk.crash(random.Random(seed))
        disk.close()
        return path.read_bytes()

    once = cut(1)
    assert once == cut(1) != cut(2)
    kept = [once[at : at + 512] for at in range(0, 51200, 512)]
    assert set(kept) == {b"x" * 512, bytes(512)}


def test_a_file_that_another_guest_writes_to_is_refused(path: Path, tmp_path: Path) -> None:
    (tmp_path / "also").hardlink_to(path)
    disk = VolatileFile(path)
    for name in (path, tmp_path / "also"):
        with pytest.raises(BusyError, match=f"^{name} is in use by "):
            VolatileFile(name)
    disk.close()
    VolatileFile(path).close()


def test_zeroing_is_at_once_and_takes_the_place_of_writes(path: Path) -> None:
    path.write_bytes(b"o" * SIZE)
    disk = VolatileFile(path)
    disk.write(0, b"x" * 4096)
    disk.zero(512, 1024)
    assert disk.read(0, 4096) == b"x" * 512 + bytes(1024) + b"x" * 2560
    disk.zero(2048, SIZE - 2048)
    disk.crash()
    disk.close()
    assert path.read_bytes() == b"o" * 512 + bytes(1024) + b"o" * 512 + bytes(SIZE - 2048)


def test_a_full_cache_goes_to_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmcopy.vm.volatile._CACHE_SECTORS", 4)
    disk = VolatileFile(path)
    disk.write(0, b"x" * 512 * 5)
    disk.crash()
    disk.close()
    assert path.read_bytes()[:2560] == b"x" * 2560


class Client:
    """QEMU's side of the protocol, as far as it is used."""

    def __init__(self, address: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(address))
        self._stream = self._socket.makefile("rb")
        assert self._stream.read(18)[:16] == b"NBDMAGICIHAVEOPT"
        self._socket.sendall(struct.pack("!I", 3))
        self._socket.sendall(b"IHAVEOPT" + struct.pack("!II", 8, 0))  # structured replies
        assert self._option()[1] == 0x80000001
        self._socket.sendall(b"IHAVEOPT" + struct.pack("!IIIH", 7, 6, 0, 0))
        self.infos = []
        while (reply := self._option())[1] != 1:
            self.infos.append(reply[2])

    def _option(self) -> tuple[int, int, bytes]:
        _, option, kind, length = struct.unpack("!QIII", self._stream.read(20))
        return option, kind, self._stream.read(length)

    def ask(
        self, command: int, offset: int, count: int, data: bytes = b"", flags: int = 0
    ) -> bytes:
        self._socket.sendall(struct.pack("!IHHQQI", 0x25609513, flags, command, 7, offset, count))
        self._socket.sendall(data)
        magic, error, handle = struct.unpack("!IIQ", self._stream.read(16))
        assert (magic, handle) == (0x67446698, 7)
        return b"error" if error else self._stream.read(count if command == 0 else 0)

    def close(self) -> None:
        self._stream.close()
        self._socket.close()


def test_the_protocol(path: Path, tmp_path: Path) -> None:
    server = DiskServer(path, tmp_path / "socket")
    client = Client(tmp_path / "socket")
    assert struct.unpack("!HQH", client.infos[0])[1] == SIZE
    client.ask(1, 0, 512, b"a" * 512)
    client.ask(3, 0, 0)
    client.ask(1, 512, 512, b"b" * 512)
    client.ask(1, 1024, 512, b"c" * 512, flags=1)
    client.ask(1, 1536, 512, b"d" * 512)
    assert client.ask(0, 0, 2048) == b"a" * 512 + b"b" * 512 + b"c" * 512 + b"d" * 512
    assert client.ask(6, 0, 512) == b""
    assert client.ask(99, 0, 512) == b"error"
    client.close()
    server.stop(lose=True)
    assert path.read_bytes()[:2048] == bytes(512) + b"b" * 512 + b"c" * 512 + bytes(512)


def test_a_client_that_never_comes(path: Path, tmp_path: Path) -> None:
    DiskServer(path, tmp_path / "socket").stop()
