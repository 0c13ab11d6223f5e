"""Trims and zeroes in pieces: hints that a device cannot take, zeroes that it has to be written."""

from __future__ import annotations

import errno

import pytest

from dmcopy.export.nbd import pieces
from dmcopy.export.nbd.pieces import Pieces
from dmcopy.io import Io, IoRegion, Op, Reactor
from dmcopy.io.simulated import SimulatedBackend, SimulatedDisk

SECTORS = 400


class Play:
    """A disk of ones, and what was asked of it."""

    def __init__(self) -> None:
        self.disk = SimulatedDisk(SECTORS)
        self.disk.load(b"\1" * (SECTORS << 9))
        self.reactor = Reactor(SimulatedBackend(1), stacked=True)
        self.asked: list[tuple[Op, int, int]] = []
        submit = self.reactor.submit

        def noted(io: Io) -> None:
            self.asked.append((io.op, io.sector, io.count))
            submit(io)

        self.reactor.submit = noted  # type: ignore[assignment]

    def run(self, op: Op, *, fua: bool = False) -> int:
        ended: list[int] = []
        region = IoRegion(self.disk, 50, 300)
        Pieces(self.reactor, op, region, ended.append, fua=fua).start()
        self.reactor.run_until(lambda: ended, 10, "the pieces")
        return ended[0]

    def zeroed(self) -> bytes:
        return self.disk.read(0, SECTORS)[::512]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "_SECTORS", {Op.WRITE: 200, Op.WRITE_ZEROES: 128, Op.DISCARD: 128})


GONE = b"\1" * 50 + bytes(300) + b"\1" * 50
ALL = b"\1" * SECTORS


@pytest.mark.parametrize(
    ("op", "counts"),
    [(Op.WRITE, [200, 100]), (Op.WRITE_ZEROES, [128, 128, 44]), (Op.DISCARD, [128, 128, 44])],
)
def test_a_range_is_done_piece_by_piece_and_no_more_than_it(op: Op, counts: list[int]) -> None:
    play = Play()
    assert play.run(op) == 0
    assert [count for _, _, count in play.asked] == counts
    assert play.zeroed() == GONE


def test_a_device_without_discards_has_nothing_to_do() -> None:
    play = Play()
    play.disk.fail(Op.DISCARD, 0, SECTORS, error=errno.EOPNOTSUPP)
    assert play.run(Op.DISCARD) == 0
    assert len(play.asked) == 1
    assert play.zeroed() == ALL


def test_a_device_that_cannot_zero_is_written_to() -> None:
    play = Play()
    play.disk.fail(Op.WRITE_ZEROES, 0, SECTORS, error=errno.EOPNOTSUPP)
    assert play.run(Op.WRITE_ZEROES) == 0
    assert [op for op, _, _ in play.asked] == [Op.WRITE_ZEROES, Op.WRITE, Op.WRITE]
    assert play.zeroed() == GONE


@pytest.mark.parametrize("op", [Op.WRITE, Op.WRITE_ZEROES, Op.DISCARD])
def test_an_error_ends_it_there(op: Op) -> None:
    play = Play()
    play.disk.fail(op, 260, 1, error=errno.ENOSPC)
    assert play.run(op, fua=True) == errno.ENOSPC
    assert play.asked[-1][0] == op
    assert play.zeroed()[:178] == GONE[:178]


def test_with_fua_it_is_durable_and_a_flush_can_fail() -> None:
    play = Play()
    assert play.run(Op.WRITE_ZEROES, fua=True) == 0
    assert play.asked[-1][0] == Op.FLUSH
    play.disk.fail(Op.FLUSH, 0, 0, error=errno.EIO)
    assert play.run(Op.WRITE_ZEROES, fua=True) == errno.EIO
