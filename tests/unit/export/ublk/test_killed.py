"""What a killed device server's ublk devices become: the next server's, or nothing."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dmcopy.export.nodes import Nodes
from dmcopy.io import Reactor, ublk
from dmcopy.io.simulated import SimulatedDisk
from dmcopy.ledger import Ledger, LedgerEntry
from dmcopy.mapper.reap import Reaper
from tests.unit.export.ublk.driver import READ, WRITE, Driver, result


class NoDevices:
    """A mapper that has none."""

    def ls(self) -> list[Any]:
        return []


pytestmark = pytest.mark.usefixtures("driver")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver that is played is this machine's."""
    monkeypatch.setenv("DMCOPY_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr("dmcopy.export.ublk.devices.UblkDevices.why_not", lambda: "")
    monkeypatch.setattr("dmcopy.io.ublk.node", lambda number: str(tmp_path / f"ublkc{number}"))


def test_a_node_is_taken_over_with_its_link(
    reactor: Reactor, driver: Driver, ledger: Ledger, disk: SimulatedDisk, tmp_path: Path
) -> None:
    link = tmp_path / "dev/data"
    first = Nodes(reactor, ledger)
    first.add("data", disk)
    mark = first.mark("data")
    assert mark == f"{driver.devices[0].mark:016x}"
    assert os.readlink(link) == str(tmp_path / "ublkc0")
    asked = driver.ask(WRITE, 0, 1, b"\xcc" * 512)
    first.let_go()
    second = Nodes(reactor, ledger)
    second.add("data", disk, left=mark)
    assert os.readlink(link) == str(tmp_path / "ublkc0")
    assert second.mark("data") == mark
    assert result(reactor, driver, asked)[0] == 512
    second.remove("data")
    assert not driver.devices
    assert not os.path.lexists(link)


def test_what_is_let_go_is_not_removed_at_the_end(
    reactor: Reactor, driver: Driver, ledger: Ledger, disk: SimulatedDisk
) -> None:
    """As where another device of the same server cannot be had back."""
    nodes = Nodes(reactor, ledger)
    nodes.add("data", disk)
    nodes.let_go()
    nodes.close()
    assert driver.devices[0].state == ublk.QUIESCED
    assert [entry.kind for entry in ledger.entries()] == ["ublk"]


def left_by(pid: int, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the entries of a ledger be those of a process that has ended."""
    entries = ledger.entries()

    def others(_: Ledger) -> list[LedgerEntry]:
        return [replace(entry, owner=f"{pid} 1") for entry in entries]

    monkeypatch.setattr(Ledger, "entries", others)


def test_what_a_killed_server_has_left_is_removed(
    reactor: Reactor,
    driver: Driver,
    ledger: Ledger,
    disk: SimulatedDisk,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And nothing else, whatever number it has."""
    nodes = Nodes(reactor, ledger)
    nodes.add("data", disk)
    nodes.add("other", SimulatedDisk(8))
    other = driver.devices[1]
    other.mark ^= 1  # another program's, which has the number by now
    nodes.let_go()
    left_by(os.getpid(), ledger, monkeypatch)
    reaper = Reaper(NoDevices(), ledger, lambda one: one.kind == "ublk")  # type: ignore[arg-type]
    assert next(reaper.script()).startswith("rublk del -n ")
    done = reaper.run()
    assert [len(done.removed), len(done.vanished), done.left] == [1, 1, {}]
    assert list(driver.devices) == [1]


def test_what_another_server_has_taken_over_is_its(
    reactor: Reactor,
    driver: Driver,
    ledger: Ledger,
    disk: SimulatedDisk,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nodes = Nodes(reactor, ledger)
    nodes.add("data", disk)
    with monkeypatch.context() as patch:
        left_by(1, ledger, patch)
        done = Reaper(NoDevices(), ledger, lambda one: one.kind == "ublk").run()  # type: ignore[arg-type]
    assert [len(done.removed), len(done.vanished)] == [0, 1]
    assert result(reactor, driver, driver.ask(READ, 0, 1))[0] == 512
    nodes.close()
