"""What a copy says at its end: of each destination what happened, and how much it has."""

from __future__ import annotations

import errno
from collections.abc import Sequence

import pytest

from dmcopy.cli.summary import print_summary
from dmcopy.errors import ExitCode
from dmcopy.io import IoRegion, Op, Reactor
from dmcopy.io.simulated import SimulatedBackend, SimulatedDisk
from dmcopy.kcopyd import Client
from dmcopy.transfer import Transfer, TransferOutcome, TransferPlan
from dmcopy.transfer.settings import Settings

SECTORS = 2048


def copied(full_at: Sequence[int]) -> TransferOutcome:
    """Return what comes of a copy to disks that take no more from these sectors on."""
    source, *dests = (SimulatedDisk(SECTORS, f"disk{at}") for at in range(1 + len(full_at)))
    for dest, at in zip(dests, full_at, strict=True):
        if at < SECTORS:
            dest.fail(Op.WRITE, at, SECTORS - at, error=errno.ENOSPC)
    with Reactor(SimulatedBackend(1)) as reactor:
        client = Client(64, reactor=reactor, depth=1)
        regions = [IoRegion(disk, 0, SECTORS) for disk in (source, *dests)]
        transfer = Transfer(client, TransferPlan(regions[0], tuple(regions[1:]), 64), outstanding=1)
        transfer.run()
        client.destroy()
    return TransferOutcome(transfer, Settings("simulated", 1, 64, 64))


@pytest.mark.parametrize("saved", ["", "m"])
def test_disks_that_are_full(capsys: pytest.CaptureFixture[str], saved: str) -> None:
    outcome = copied([512, 0, 1024])
    outcome.map_path = saved
    assert outcome.exit_code == ExitCode.FAILED
    print_summary(outcome)
    out, err = capsys.readouterr()
    for line in (
        "disk1: FAILED (write: ENOSPC), 256 of 1024 KiB written\n",
        "disk2: FAILED (write: ENOSPC), 0 of 1 MiB written\n",
        "disk3: FAILED (write: ENOSPC), 512 of 1024 KiB written\n",
    ):
        assert line in out
    assert "KiB/s" not in out
    again = "; the same command with --map m resumes from there" if saved else ""
    assert err == f"dmcopy: no destination has all of it, see above how much each has{again}\n"


def test_nothing_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(copied([0, 0]))
    assert capsys.readouterr().err == "dmcopy: nothing was written to any destination\n"


def test_some(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = copied([512, SECTORS])
    assert outcome.exit_code == ExitCode.PARTIAL
    print_summary(outcome)
    out, err = capsys.readouterr()
    assert "disk1: FAILED (write: ENOSPC), 256 of 1024 KiB written\n" in out
    assert "disk2: ok, 1 MiB written\n" in out
    assert err == "dmcopy: some destination or block failed; the rest is good\n"
