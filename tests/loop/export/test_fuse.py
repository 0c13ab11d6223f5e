"""A device as one file over the kernel's /dev/fuse, as root, and what programs do with it."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dmcopy.block import file_mounts
from dmcopy.errors import BusyError, UsageError
from dmcopy.ledger import Ledger
from dmcopy.mapper.reap import Reaper
from dmcopy.table import Table
from tests.loop.export.conftest import SECONDS, Server, Serving

pytestmark = pytest.mark.loop
MIB = 1 << 20
SIZE = 8 * MIB
SECTORS = SIZE >> 9


@pytest.fixture
def plain(serving: Serving) -> Path:
    """A file that is not in use yet."""
    path = serving.image("image", SIZE)
    path.write_bytes(random.Random(3).randbytes(SIZE))
    return path


@pytest.fixture
def image(serving: Serving, plain: Path) -> Path:
    """The file under the device a."""
    serving.make("a", f"0 {SECTORS} linear {plain} 0")
    return plain


def test_programs_read_and_write_it_as_a_disk(serving: Serving, image: Path) -> None:
    file = serving.file("a").path
    assert serving.run("stat", "-c", "%s %F", file) == f"{SIZE} regular file\n"
    serving.run("cmp", file, image)
    model = bytearray(image.read_bytes())
    rng = random.Random(4)
    new = serving.folder / "new"
    for place, how in [
        (0, "bs=1M"),
        (3 * MIB, "bs=1M oflag=direct"),
        (5 * MIB, "bs=777"),
        (6 * MIB, "bs=64K conv=fsync oflag=sync"),
    ]:
        data = rng.randbytes(MIB)
        new.write_bytes(data)
        model[place : place + MIB] = data
        serving.shell(
            'dd if="$1" of="$2" conv=notrunc oflag=seek_bytes seek="$3" $4 status=none',
            *(new, file, str(place), how),
        )
    assert image.read_bytes() == model
    new.write_bytes(model[::-1])
    serving.run("cp", new, file)  # which opens it with O_TRUNC
    assert image.read_bytes() == model[::-1]
    serving.run("cp", "--sparse=always", file, serving.folder / "copy")
    serving.run("cmp", serving.folder / "copy", image)


def test_it_keeps_the_size_of_the_device(serving: Serving, image: Path) -> None:
    before = image.read_bytes()
    file = serving.file("a").path
    serving.run("truncate", "-s", "1M", file, code=1)
    serving.shell('echo x >> "$1"', file, code=1)
    serving.run("chmod", "666", file, code=1)
    assert serving.run("stat", "-c", "%s", file) == f"{SIZE}\n"
    assert image.read_bytes() == before


@pytest.mark.usefixtures("image")
def test_what_changes_below_is_seen(serving: Serving) -> None:
    """No cache is between: what comes by another way is read immediately, also by mmap(2)."""
    file = serving.file("a").path

    def first() -> bytes:
        with open(file, "rb") as opened:
            return opened.read(512)

    serving.meanwhile(first)
    serving.mapper.open("a").write(0, b"y" * 512)
    assert serving.meanwhile(first) == b"y" * 512


def test_a_device_that_becomes_longer_is_a_longer_file(serving: Serving, plain: Path) -> None:
    serving.make("a", f"0 8 linear {plain} 0")
    file = serving.file("a").path
    assert serving.run("stat", "-c", "%s", file) == "4096\n"
    serving.mapper.swap("a", Table.parse(f"0 16 linear {plain} 0"))
    serving.run("dd", f"if={file}", "of=/dev/null", "bs=512", "count=1", "iflag=direct")
    assert serving.run("stat", "-c", "%s", file) == "8192\n"
    serving.run("cmp", "-n", "8192", file, plain)


def test_a_large_write_from_odd_memory_comes_in_whole_blocks(serving: Serving, image: Path) -> None:
    """The kernel cuts a write at pages of the caller's memory; the file's blocks stay whole."""
    file = serving.file("a").path
    data = random.Random(5).randbytes(2 * MIB)
    sizes: list[int] = []
    device = serving.mapper.open("a")
    take = device.take
    device.take = lambda request: (sizes.append(request.count), take(request))[1]  # type: ignore[method-assign]

    def write() -> None:
        memory = bytearray(len(data) + 24)
        memory[24:] = data
        fd = os.open(file, os.O_WRONLY)
        with os.fdopen(fd, "wb", buffering=0) as opened:
            assert opened.write(memoryview(memory)[24:]) == len(data)

    serving.meanwhile(write)
    assert image.read_bytes()[: len(data)] == data
    assert sizes == [512] * 8


def test_a_read_only_device_is_a_read_only_file(serving: Serving, image: Path) -> None:
    serving.make("r", f"0 {SECTORS} linear {image} 0", readonly=True)
    file = serving.file("r").path
    said = serving.shell('echo x > "$1"', file, code=1)
    assert os.strerror(errno.EROFS) in said
    serving.run("cmp", file, image)


def test_errors_of_the_device_are_those_of_the_call(serving: Serving, image: Path) -> None:
    serving.make("e", f"0 8 linear {image} 0\n8 8 error\n16 16 linear {image} 16")
    file = serving.file("e").path
    said = serving.run("dd", f"if={file}", "of=/dev/null", "bs=4096", "count=2", code=1)
    assert os.strerror(errno.EIO) in said
    said = serving.run("dd", "if=/dev/zero", f"of={file}", "bs=512", "seek=9", "count=1",
                       "conv=notrunc", code=1)  # fmt: skip
    assert os.strerror(errno.EIO) in said
    serving.run("dd", f"if={file}", "of=/dev/null", "bs=4096", "skip=2", "count=1")


def test_holes_and_zeroes_reach_the_device(serving: Serving, image: Path) -> None:
    model = bytearray(image.read_bytes())
    file = serving.file("a").path
    serving.run("fallocate", "--punch-hole", "-o", "1M", "-l", "2M", file)
    serving.run("fallocate", "--zero-range", "-o", "5M", "-l", "1000", file)
    model[MIB : 3 * MIB] = bytes(2 * MIB)
    model[5 * MIB : 5 * MIB + 1000] = bytes(1000)
    assert image.read_bytes() == model
    assert image.stat().st_blocks <= SECTORS - (2 * MIB >> 9)


def test_one_that_is_open_stays_until_it_is_let_go(serving: Serving, image: Path) -> None:
    served = serving.file("a")
    with serving.opened(served.path) as fd:
        with pytest.raises(BusyError) as caught:
            served.close()
        assert str(os.getpid()) in str(caught.value)
        assert "still served" in str(caught.value)
        assert serving.meanwhile(lambda: os.pread(fd, 512, 0)) == image.read_bytes()[:512]
    served.close()
    assert not Path(served.path).exists()
    assert serving.ledger.entries() == []


@pytest.mark.usefixtures("image")
def test_one_that_is_open_is_taken_away_by_force(serving: Serving) -> None:
    served = serving.file("a")
    with serving.opened(served.path) as fd:
        served.close(force=True)
        assert not Path(served.path).exists()
        with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
            os.pread(fd, 512, 0)
    assert file_mounts.source_of(served.path) == ""


@pytest.mark.skipif(shutil.which("qemu-io") is None, reason="no qemu-io")
def test_qemu_has_it_as_a_disk(serving: Serving, image: Path) -> None:
    """Past the page cache, with its own asynchronous I/O, discards and zeroes."""
    file = serving.file("a").path
    source = serving.folder / "source"
    source.write_bytes(random.Random(8).randbytes(SIZE))
    raw = ["-f", "raw", "-O", "raw", "-n", "-t", "none", "-T", "none"]
    serving.run("qemu-img", "convert", *raw, source, file)
    assert serving.run("qemu-img", "compare", "-f", "raw", "-F", "raw", source, file)
    model = bytearray(source.read_bytes())
    steps = ["write -P 7 1M 64k", "write -z 2M 1M", "write -zu 4M 1M", "discard 6M 64k", "flush"]
    words = [word for step in steps for word in ("-c", step)]
    serving.run("qemu-io", "-f", "raw", "-n", "-d", "unmap", "-i", "native", *words, file)
    model[MIB : MIB + 65536] = b"\7" * 65536
    for start, length in [(2 * MIB, MIB), (4 * MIB, MIB), (6 * MIB, 65536)]:
        model[start : start + length] = bytes(length)
    assert image.read_bytes() == model


def test_a_file_that_is_not_ours_is_not_removed(serving: Serving) -> None:
    """The entry is there before the file: killed in between, the name may be any program's."""
    path = serving.folder / "theirs"
    path.touch()
    serving.ledger.add("mount", str(path), uuid=f"{file_mounts.SOURCE_PREFIX}0123456789ab")
    result = Reaper(serving.mapper, serving.ledger, lambda _: True).run()
    assert [entry.name for entry in result.vanished] == [str(path)]
    assert path.exists()


