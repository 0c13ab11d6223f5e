"""A disk whose power can be cut, over simulated ones: what was flushed is there, the rest may be.

The model has of each sector all that was written since it was last made durable, in order: that, or
anything newer, may be there after a cut.
"""

from __future__ import annotations

import errno
import random
from pathlib import Path

import pytest

from dmcopy.export import volatile
from dmcopy.export.held import HeldWrites
from dmcopy.export.volatile import VolatileDisk
from dmcopy.export.write_log import WriteLog
from dmcopy.io import Io, IoRegion, Memory, Op, Reactor
from dmcopy.io.simulated import SimulatedBackend, SimulatedDisk
from dmcopy.ondisk.write_log import LogFlag, parse_entries
from tests.simulated.conftest import Seeds

SECTORS = 64


class Play:
    """One history: a disk, its cache, and the model."""

    def __init__(self, seed: int, block: int = 1) -> None:
        self.rng = random.Random(seed)
        self.block = block
        self.below = SimulatedDisk(SECTORS, logical_block_size=512 * block)
        self.reactor = Reactor(SimulatedBackend(seed), stacked=True)
        self.disk = VolatileDisk(self.below, self.reactor)
        self.may_be: list[list[int]] = [[0] for _ in range(SECTORS)]
        self.history: list[list[int]] = [[0] for _ in range(SECTORS)]
        self.gone = [0] * SECTORS
        self.value = 0
        self.left = 0

    def begin(self, op: Op, sector: int = 0, count: int = 0, *, fua: bool = False) -> Io:
        """Submit a request, with a value of its own; when it ends the model is told."""
        memory, extents = Memory(8), ((0, count << 9),)
        place = range(sector, sector + count)
        if op == Op.WRITE:
            self.value = self.value % 255 + 1
            memory.view[: count << 9] = bytes([self.value]) * (count << 9)
        value = self.value if op == Op.WRITE else 0
        if op in (Op.WRITE, Op.WRITE_ZEROES):
            for one in place:
                self.may_be[one].append(value)
                self.history[one].append(value)
        begun = [len(self.history[one]) - 1 for one in place]
        lengths = [len(versions) for versions in self.may_be]

        def ended(io: Io) -> None:
            self.left -= 1
            if io.error:
                return
            if op == Op.READ:
                # What was there, or was written meanwhile.
                for at, since in enumerate(begun):
                    assert memory.view[at << 9] in self.history[sector + at][since:]
            elif op == Op.FLUSH:
                self.durable(range(SECTORS), lengths)
            elif fua or op == Op.WRITE_ZEROES:
                self.durable(place, lengths)

        self.left += 1
        io = Io(op, IoRegion(self.disk, sector, count), memory, extents, ended, fua=fua)
        self.reactor.submit(io)
        return io

    def durable(self, place: range, lengths: list[int]) -> None:
        """Note that what was written to these sectors up to then is there; newer may be."""
        for one in place:
            done = max(0, lengths[one] - 1 - self.gone[one])
            del self.may_be[one][:done]
            self.gone[one] += done

    def batch(self) -> None:
        """Begin a few requests together, without reads beside zeroing."""
        self.gone = [0] * SECTORS
        ops = self.rng.choice(
            [
                [Op.WRITE, Op.WRITE, Op.WRITE, Op.READ, Op.FLUSH],
                [Op.WRITE, Op.WRITE_ZEROES, Op.FLUSH],
            ]
        )
        for _ in range(self.rng.randint(1, 8)):
            op = self.rng.choice(ops)
            if op == Op.FLUSH:
                self.begin(op)
                continue
            first = self.rng.randrange(0, SECTORS // self.block)
            count = self.rng.randint(1, min(64, SECTORS // self.block - first))
            fua = op == Op.WRITE and self.rng.random() < 0.2
            self.begin(op, first * self.block, count * self.block, fua=fua)

    def finish(self) -> None:
        self.reactor.run_until(lambda: not self.left, 10, "the requests")

    def cut(self, seed: int | None) -> bytes:
        """Cut the power; check and return what is left, a byte for each sector."""
        back: list[bool] = []
        flying = self.left
        self.disk.cut(seed, lambda: back.append(True))
        self.reactor.run_until(lambda: back, 10, "the power is back")
        self.finish()
        content = self.below.read(0, SECTORS)[::512]
        for value, versions in zip(content, self.may_be, strict=True):
            assert value in versions
        if seed is None and not flying:
            assert content == bytes(versions[0] for versions in self.may_be)
        for start in range(0, SECTORS, self.block):
            assert len(set(content[start : start + self.block])) == 1, "a block is torn"
        self.set(content)
        return content

    def set(self, content: bytes) -> None:
        """Have the model know what is there."""
        self.may_be = [[value] for value in content]
        self.history = [[value] for value in content]
        self.gone = [0] * SECTORS


@pytest.mark.parametrize("block", [1, 8])
def test_what_was_flushed_is_there_after_a_cut(seeds: Seeds, block: int) -> None:
    for seed in seeds(300):
        play = Play(seed, block)
        for _ in range(play.rng.randint(1, 6)):
            play.batch()
            if play.rng.random() < 0.8:
                play.finish()
            else:
                for _ in range(play.rng.randrange(20)):
                    play.reactor.step(1e-3)
                play.cut(play.rng.choice((None, seed)))
        play.finish()
        play.begin(Op.READ, 0, SECTORS)
        play.finish()


def test_a_cut_without_a_seed_loses_all_that_was_not_flushed(seeds: Seeds) -> None:
    for seed in seeds(100):
        play = Play(seed)
        for _ in range(4):
            play.batch()
            play.finish()
        play.cut(None)


def test_a_write_is_lost_kept_or_torn_as_the_seed_says() -> None:
    ends = set()
    for seed in range(60):
        held = HeldWrites(512)
        held.add(3, b"\1" * 1024)
        again = held.survivors(seed)
        assert again == held.survivors(seed)
        ends.add(tuple(sorted(again[0]) if again else ()))
    assert ends == {(), (3,), (4,), (3, 4)}


def test_one_seed_and_one_history_have_one_outcome() -> None:
    def outcome(seed: int) -> bytes:
        play = Play(3)
        for _ in range(5):
            play.begin(Op.WRITE, play.rng.randrange(32), 32)
        play.finish()
        return play.cut(seed)

    assert outcome(7) == outcome(7)
    assert len({outcome(seed) for seed in range(20)}) > 5


def test_a_cut_after_so_many_writes_and_at_a_flush() -> None:
    play = Play(1)
    lost: list[int] = []
    play.disk.power_lost = lambda: lost.append(play.disk.writes)
    play.disk.cut_after_writes = 3
    first = [play.begin(Op.WRITE, number, 1) for number in range(5)]
    play.finish()
    assert [io.error for io in first] == [0, 0, errno.EIO, errno.EIO, errno.EIO]
    play.reactor.run_until(lambda: not play.disk._off, 10, "the power is back")
    assert lost == [3]
    assert play.below.read(0, SECTORS) == bytes(SECTORS << 9)
    play.set(bytes(SECTORS))
    play.disk.cut_at_flush, play.disk.seed = 2, 5
    second = [play.begin(op, 1, 1 if op else 0) for op in (Op.WRITE, Op.FLUSH, Op.FLUSH, Op.WRITE)]
    play.finish()
    assert [io.error for io in second][1:] == [0, errno.EIO, errno.EIO]
    play.reactor.run_until(lambda: not play.disk._off, 10, "the power is back")
    assert len(lost) == 2
    assert play.begin(Op.FLUSH).error == 0


def test_what_is_zeroed_is_gone_at_once(seeds: Seeds) -> None:
    for seed in seeds(20):
        play = Play(seed)
        play.below.load(b"\xff" * (SECTORS << 9))
        play.set(b"\xff" * SECTORS)
        play.begin(Op.WRITE, 0, 32)
        play.finish()
        play.begin(Op.WRITE_ZEROES, 8, 48)
        play.finish()
        assert play.cut(None) == b"\xff" * 8 + bytes(48) + b"\xff" * 8


def test_a_full_cache_goes_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volatile, "LIMIT_BYTES", 4 * 512)
    play = Play(1)
    io = play.begin(Op.WRITE, 0, 8)
    play.finish()
    assert io.error == 0
    assert play.below.read(0, 8)[::512] == b"\1" * 8
    assert play.disk._held.bytes == 0


def test_an_error_below_is_the_flushs_and_nothing_is_lost_by_it() -> None:
    play = Play(1)
    play.begin(Op.WRITE, 0, 8)
    play.finish()
    play.below.fail(Op.WRITE, 4, 1, error=errno.ENOSPC, times=1)
    flush = play.begin(Op.FLUSH)
    play.finish()
    assert flush.error == errno.ENOSPC
    play.begin(Op.READ, 0, 8)
    again = play.begin(Op.FLUSH)
    play.finish()
    assert again.error == 0
    assert play.below.read(0, 8)[::512] == b"\1" * 8


def test_the_log_is_what_became_durable(seeds: Seeds, tmp_path: Path) -> None:
    """Played up to its end it gives the disk, and up to each flush what was there then."""
    for seed in seeds(40):
        path = tmp_path / f"log{seed}"
        play = Play(seed)
        play.disk.log = log = WriteLog(str(path), 512)
        for _ in range(5):
            play.batch()
            play.finish()
            if play.rng.random() < 0.3:
                play.cut(play.rng.randrange(100))
        play.begin(Op.FLUSH)
        play.finish()
        log.close()
        data = path.read_bytes()
        replayed = bytearray(SECTORS << 9)
        entries = list(parse_entries(data))
        for entry, at in entries:
            length = entry.nr_sectors << 9
            content = bytes(length) if entry.flags & LogFlag.DISCARD else data[at : at + length]
            replayed[entry.sector << 9 : (entry.sector << 9) + length] = content
        assert replayed == play.below.read(0, SECTORS)
        assert entries[-1][0].text == b"dm-log-writes-end"
