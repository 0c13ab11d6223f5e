"""Mirrors under a mounted file system that is being written to: broken, repaired, split, moved."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from dmcopy.errors import BusyError, DeviceError, PartialError
from dmcopy.table import Linear, Mirror, Table
from dmcopy.workflows.mirror import Mirror as State
from dmcopy.workflows.mirror_change import plan_drop, plan_fail, plan_replace, plan_split
from dmcopy.workflows.mirror_end import plan_end
from dmcopy.workflows.mirror_make import MirrorOptions, plan_from_device, plan_from_legs
from dmcopy.workflows.mirror_move import plan_move
from dmcopy.workflows.mirror_resync import Waiter
from dmcopy.workflows.record import Plan

from .mirror_rig import (
    DEADLINE,
    SECTORS,
    Load,
    Rig,
    check_file_system,
    check_files,
    content,
    eventually,
)

pytestmark = [pytest.mark.kernel(either=True, cost=7), pytest.mark.timeout(900)]


def state(rig: Rig) -> State:
    return State.read(rig.mapper, "home")


def test_one_leg_after_the_other_is_pulled_and_replaced_under_load(rig: Rig) -> None:
    rig.home()
    load = Load(Path(rig.mounted))
    load.goes_on()
    session, mapper = rig.session(), rig.mapper
    session.run(
        plan_from_device(mapper, "home", [rig.b], MirrorOptions(log=rig.c)), timeout=DEADLINE
    )
    assert mapper.table("home").lines[0].target.log.sync is None  # type: ignore[attr-defined]
    load.goes_on()
    for leg, new in (("1", rig.d), ("0", rig.b)):
        session.run(plan_fail(mapper, "home", leg))
        eventually(lambda at=int(leg): at in state(rig).failed, "the leg fails")  # type: ignore[misc]
        with pytest.raises(PartialError, match=f"mirror replace home {leg} NEWDEV"):
            Waiter(mapper).wait("home", DEADLINE)
        written = load.count
        session.run(plan_replace(mapper, "home", leg, new, force=True), timeout=DEADLINE)
        assert load.count >= written
        load.goes_on()
    sums = rig.ended(load)
    eventually(lambda: state(rig).in_sync, "all is in sync")
    assert [info.name for info in mapper.ls()] == ["home"]  # the hidden ones are gone
    rig.legs_agree()
    session.run(plan_drop(mapper, "home", "0"))
    check_file_system("/dev/mapper/home")
    rig.mount()
    check_files(Path(rig.mounted), sums)
    rig.umount()
    rig.remove("home")


def test_a_split_leg_is_a_clean_copy(rig: Rig) -> None:
    rig.home()
    (Path(rig.mounted) / "early").write_text("early")
    load = Load(Path(rig.mounted))
    session, mapper = rig.session(), rig.mapper
    session.run(plan_from_device(mapper, "home", [rig.b, rig.c], MirrorOptions()), timeout=DEADLINE)
    load.goes_on()
    session.run(plan_split(mapper, "home", "0", "copy"))
    check_file_system("/dev/mapper/copy")
    load.goes_on()
    session.run(plan_split(mapper, "home", rig.b, "other"))
    check_file_system("/dev/mapper/other")
    load.goes_on()
    rig.ended(load)
    names = {info.name: str(mapper.table(info.name).lines[0].target_name) for info in mapper.ls()}
    assert names == {"copy": "linear", "home": "linear", "other": "linear"}
    rig.remove("home", "copy", "other")


def test_a_mirror_is_ended_under_load(rig: Rig) -> None:
    rig.home()
    before = rig.mapper.table("home")
    load = Load(Path(rig.mounted))
    session, mapper = rig.session(), rig.mapper
    session.run(
        plan_from_device(mapper, "home", [rig.b], MirrorOptions(log=rig.c)), timeout=DEADLINE
    )
    load.goes_on()
    session.run(plan_end(mapper, "home"))
    assert [(info.name, mapper.table(info.name)) for info in mapper.ls()] == [("home", before)]
    load.goes_on()
    rig.ended(load)
    rig.remove("home")

    options = MirrorOptions(log=rig.c, new_log=True, force=True)
    session.run(plan_from_legs(mapper, "home", [rig.a, rig.b], options), timeout=DEADLINE)
    rig.mount()
    with pytest.raises(BusyError, match="mirror drop home --keep 0"):
        plan_end(mapper, "home")
    load = Load(Path(rig.mounted))
    session.run(plan_fail(mapper, "home", "1"))
    eventually(lambda: bool(state(rig).failed), "the leg is seen to fail a write")
    session.run(plan_end(mapper, "home", "0"))
    load.goes_on()
    rig.ended(load)
    rig.remove("home")
    session.run(plan_from_legs(mapper, "home", [rig.a, rig.b], options), timeout=DEADLINE)
    session.run(plan_end(mapper, "home"))
    assert mapper.ls() == []
    assert content(rig.a) == content(rig.b)


def test_a_mirror_whose_devices_were_removed_by_hand(rig: Rig) -> None:
    """A resync is waited for that cannot be ended; finish and undo look at what is there."""
    mapper = rig.mapper
    for end in ("finish", "undo"):
        mapper.create("home", Table.of(SECTORS, Linear(rig.a, 0)))
        plan = plan_from_device(mapper, "home", [rig.b], MirrorOptions(force=True))
        killed(rig, plan, "resync")
        mapper.remove("home")
        if end == "finish":
            with pytest.raises(DeviceError, match="no mapped device") as caught:
                rig.session().finish("mirror", "home")
            assert "was taken back" in caught.value.__notes__[-1]
        else:
            rig.session().undo("mirror", "home")
        assert (mapper.ls(), rig.journal.records()) == ([], [])


def test_a_move_under_load(rig: Rig) -> None:
    rig.home()
    load = Load(Path(rig.mounted))
    rig.session().run(plan_move(rig.mapper, "home", rig.a, rig.d), timeout=DEADLINE)
    load.goes_on()
    rig.ended(load)
    (line,) = rig.mapper.table("home")
    assert isinstance(line.target, Linear)
    assert Path(f"/dev/block/{line.target.device}").resolve() == Path(rig.d)
    rig.remove("home")


def test_a_move_to_a_bad_disk_is_taken_back(rig: Rig) -> None:
    rig.home()
    load = Load(Path(rig.mounted))
    half = Table.read(f"0 8192 linear {rig.d} 0\n8192 8192 error")
    with rig.mapper.device("bad", half) as bad:
        before = rig.mapper.table("home")
        with pytest.raises(PartialError, match="leg 1"):
            rig.session().run(plan_move(rig.mapper, "home", rig.a, bad.path), timeout=DEADLINE)
        assert rig.mapper.table("home") == before
    load.goes_on()
    rig.ended(load)
    rig.remove("home")


def make(rig: Rig) -> Plan:
    return plan_from_device(rig.mapper, "home", [rig.b], MirrorOptions(log=rig.c, new_log=True))


def replace(rig: Rig) -> Plan:
    return plan_replace(rig.mapper, "home", "1", rig.d)


def move(rig: Rig) -> Plan:
    return plan_move(rig.mapper, "home", rig.a, rig.d)


SHORT = {
    "make, suspend, finish",
    "make, resync, undo",
    "replace, load, finish",
    "move, resync, finish",
}
KILLS = [
    pytest.param(plan, last, end, id=name)
    for plan in (make, replace, move)
    for last in ("load", "suspend", "resync")
    for end in ("finish", "undo")
    if (name := f"{plan.__name__}, {last}, {end}") in SHORT
    or os.environ.get("DMCOPY_TEST") == "long"
]


@pytest.mark.parametrize(("plan", "last", "end"), KILLS)
def test_kill_9_in_the_middle(rig: Rig, plan: Callable[[Rig], Plan], last: str, end: str) -> None:
    """The process is killed right after a call, and leaves a loaded table or a suspended device."""
    rig.home()
    load = Load(Path(rig.mounted))
    if plan is replace:
        rig.session().run(make(rig), timeout=DEADLINE)
        rig.session().run(plan_fail(rig.mapper, "home", "1"))
    before = rig.mapper.table("home")
    load_count = load.count
    killed(rig, plan(rig), last)
    record = rig.session().interrupted("mirror", "home")
    assert record is not None
    assert rig.mapper.info("home").suspended == (last == "suspend")
    assert "mirror undo home" in rig.session().advice(record)
    if end == "finish":
        rig.session().finish("mirror", "home", timeout=DEADLINE)
    else:
        rig.session().undo("mirror", "home")
        if plan is not replace:
            assert rig.mapper.table("home") == before
    if plan is not replace or end == "finish":
        load.goes_on()
    else:  # the failed leg is back, and so are the writes that are held for it
        rig.session().run(plan_drop(rig.mapper, "home", failed_leg(rig)))
    assert load.count >= load_count
    rig.ended(load)
    if isinstance(rig.mapper.table("home").lines[0].target, Mirror):
        eventually(lambda: state(rig).in_sync, "all is in sync")
        rig.legs_agree()
    rig.remove(*sorted((info.name for info in rig.mapper.ls()), key=lambda name: "mimage" in name))


def failed_leg(rig: Rig) -> str:
    found: list[int] = []
    eventually(lambda: bool(found.extend(state(rig).failed) or found), "the leg fails again")
    return str(found[0])


def killed(rig: Rig, plan: Plan, last: str) -> None:
    """Run a plan in a process that is killed after its first call `last`, or in the resync."""
    child = os.fork()
    if not child:
        try:
            rig.journal.owner = ""  # of the parent, which lives
            rig.journal.__init__(rig.journal.folder)  # type: ignore[misc]
            if last != "resync":
                call = getattr(rig.mapper, last)

                def called(*args: object, **options: object) -> None:
                    call(*args, **options)
                    os.kill(os.getpid(), signal.SIGKILL)

                setattr(rig.mapper, last, called)
            rig.session(lambda _: os.kill(os.getpid(), signal.SIGKILL)).run(plan)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "it was not killed"


def test_legs_that_were_a_mirror_go_on_with_their_log(rig: Rig) -> None:
    mapper, session = rig.mapper, rig.session()
    session.run(
        plan_from_legs(mapper, "home", [rig.a, rig.b], MirrorOptions(log=rig.c)), timeout=DEADLINE
    )
    rig.remove("home")
    with open(rig.a, "r+b", buffering=0) as disk:  # behind its back: no log knows
        disk.write(os.urandom(4096))
        os.fsync(disk.fileno())
    options = MirrorOptions(log=rig.c, reuse_log=True)
    session.run(plan_from_legs(mapper, "home", [rig.a, rig.b], options), timeout=DEADLINE)
    with pytest.raises(AssertionError):
        rig.legs_agree()  # nothing was dirty, so nothing was copied
    rig.remove("home")
    options = MirrorOptions(log=rig.c, new_log=True)
    session.run(plan_from_legs(mapper, "home", [rig.a, rig.b], options), timeout=DEADLINE)
    rig.legs_agree()
    rig.remove("home")
