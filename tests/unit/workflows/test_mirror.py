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
from .fake_mirrors import SECTORS, CrashingJournal, FakeMirrors


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither wait for this machine's disk nor look at its devices and processes."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr("dmcopy.block.content.describe", lambda _: "")
    monkeypatch.setattr("dmcopy.block.holders.who", lambda _: [])


def session(fake: FakeMirrors, journal: Journal | None = None) -> Session:
    if journal is None:
        journal = Journal(fake.folder / "journal")
    return Session(fake, journal)


def linear(fake: FakeMirrors) -> None:
    fake.create("home", Table.of(SECTORS, Linear(fake.disk("a"), 0)))
    fake.use("home")


def began(fake: FakeMirrors) -> FakeMirrors:
    linear(fake)
    return fake


def mirror(fake: FakeMirrors, log: bool = False, legs: str = "ab") -> None:
    options = MirrorOptions(log=fake.disk("log") if log else "core", new_log=True)
    paths = [fake.disk(leg) for leg in legs]
    session(fake).run(plan_from_legs(fake, "home", paths, options))
    fake.use("home")


def degraded(fake: FakeMirrors, log: bool = False, broken: str = "b", legs: str = "ab") -> None:
    mirror(fake, log, legs)
    fake.broken.add(str(fake.folder / broken))
    fake.write()
    assert fake.devices["home"].held


def make_from_device(fake: FakeMirrors) -> Plan:
    return plan_from_device(fake, "home", [fake.disk("new")], MirrorOptions())


def make_with_log(fake: FakeMirrors) -> Plan:
    return plan_from_device(fake, "home", [fake.disk("new")], MirrorOptions(log=fake.disk("log")))


def make_from_legs(fake: FakeMirrors) -> Plan:
    return plan_from_legs(fake, "home", [fake.disk("a"), fake.disk("b")], MirrorOptions())


@dataclass
class Case:
    before: Callable[[FakeMirrors], None]
    plan: Callable[[FakeMirrors], Plan]
    devices: set[str]


def replace(leg: str, *, dirty_only: bool = False, new: str = "") -> Callable[[FakeMirrors], Plan]:
    def plan(fake: FakeMirrors) -> Plan:
        path = str(fake.folder / new) if new else fake.disk("new")
        fake.broken.discard(path)
        return plan_replace(fake, "home", leg, path, dirty_only=dirty_only)

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


def broken_off(fake: FakeMirrors, case: Case, at: int, *, after: bool = False) -> bool:
    """Run a workflow with a crash at call `at` of it; return whether there was one."""
    case.before(fake)
    plan = case.plan(fake)
    fake.calls, fake.crash_at, fake.after = 0, at, after
    journal = CrashingJournal(fake.folder / "journal", fake)
    with contextlib.suppress(Crash):
        session(fake, journal).run(plan)
        return False
    fake.revive()
    return True


def check(fake: FakeMirrors, devices: set[str]) -> None:
    """Nothing is lost, suspended, loaded, left over or in the journal."""
    assert Journal(fake.folder / "journal").records() == []
    assert set(fake.devices) == devices
    for device in fake.devices.values():
        assert not device.suspended
        assert device.inactive is None
    if "home" not in fake.devices:
        return
    assert fake.read("home") >= fake.acknowledged
    assert fake.failed_writes == 0
    for _ in range(8):
        status = fake.status("home")
    table = fake.table("home")
    for line, one in zip(table, status, strict=True):
        if isinstance(line.target, Mirror) and one.status.in_sync:  # type: ignore[attr-defined]
            legs = fake.legs("home") if len(table.lines) == 1 else []
            assert all(value == fake.read("home") for value in legs)


@pytest.mark.parametrize("name", CASES)
def test_a_workflow_that_nothing_happens_to(name: str, tmp_path: Path) -> None:
    fake, case = FakeMirrors(tmp_path), CASES[name]
    assert not broken_off(fake, case, -1)
    check(fake, case.devices)
    if name != "fail":
        fake.write()
        assert fake.acknowledged == fake.written


@pytest.mark.parametrize("end", ["finish", "undo"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", CASES)
def test_a_crash_at_every_call(name: str, after: bool, end: str, tmp_path: Path) -> None:
    case, at = CASES[name], -1
    untouched = FakeMirrors(tmp_path)
    case.before(untouched)
    while True:
        at += 1
        folder = tmp_path / str(at)
        folder.mkdir()
        fake = FakeMirrors(folder)
        if not broken_off(fake, case, at, after=after):
            assert at > 2
            return
        fake.write()
        ended(fake, case, set(untouched.devices), end)


CHANGES: dict[str, Callable[[FakeMirrors], Plan]] = {
    "replace": replace("1"),
    "fail": lambda fake: plan_fail(fake, "home", "1"),
    "drop": lambda fake: plan_drop(fake, "home", "1"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("log", [False, True], ids=["core", "disk"])
def test_a_leg_that_fails_after_the_plan_was_made(change: str, log: bool, tmp_path: Path) -> None:
    """The plan trusts that leg, and it has missed a write by now: nothing is changed."""
    fake = FakeMirrors(tmp_path)
    mirror(fake, log, "abc")
    before = fake.table("home")
    plan = CHANGES[change](fake)
    fake.broken.add(str(fake.folder / "a"))
    with pytest.raises(PartialError, match=r"a write failed.*since this was asked for"):
        session(fake).run(plan)
    assert fake.table("home") == before
    assert set(fake.devices) == {"home"}
    check(fake, {"home"})


def ended(fake: FakeMirrors, case: Case, before: set[str], end: str) -> None:
    """End what a crash broke off, and look at what is left."""
    again = session(fake)
    record = again.interrupted("mirror", "home")
    if record is not None:
        advice = again.advice(record)
        assert "mirror finish home" in advice or "mirror undo home" in advice
        if end == "undo" and "mirror undo home" in advice:
            again.undo("mirror", "home")
            check(fake, before)
            return
        again.finish("mirror", "home")
        check(fake, case.devices)
        return
    check(fake, set(fake.devices))
    assert set(fake.devices) in (before, case.devices)
