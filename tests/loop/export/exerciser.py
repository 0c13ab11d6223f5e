"""Works on one file of a file system as fsx does, and holds all that it reads to a model in memory.

    python -m tests.loop.export.exerciser FILE --seed 7 --operations 1000

One seed is one history: reads and writes, buffered, direct and by mmap(2), truncations, holes,
zeroed, collapsed, inserted and copied ranges, syncs, and the page cache dropped, so that what is
compared comes from the device. At the end it prints the file's SHA-256 and the operations that the
file system does not have, as JSON. The first byte that differs ends it with 1 and one sentence.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import mmap
import os
import random
from collections import deque
from typing import Final

from dmcopy.block.syscalls import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, fallocate

MOST: Final = 512 << 10
"""The longest that the file becomes, in bytes."""
BLOCK: Final = 4096
_LONGEST: Final = 64 << 10
_COLLAPSE, _ZERO, _INSERT = 0x08, 0x10, 0x20  # FALLOC_FL_… in include/uapi/linux/falloc.h
_WEIGHTS: Final = {
    "read": 5,
    "write": 8,
    "direct_read": 3,
    "direct_write": 4,
    "mapped_read": 2,
    "mapped_write": 4,
    "truncate": 2,
    "punch": 3,
    "zero": 3,
    "allocate": 2,
    "collapse": 2,
    "insert": 2,
    "copy": 3,
    "sync": 1,
    "forget": 1,
}


class DifferenceError(Exception):
    """The file does not hold what was written to it."""


class Exerciser:
    """A file at `path`, made anew, and what it must hold. `run` may be called more than once."""

    def __init__(self, path: str, seed: int) -> None:
        self.model = bytearray()
        self.left_out: set[str] = set()
        self.seed = seed
        self._rng = random.Random(seed)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            self._direct = os.open(path, os.O_RDWR | os.O_DIRECT)
        except OSError:  # EINVAL on tmpfs before 6.6
            self._direct = os.open(path, os.O_RDWR)
            self.left_out |= {"direct_read", "direct_write"}
        self._memory = memoryview(mmap.mmap(-1, _LONGEST))
        self._done: deque[str] = deque(maxlen=6)

    def run(self, operations: int) -> None:
        """Do that many; then compare the whole file with the device. Raises DifferenceError."""
        names, weights = list(_WEIGHTS), list(_WEIGHTS.values())
        for name in self._rng.choices(names, weights, k=operations):
            if name in self.left_out:
                continue
            try:
                getattr(self, f"_{name}")()
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
                self.left_out.add(name)
        self._forget()

    def close(self) -> None:
        os.close(self._fd)
        os.close(self._direct)

    def _note(self, what: str, at: int, length: int) -> None:
        self._done.append(f"{what} {at}+{length}")

    def _compare(self, at: int, got: bytes | memoryview) -> None:
        want = memoryview(self.model)[at : at + len(got)]
        if want == got:
            return
        length = min(len(want), len(got))
        place = next((i for i in range(length) if want[i] != got[i]), length)
        shown = [f"{side[place]:#04x}" if place < len(side) else "the end" for side in (got, want)]
        raise DifferenceError(
            f"seed {self.seed}: byte {at + place} is {shown[0]}, not {shown[1]}, "
            f"after {', '.join(self._done)}"
        )

    def _range(self, end: int, block: int = 1) -> tuple[int, int]:
        """Return a place and a length of at least one block; they end before `end`."""
        grain = max(block, self._rng.choice((1, 512, BLOCK)))
        if end < grain:
            grain = block
        at = self._rng.randrange(max(end // grain, 1)) * grain
        length = self._rng.randrange(1, _LONGEST // grain + 1) * grain
        return at, max(min(length, (end - at) // grain * grain), min(grain, end - at))

    def _put(self, at: int, data: bytes | bytearray | memoryview) -> None:
        self.model.extend(bytes(max(at - len(self.model), 0)))
        self.model[at : at + len(data)] = data

    def _blank(self, at: int, length: int, *, grows: bool) -> None:
        end = at + length if grows else min(at + length, len(self.model))
        if end > at:
            self._put(at, bytes(end - at))

    def _read(self) -> None:
        at, length = self._range(MOST)
        self._note("read", at, length)
        got = os.pread(self._fd, length, at)
        self._compare(at, got)
        if len(got) != len(self.model[at : at + length]):
            raise DifferenceError(f"seed {self.seed}: {len(got)} bytes were read of {at}+{length}")

    def _write(self) -> None:
        at, length = self._range(MOST)
        self._note("write", at, length)
        data = self._rng.randbytes(length)
        assert os.pwrite(self._fd, data, at) == length
        self._put(at, data)

    def _direct_read(self) -> None:
        at, length = self._range(MOST, BLOCK)
        self._note("direct read", at, length)
        got = os.preadv(self._direct, [self._memory[:length]], at)
        self._compare(at, self._memory[:got])

    def _direct_write(self) -> None:
        at, length = self._range(MOST, BLOCK)
        self._note("direct write", at, length)
        self._memory[:length] = self._rng.randbytes(length)
        assert os.pwritev(self._direct, [self._memory[:length]], at) == length
        self._put(at, self._memory[:length])

    def _mapped_read(self) -> None:
        if self.model:
            at, length = self._range(len(self.model))
            self._note("mapped read", at, length)
            with mmap.mmap(self._fd, len(self.model), prot=mmap.PROT_READ) as mapped:
                self._compare(at, mapped[at : at + length])

    def _mapped_write(self) -> None:
        if self.model:
            at, length = self._range(len(self.model))
            self._note("mapped write", at, length)
            data = self._rng.randbytes(length)
            with mmap.mmap(self._fd, len(self.model)) as mapped:
                mapped[at : at + length] = data
                if self._rng.random() < 0.3:
                    mapped.flush()
            self._put(at, data)

    def _truncate(self) -> None:
        size = self._range(MOST)[0]
        self._note("truncate to", size, 0)
        os.ftruncate(self._fd, size)
        del self.model[size:]
        self._blank(len(self.model), size - len(self.model), grows=True)

    def _punch(self) -> None:
        at, length = self._range(MOST)
        self._note("punch", at, length)
        fallocate(self._fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, length)
        self._blank(at, length, grows=False)

    def _zero(self) -> None:
        at, length = self._range(MOST)
        grows = self._rng.random() < 0.5
        self._note("zero", at, length)
        fallocate(self._fd, _ZERO | (0 if grows else FALLOC_FL_KEEP_SIZE), at, length)
        self._blank(at, length, grows=grows)

    def _allocate(self) -> None:
        at, length = self._range(MOST)
        grows = self._rng.random() < 0.5
        self._note("allocate", at, length)
        fallocate(self._fd, 0 if grows else FALLOC_FL_KEEP_SIZE, at, length)
        if grows:
            self._blank(len(self.model), at + length - len(self.model), grows=True)

    def _collapse(self) -> None:
        at, length = self._range(len(self.model), BLOCK)
        if at + length < len(self.model):
            self._note("collapse", at, length)
            fallocate(self._fd, _COLLAPSE, at, length)
            del self.model[at : at + length]

    def _insert(self) -> None:
        at, length = self._range(len(self.model), BLOCK)
        if at < len(self.model) <= MOST - length:
            self._note("insert", at, length)
            fallocate(self._fd, _INSERT, at, length)
            self.model[at:at] = bytes(length)

    def _copy(self) -> None:
        source, length = self._range(max(len(self.model), 1))
        to = self._range(MOST)[0]
        length = min(length, len(self.model) - source, MOST - to, abs(to - source))
        self._note(f"copy to {to} from", source, length)
        while length > 0:
            got = os.copy_file_range(self._fd, self._fd, length, source, to)
            assert 0 < got <= length
            self._put(to, self.model[source : source + got])
            source, to, length = source + got, to + got, length - got

    def _sync(self) -> None:
        self._note("sync", 0, 0)
        self._rng.choice((os.fsync, os.fdatasync))(self._fd)

    def _forget(self) -> None:
        """Write out and drop what the page cache has, and compare all."""
        self._note("compare", 0, len(self.model))
        os.fsync(self._fd)
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        if (size := os.fstat(self._fd).st_size) != len(self.model):
            raise DifferenceError(f"seed {self.seed}: {size} bytes long, not {len(self.model)}")
        self._compare(0, os.pread(self._fd, MOST, 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--operations", type=int, default=1000)
    args = parser.parse_args()
    exerciser = Exerciser(args.file, args.seed)
    try:
        exerciser.run(args.operations)
    except DifferenceError as difference:
        raise SystemExit(f"{args.file}: {difference}") from None
    digest = hashlib.sha256(exerciser.model).hexdigest()
    print(json.dumps({"sha256": digest, "left_out": sorted(exerciser.left_out)}))


if __name__ == "__main__":
    main()