@pytest.mark.usefixtures("image")
def test_somebody_else_unmounts_it(serving: Serving) -> None:
    served = serving.file("a")
    serving.run("umount", served.path)
    serving.mapper.reactor.run_until(lambda: served.gone, SECONDS, "the end of the mount")
    served.close()
    assert not Path(served.path).exists()


@pytest.mark.usefixtures("image")
def test_a_name_that_is_taken_is_refused(serving: Serving) -> None:
    there = serving.folder / "a.served"
    there.write_text("mine")
    with pytest.raises(UsageError, match="is there already"):
        serving.file("a")
    assert there.read_text() == "mine"
    there.unlink()
    there.symlink_to(serving.folder / "elsewhere")
    with pytest.raises(UsageError, match="is there already"):
        serving.file("a")
    there.unlink()
    serving.file("a")
    with pytest.raises(BusyError, match="dm reap"):
        serving.file("a")


def test_a_server_that_is_killed_leaves_what_reap_removes(serving: Serving, plain: Path) -> None:
    path = serving.folder / "served"
    for _ in range(3):
        server = Server("fuse", serving.folder, f"served,,,,0 {SECTORS} linear {plain} 0")
        assert server.paths == [str(path)]
        with open(path, "r+b", buffering=0) as opened:
            opened.write(b"z" * 4096)
            os.fsync(opened)
            server.kill()
            with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
                opened.write(b"lost")
        assert plain.read_bytes()[:4096] == b"z" * 4096
        with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
            path.stat()
        result = Reaper(serving.mapper, serving.ledger).run()
        assert [(entry.kind, entry.name) for entry in result.removed] == [("mount", str(path))]
        assert not result.left
        assert not path.exists()


