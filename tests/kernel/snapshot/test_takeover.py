"""One store, continued by the other engine: at clean points, and after one of them was cut off."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmcopy.io.region import IoRegion
from dmcopy.io.request import Io, Memory, Op
from tests.kernel.programs import run

from .engines import SECTORS, Engine, KernelEngine, UserEngine, pattern
from .recipes import LENGTH, drop, pause, take

# A store's format and its rules are the same on all kernels; what happens within one is compared
# by histories and handovers on each.
pytestmark = pytest.mark.kernel(either=True, cost=7)

ORIGIN = f"0 {SECTORS} snapshot-origin @A"
SNAPSHOT = f"0 {SECTORS} snapshot @A @B P 8"
MERGE = f"0 {SECTORS} snapshot-merge @A @B P 8"
BLOCK = 4096


@contextlib.contextmanager
def user_on(kernel: KernelEngine) -> Iterator[UserEngine]:
    """The userspace engine on the kernel's disks, which the kernel must not use meanwhile."""
    user = UserEngine(kernel=kernel)
    try:
        yield user
    finally:
        user.close()


@contextlib.contextmanager
def mounted(device: str, place: Path, *options: str) -> Iterator[Path]:
    place.mkdir(exist_ok=True)
    run("mount", *options, device, str(place))
    try:
        yield place
    finally:
        run("umount", str(place))


