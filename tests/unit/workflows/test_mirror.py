"""Every mirror workflow, with a crash at every call, ended afterwards either way."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from dmcopy.errors import PartialError
from dmcopy.table import Linear, Mirror, Table
from dmcopy.workflows.journal import Journal
from dmcopy.workflows.mirror_change import plan_drop, plan_fail, plan_replace, plan_split
from dmcopy.workflows.mirror_end import plan_end
from dmcopy.workflows.mirror_make import MirrorOptions, plan_from_device, plan_from_legs
from dmcopy.workflows.mirror_move import plan_move
from dmcopy.workflows.record import Plan
from dmcopy.workflows.session import Session

from .fake import Crash
from .mirror_world import SECTORS, CrashingJournal, World


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither wait for this machine's disk nor look at its devices and processes."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr("dmcopy.block.content.describe", lambda _: "")
    monkeypatch.setattr("dmcopy.block.holders.who", lambda _: [])


def session(world: World, journal: Journal | None = None) -> Session:
    if journal is None:
        journal = Journal(world.folder / "journal")
    return Session(world, journal)


def linear(world: World) -> None:
    world.create("home", Table.of(SECTORS, Linear(world.disk("a"), 0)))
    world.use("home")


def began(world: World) -> World:
    linear(world)
    return world


def mirror(world: World, log: bool = False, legs: str = "ab") -> None:
    options = MirrorOptions(log=world.disk("log") if log else "core", new_log=True)
    paths = [world.disk(leg) for leg in legs]
    session(world).run(plan_from_legs(world, "home", paths, options))
    world.use("home")


def degraded(world: World, log: bool = False, broken: str = "b", legs: str = "ab") -> None:
    mirror(world, log, legs)
    world.broken.add(str(world.folder / broken))
    world.write()
    assert world.devices["home"].held


def make_from_device(world: World) -> Plan:
    return plan_from_device(world, "home", [world.disk("new")], MirrorOptions())


def make_with_log(world: World) -> Plan:
    return plan_from_device(
        world, "home", [world.disk("new")], MirrorOptions(log=world.disk("log"))
    )


def make_from_legs(world: World) -> Plan:
    return plan_from_legs(world, "home", [world.disk("a"), world.disk("b")], MirrorOptions())


@dataclass
class Case:
    before: Callable[[World], None]
    plan: Callable[[World], Plan]
    devices: set[str]


def replace(leg: str, *, dirty_only: bool = False, new: str = "") -> Callable[[World], Plan]:
    def plan(world: World) -> Plan:
        path = str(world.folder / new) if new else world.disk("new")
        world.broken.discard(path)
        return plan_replace(world, "home", leg, path, dirty_only=dirty_only)

    return plan


CASES = {
    "make from a device": Case(linear, make_from_device, {"home", "home_mimage_0"}),
    "make with a log": Case(linear, make_with_log, {"home", "home_mimage_0"}),
    "make from legs": Case(lambda _: None, make_from_legs, {"home"}),
    "replace the second": Case(degraded, replace("1"), {"home"}),
    "replace the first": Case(lambda w: degraded(w, broken="a"), replace("0"), {"home"}),
    "replace a good one": Case(mirror, replace("0"), {"home"}),
    "replace, with a log": Case(lambda w: degraded(w, True), replace("1"), {"home"}),
    "take back": Case(
        lambda w: degraded(w, True, "a"), replace("0", dirty_only=True, new="a"), {"home"}
    ),
    "fail": Case(mirror, lambda w: plan_fail(w, "home", "0"), {"home", "home_mimage_0"}),
    "drop": Case(degraded, lambda w: plan_drop(w, "home", "1"), {"home"}),
    "drop one of three": Case(
        lambda w: degraded(w, legs="abc"), lambda w: plan_drop(w, "home", "1"), {"home"}
    ),
    "end it": Case(
        lambda w: session(w).run(make_from_device(began(w))),
        lambda w: plan_end(w, "home"),
        {"home"},
    ),
    "end it on a leg": Case(degraded, lambda w: plan_end(w, "home", "0"), {"home"}),
    "split": Case(mirror, lambda w: plan_split(w, "home", "0", "copy"), {"home", "copy"}),
    "split one of three": Case(
        lambda w: mirror(w, legs="abc"),
        lambda w: plan_split(w, "home", "1", "copy"),
        {"home", "copy"},
    ),
    "move": Case(
        linear, lambda w: plan_move(w, "home", str(w.folder / "a"), w.disk("new")), {"home"}
    ),
}


def broken_off(world: World, case: Case, at: int, *, after: bool = False) -> bool:
    """Run a workflow with a crash at call `at` of it; return whether there was one."""
    case.before(world)
    plan = case.plan(world)
    world.calls, world.crash_at, world.after = 0, at, after
    journal = CrashingJournal(world.folder / "journal", world)
    with contextlib.suppress(Crash):
        session(world, journal).run(plan)
        return False
    world.revive()
    return True


def check(world: World, devices: set[str]) -> None:
    """Nothing is lost, suspended, loaded, left over or in the journal."""
    assert Journal(world.folder / "journal").records() == []
    assert set(world.devices) == devices
    for device in world.devices.values():
        assert not device.suspended
        assert device.inactive is None
    if "home" not in world.devices:
        return
    assert world.read("home") >= world.acknowledged
    assert world.failed_writes == 0
    for _ in range(8):
        status = world.status("home")
    table = world.table("home")
    for line, one in zip(table, status, strict=True):
        if isinstance(line.target, Mirror) and one.status.in_sync:  # type: ignore[attr-defined]
            legs = world.legs("home") if len(table.lines) == 1 else []
            assert all(value == world.read("home") for value in legs)


@pytest.mark.parametrize("name", CASES)
def test_a_workflow_that_nothing_happens_to(name: str, tmp_path: Path) -> None:
    world, case = World(tmp_path), CASES[name]
    assert not broken_off(world, case, -1)
    check(world, case.devices)
    if name != "fail":
        world.write()
        assert world.acknowledged == world.written


@pytest.mark.parametrize("end", ["finish", "undo"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", CASES)
def test_a_crash_at_every_call(name: str, after: bool, end: str, tmp_path: Path) -> None:
    case, at = CASES[name], -1
    untouched = World(tmp_path)
    case.before(untouched)
    while True:
        at += 1
        folder = tmp_path / str(at)
        folder.mkdir()
        world = World(folder)
        if not broken_off(world, case, at, after=after):
            assert at > 2
            return
        world.write()
        ended(world, case, set(untouched.devices), end)


CHANGES: dict[str, Callable[[World], Plan]] = {
    "replace": replace("1"),
    "fail": lambda world: plan_fail(world, "home", "1"),
    "drop": lambda world: plan_drop(world, "home", "1"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("log", [False, True], ids=["core", "disk"])
def test_a_leg_that_fails_after_the_plan_was_made(change: str, log: bool, tmp_path: Path) -> None:
    """The plan trusts that leg, and it has missed a write by now: nothing is changed."""
    world = World(tmp_path)
    mirror(world, log, "abc")
    before = world.table("home")
    plan = CHANGES[change](world)
    world.broken.add(str(world.folder / "a"))
    with pytest.raises(PartialError, match=r"a write failed.*since this was asked for"):
        session(world).run(plan)
    assert world.table("home") == before
    assert set(world.devices) == {"home"}
    check(world, {"home"})


def ended(world: World, case: Case, before: set[str], end: str) -> None:
    """End what a crash broke off, and look at what is left."""
    again = session(world)
    record = again.interrupted("mirror", "home")
    if record is not None:
        advice = again.advice(record)
        assert "mirror finish home" in advice or "mirror undo home" in advice
        if end == "undo" and "mirror undo home" in advice:
            again.undo("mirror", "home")
            check(world, before)
            return
        again.finish("mirror", "home")
        check(world, case.devices)
        return
    check(world, set(world.devices))
    assert set(world.devices) in (before, case.devices)