def test_reap_leaves_one_that_is_open_and_says_so(serving: Serving, plain: Path) -> None:
    path = serving.folder / "served"
    server = Server("fuse", serving.folder, f"served,,,,0 {SECTORS} linear {plain} 0")
    assert server.paths == [str(path)]
    with open(path, "rb"):
        server.kill()
        result = Reaper(serving.mapper, serving.ledger).run()
        assert os.strerror(errno.EBUSY) in result.left[str(path)]
    assert not Reaper(serving.mapper, serving.ledger).run().left
    assert not path.exists()


@pytest.mark.skipif(not os.path.exists("/usr/bin/fusermount3"), reason="no fusermount3")
@pytest.mark.parametrize("killed", [False, True])
def test_an_ordinary_user_serves_one_by_fusermount3(serving: Serving, killed: bool) -> None:
    folder = serving.folder / "users"
    folder.mkdir()
    serving.folder.chmod(0o711)
    image = folder / "image"
    image.write_bytes(bytes(SIZE))
    for each in (folder, image):
        os.chown(each, 65534, 65534)
    as_user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]
    path, ledger = folder / "served", Ledger(folder / "ledger")
    spec = f"served,,,,0 {SECTORS} linear {image} 0"
    server = Server("fuse", folder, spec, before=as_user)
    done = subprocess.run(
        [*as_user, "dd", "if=/dev/urandom", f"of={path}", "bs=1M", "count=8", "conv=fsync"],
        capture_output=True,
        check=False,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    assert image.read_bytes() != bytes(SIZE)
    with pytest.raises(PermissionError):  # not even root may look at what a user serves
        path.stat()
    if killed:
        server.kill()
        reap = (
            "import sys; from dmcopy.ledger import Ledger; from dmcopy.mapper.reap import Reaper;"
            "from dmcopy.mapper.userspace import UserMapper;"
            "print(Reaper(UserMapper(), Ledger(sys.argv[1])).run().left)"
        )
        words = [*as_user, sys.executable, "-c", reap, str(ledger.path)]
        said = subprocess.run(words, capture_output=True, text=True, check=True, timeout=SECONDS)
        assert said.stdout == "{}\n"
    else:
        assert server.end() == 0
    assert not path.exists()
    assert ledger.entries() == []