def test_a_file_system_goes_from_engine_to_engine(kernel: KernelEngine, tmp_path: Path) -> None:
    rng = random.Random(5)
    files = {f"f{number}": rng.randbytes(rng.randint(1, 20) * BLOCK) for number in range(40)}
    run("mkfs.ext4", "-q", "-F", "-b", str(BLOCK), kernel.path("A"))
    kernel.create("o", ORIGIN)
    kernel.create("s", SNAPSHOT)
    pause(kernel, "o")
    with mounted(kernel.path("s"), tmp_path / "s") as place:
        for name, data in files.items():
            (place / name).write_bytes(data)
    image = kernel.read("s", 0, SECTORS)
    drop(kernel, "s", "o")

    with user_on(kernel) as user:
        user.create("o", ORIGIN)
        user.create("s", SNAPSHOT)
        pause(user, "o")
        assert user.read("s", 0, SECTORS) == image
        for name in list(files)[::3]:  # other content for some files, in their first blocks
            start = image.index(files[name][:BLOCK])
            assert start % BLOCK == 0
            new = rng.randbytes(BLOCK)
            user.write("s", start // 512, new)
            files[name] = new + files[name][BLOCK:]
        for _ in range(50):  # the origin is written to, which the snapshot must not see
            user.write("o", rng.randrange(SECTORS - 8), rng.randbytes(rng.randint(1, 8) * 512))
        image = user.read("s", 0, SECTORS)

    kernel.create("o", ORIGIN)
    kernel.create("s", SNAPSHOT)
    pause(kernel, "o")
    assert kernel.read("s", 0, SECTORS) == image
    run("e2fsck", "-fn", kernel.path("s"))
    with mounted(kernel.path("s"), tmp_path / "s", "-o", "ro,noload") as place:
        assert {name: (place / name).read_bytes() for name in files} == files
    kernel.load("o", MERGE)
    kernel.mapper.suspend("s")
    kernel.mapper.suspend("o")
    kernel.mapper.resume("o")
    kernel.mapper.suspend("o")  # wherever the merge is
    drop(kernel, "s", "o")

    with user_on(kernel) as user:
        user.create("o", MERGE)
        user.wait_merged("o")
        assert user.read("o", 0, SECTORS) == image
    assert kernel.exceptions("B") == []

    kernel.create("o", ORIGIN)
    kernel.create("s", SNAPSHOT)  # a merged store is as good as new
    assert kernel.status("s") == f"16/{SECTORS} 16"
    run("e2fsck", "-fn", kernel.path("o"))
    with mounted(kernel.path("o"), tmp_path / "s", "-o", "ro,noload") as place:
        assert {name: (place / name).read_bytes() for name in files} == files
    drop(kernel, "s", "o")


@pytest.mark.parametrize("merger", ["kernel", "user"])
def test_a_merge_goes_from_engine_to_engine(kernel: KernelEngine, merger: str) -> None:
    take(kernel, chunk=1)
    for place in range(0, 900, 3):
        kernel.write("s", place, pattern(place, 2))
    image = kernel.read("s", 0, LENGTH)
    drop(kernel, "s", "o")
    table = f"0 {LENGTH} snapshot-merge @A @B P 1"
    with user_on(kernel) as user:
        engines: list[Engine] = [kernel, user] if merger == "kernel" else [user, kernel]
        for engine in engines:
            engine.create("o", table)
            if engine is engines[0]:
                engine.mapper.suspend("o")
            else:
                engine.wait_merged("o")
            drop(engine, "o")
    assert kernel.peek("A", 0, LENGTH) == image
    assert kernel.exceptions("B") == []


def test_a_live_store_that_was_copied(kernel: KernelEngine, user: UserEngine) -> None:
    take(kernel)
    stop = threading.Event()
    copies: list[tuple[bytes, bytes]] = []

    def copy() -> None:
        # The origin first: whatever changes then is on the COW before it is on the origin.
        while not stop.is_set() and len(copies) < 12:
            copies.append((kernel.peek("A", 0, LENGTH), kernel.peek("B", 0, SECTORS)))

    copier = threading.Thread(target=copy)
    copier.start()
    places = random.Random(3).sample(range(LENGTH - 8), 200)
    for place in places:
        kernel.write("o", place, pattern(place, 1))
    stop.set()
    copier.join()
    drop(kernel, "s", "o")
    copies.append((kernel.peek("A", 0, LENGTH), kernel.peek("B", 0, SECTORS)))
    for origin, cow in copies:
        user.poke("A", 0, origin)
        user.poke("B", 0, cow)
        user.create("o", f"0 {LENGTH} snapshot-origin @A")
        user.create("s", f"0 {LENGTH} snapshot @A @B P 8")
        pause(user, "o")
        for place in places[:20]:
            user.write("o", place, pattern(9, 8))
        assert user.read("s", 0, LENGTH) == pattern(1, LENGTH)
        drop(user, "s", "o")


def abandon(kernel: KernelEngine, steps: int) -> None:
    """Run the userspace engine in a process that ends in the middle of its writes."""
    pid = os.fork()
    if not pid:
        failed = 1
        try:
            user = UserEngine(kernel=kernel)
            user.create("o", f"0 {LENGTH} snapshot-origin @A")
            user.create("s", f"0 {LENGTH} snapshot @A @B P 8")
            pause(user, "o")
            memory = Memory(1)
            device, done = user.open("o"), list[Io]()
            for place in random.Random(steps).sample(range(0, LENGTH, 8), 64):
                region = IoRegion(device, place, 8)
                user.reactor.submit(Io(Op.WRITE, region, memory, [(0, 4096)], done.append))
            for _ in range(steps):
                user.reactor.step(0.001)
            failed = 0
        finally:
            os._exit(failed)
    assert os.waitpid(pid, 0)[1] == 0
    # A ring is torn down after its process has ended, and has the disks until then.
    for disk in "AB":
        kernel.wait(lambda: is_free(kernel.path(disk)), f"disk {disk} to be free")  # noqa: B023


def is_free(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_EXCL))
    except OSError as error:
        if error.errno == errno.EBUSY:
            return False
        raise
    return True


def test_an_engine_that_was_cut_off(kernel: KernelEngine) -> None:
    take(kernel)
    drop(kernel, "s", "o")
    counts = []
    for steps in (0, 1, 2, 4, 8, 16, 32, 200):
        abandon(kernel, steps)
        kernel.create("o", f"0 {LENGTH} snapshot-origin @A")
        kernel.create("s", f"0 {LENGTH} snapshot @A @B P 8")
        pause(kernel, "o")
        counts.append(len(kernel.exceptions("B")))
        assert kernel.status("s").endswith(f"/{SECTORS} {16 if counts[-1] < 256 else 24}")
        kernel.write("o", 8 * steps, pattern(7, 8))
        assert kernel.read("s", 0, LENGTH) == pattern(1, LENGTH)
        drop(kernel, "s", "o")
    assert counts[-1] > counts[0]
