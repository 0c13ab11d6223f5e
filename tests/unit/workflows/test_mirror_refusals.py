"""What the mirror workflows refuse before they change anything."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dmcopy.errors import (
    BusyError,
    DeadlineError,
    DmcopyError,
    MetadataError,
    PartialError,
    UsageError,
)
from dmcopy.ondisk.bitset import Bitset
from dmcopy.ondisk.mirror_log import MirrorLog
from dmcopy.table import Linear, Snapshot, Table
from dmcopy.workflows.journal import Journal
from dmcopy.workflows.mirror import Mirror
from dmcopy.workflows.mirror_change import plan_drop, plan_fail, plan_replace, plan_split
from dmcopy.workflows.mirror_make import MirrorOptions, plan_from_device, plan_from_legs
from dmcopy.workflows.mirror_move import plan_move
from dmcopy.workflows.mirror_resync import Resync, Waiter
from dmcopy.workflows.session import Session
from dmcopy.workflows.site import Site

from .fake_mirrors import SECTORS, FakeMirrors


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMirrors:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr("dmcopy.block.holders.who", lambda _: [])
    return FakeMirrors(tmp_path)


def session(fake: FakeMirrors) -> Session:
    return Session(fake, Journal(fake.folder / "journal"))


def make(fake: FakeMirrors, *legs: str, **options: object) -> None:
    plan_from_legs(fake, "home", legs, MirrorOptions(**options))  # type: ignore[arg-type]


def test_one_leg_or_ten(fake: FakeMirrors) -> None:
    legs = [fake.disk(f"leg{number}") for number in range(10)]
    with pytest.raises(UsageError, match="1 legs: give --leg 2 to 9 times"):
        make(fake, legs[0])
    with pytest.raises(UsageError, match="10 legs: give --leg 2 to 9 times"):
        make(fake, *legs)
    make(fake, *legs[:9])


def test_the_same_device_twice(fake: FakeMirrors) -> None:
    a, b = fake.disk("a"), fake.disk("b")
    link = fake.folder / "link"
    link.symlink_to(a)
    with pytest.raises(UsageError, match="would be two legs of one mirror"):
        make(fake, a, b, str(link))
    with pytest.raises(UsageError, match="would be both the log and a leg"):
        make(fake, a, b, log=str(link))
    fake.create("home", Table.of(SECTORS, Linear(a, 0)))
    with pytest.raises(UsageError, match="would be two legs of one mirror"):
        plan_from_device(fake, "home", [str(link)], MirrorOptions())


def test_legs_of_different_sizes(fake: FakeMirrors) -> None:
    legs = fake.disk("a"), fake.disk("b", SECTORS + 8)
    with pytest.raises(UsageError, match=rf"differ in size.*--size {SECTORS} uses the same part"):
        make(fake, *legs)
    make(fake, *legs, size=SECTORS)
    with pytest.raises(UsageError, match="the smallest leg has"):
        make(fake, *legs, size=SECTORS + 1)


def test_a_region_size_that_no_kernel_takes(fake: FakeMirrors) -> None:
    legs = fake.disk("a"), fake.disk("b")
    for size, rule in ((1000, "power of two"), (1, "at least|from 2"), (SECTORS * 2, "exceed")):
        with pytest.raises(UsageError, match=rule):
            make(fake, *legs, region_size=size)
    small = fake.disk("c", 100), fake.disk("d", 100)
    plan = plan_from_legs(fake, "home", small, MirrorOptions())
    assert "mirror core 2 64 sync" in plan.steps[0].table


def test_features_that_do_not_go_together(fake: FakeMirrors) -> None:
    legs = fake.disk("a"), fake.disk("b")
    with pytest.raises(UsageError, match="needs handle_errors"):
        make(fake, *legs, features=("keep_log",))
    with pytest.raises(UsageError, match="unknown"):
        make(fake, *legs, features=("handle_error",))


def test_a_log_that_is_too_small_or_is_in_the_way(fake: FakeMirrors) -> None:
    legs = fake.disk("a"), fake.disk("b")
    with pytest.raises(UsageError, match="needs 3: give a larger device"):
        make(fake, *legs, log=fake.disk("tiny", 2))
    log = Path(fake.disk("log", 64))
    clean = Bitset(4)
    clean.fill(0, 3, True)
    log.write_bytes(MirrorLog(clean).build().ljust(64 * 512, b"\0"))
    with pytest.raises(UsageError, match="a mirror of 4 regions, 3 of them clean: --reuse-log"):
        make(fake, *legs, log=str(log))
    make(fake, *legs, log=str(log), new_log=True)
    make(fake, *legs, log=str(log), reuse_log=True, region_size=1024)
    with pytest.raises(MetadataError, match="of 4 regions, and the mirror would have 8"):
        make(fake, *legs, log=str(log), reuse_log=True, region_size=512)
    with pytest.raises(MetadataError, match="no mirror log"):
        make(fake, *legs, log=fake.disk("empty", 64), reuse_log=True)
    with pytest.raises(UsageError, match="a log in memory is gone"):
        make(fake, *legs, reuse_log=True)


def used(fake: FakeMirrors, name: str) -> str:
    """Make a disk that is encrypted."""
    path = Path(fake.disk(name))
    with path.open("r+b") as disk:
        disk.write(b"LUKS\xba\xbe\0\1")
    return str(path)


def test_what_is_on_a_device_that_would_be_overwritten(fake: FakeMirrors) -> None:
    a, b, full = fake.disk("a"), fake.disk("b"), used(fake, "full")
    said = f"^{full} has crypto_LUKS on it: --force overwrites it$"
    with pytest.raises(UsageError, match=said):
        make(fake, a, full)
    with pytest.raises(UsageError, match=said):
        make(fake, a, b, log=full)
    with pytest.raises(UsageError, match=said):
        make(fake, a, b, log=full, new_log=True)  # that is about a log
    make(fake, a, full, force=True)
    make(fake, a, b, log=full, force=True)
    make(fake, full, b)  # the first is copied from
    make(fake, a, full, nosync=True)
    fake.create("home", Table.of(SECTORS, Linear(full, 0)))
    with pytest.raises(UsageError, match=said.replace("full", "other")):
        plan_from_device(fake, "home", [used(fake, "other")], MirrorOptions())
    with pytest.raises(UsageError, match=said.replace("full", "other")):
        plan_move(fake, "home", full, used(fake, "other"))
    plan_from_device(fake, "home", [b], MirrorOptions())
    plan_from_device(fake, "home", [used(fake, "other")], MirrorOptions(force=True))
    plan_move(fake, "home", full, used(fake, "other"), force=True)


def test_what_is_on_a_device_that_would_replace_a_leg(fake: FakeMirrors) -> None:
    mirror(fake)
    full = used(fake, "full")
    with pytest.raises(UsageError, match=f"^{full} has crypto_LUKS on it: --force"):
        plan_replace(fake, "home", "1", full)
    plan_replace(fake, "home", "1", full, force=True)
    plan_replace(fake, "home", "1", str(fake.folder / "b"))  # the leg itself


def test_what_is_in_use(fake: FakeMirrors, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = fake.disk("a"), fake.disk("b")
    monkeypatch.setattr("dmcopy.block.holders.who", lambda path: [Holding()] if path == b else [])
    with pytest.raises(BusyError, match="in use by the file system mounted on /srv"):
        make(fake, a, b)


class Holding:
    kind = "mount"

    def __str__(self) -> str:
        return "the file system mounted on /srv"


def test_a_device_that_cannot_become_a_mirror(fake: FakeMirrors) -> None:
    a, b = fake.disk("a"), fake.disk("b")
    with pytest.raises(UsageError, match="there is no mapped device home"):
        plan_from_device(fake, "home", [b], MirrorOptions())
    fake.create("snap", Table.of(SECTORS, Snapshot(a, b, "P", 8)))
    with pytest.raises(UsageError, match="snap has snapshot: only"):
        plan_from_device(fake, "snap", [fake.disk("c")], MirrorOptions())
    fake.create("home", Table.of(SECTORS, Linear(a, 0)))
    with pytest.raises(UsageError, match="a leg must not be smaller"):
        plan_from_device(fake, "home", [fake.disk("small", 8)], MirrorOptions())
    with pytest.raises(UsageError, match="are for mirrors made of legs"):
        plan_from_device(fake, "home", [b], MirrorOptions(nosync=True))
    with pytest.raises(UsageError, match="--from home"):
        make(fake, a, b)


def mirror(fake: FakeMirrors, legs: str = "ab") -> None:
    paths = [fake.disk(leg) for leg in legs]
    session(fake).run(plan_from_legs(fake, "home", paths, MirrorOptions()))
    fake.use("home")


def test_a_leg_by_number_path_or_name(fake: FakeMirrors) -> None:
    mirror(fake)
    found, devices = Mirror.read(fake, "home"), Site(fake)
    assert found.leg("1", devices) == found.leg(str(fake.folder / "b"), devices) == 1
    for word in ("2", "x", "/dev/none", "-1"):
        with pytest.raises(UsageError, match=f"no leg {word}; its legs are 0 /.*/a, 1 /"):
            found.leg(word, devices)
    fake.create("plain", Table.of(8, Linear(str(fake.folder / "a"), 0)))
    with pytest.raises(UsageError, match="plain is not a mirror: it has linear"):
        Mirror.read(fake, "plain")


def test_the_last_good_leg_is_not_taken_away(fake: FakeMirrors) -> None:
    mirror(fake)
    fake.broken.add(str(fake.folder / "b"))
    fake.write()
    new = fake.disk("new")
    calls: list[Callable[[], object]] = [
        lambda: plan_replace(fake, "home", "0", new),
        lambda: plan_drop(fake, "home", "0"),
    ]
    for call in calls:
        with pytest.raises(DmcopyError, match="without leg 0 no leg has all of the data"):
            call()
    with pytest.raises(PartialError, match=r"leg 1, /.*/b: a write failed.*replace home 1"):
        plan_split(fake, "home", "0", "copy")
    with pytest.raises(UsageError, match="has its log in memory"):
        plan_replace(fake, "home", "1", new, dirty_only=True)
    with pytest.raises(UsageError, match=r"home has /.*/a already"):
        plan_replace(fake, "home", "1", str(fake.folder / "a"))
    with pytest.raises(UsageError, match="must not be smaller"):
        plan_replace(fake, "home", "1", fake.disk("small", 8))


def test_two_failed_legs_of_three(fake: FakeMirrors) -> None:
    mirror(fake, "abc")
    fake.broken |= {str(fake.folder / "b"), str(fake.folder / "c")}
    fake.write()
    with pytest.raises(DmcopyError, match=r"leg 2, /.*/c, has failed as well.*split home 2 --drop"):
        plan_replace(fake, "home", "1", fake.disk("new"))
    for at in ("1", "2"):  # one after the other would be in each other's way
        plan = plan_drop(fake, "home", at)
        assert plan.steps[0].table == f"0 {SECTORS} linear {fake.folder / 'a'} 0"
    session(fake).run(plan)
    assert (fake.acknowledged, fake.failed_writes) == (fake.written, 0)


def test_the_only_leg_with_the_data_stays_while_the_others_are_copied_to(fake: FakeMirrors) -> None:
    plan = plan_from_legs(fake, "home", [fake.disk("a"), fake.disk("b")], MirrorOptions())
    session(fake).run(plan, wait=False)
    fake.use("home")
    with pytest.raises(DmcopyError, match=r"no leg has all of the data|the only one that has all"):
        plan_replace(fake, "home", "0", fake.disk("new"))
    with pytest.raises(DmcopyError, match="is no copy yet"):
        plan_split(fake, "home", "1", "copy")
    with pytest.raises(DmcopyError, match="would forget"):
        plan_fail(fake, "home", "1")
    session(fake).finish("mirror", "home")


def test_a_move_that_cannot_be(fake: FakeMirrors) -> None:
    a, b = fake.disk("a"), fake.disk("b")
    fake.create("home", Table.of(SECTORS, Linear(a, 0)))
    with pytest.raises(UsageError, match="no linear line on"):
        plan_move(fake, "home", b, fake.disk("c"))
    with pytest.raises(UsageError, match="is where the data is already"):
        plan_move(fake, "home", a, a)
    with pytest.raises(UsageError, match="the data would end at sector"):
        plan_move(fake, "home", a, b, start=8)


def test_a_move_takes_only_the_lines_on_that_disk(fake: FakeMirrors) -> None:
    a, b, new = (fake.disk(name) for name in ("a", "b", "new"))
    table = Table.read(f"0 1000 linear {a} 0\n1000 96 linear {b} 8\n1096 3000 linear {a} 1000")
    fake.create("home", table)
    fake.use("home")
    session(fake).run(plan_move(fake, "home", a, new, start=16))
    assert str(fake.table("home")).splitlines() == [
        f"0 1000 linear {new} 16",
        f"1000 96 linear {b} 8",
        f"1096 3000 linear {new} 1016",
    ]


def test_while_one_workflow_is_open_there_is_no_other(fake: FakeMirrors) -> None:
    plan = plan_from_legs(fake, "home", [fake.disk("a"), fake.disk("b")], MirrorOptions())
    one = session(fake)
    one.run(plan, wait=False)
    for _ in range(9):
        fake.status("home")
    split = plan_split(fake, "home", "1", "copy")
    with pytest.raises(BusyError, match="dmcopy mirror make home"):
        session(fake).run(split)
    one.finish("mirror", "home")
    with pytest.raises(DmcopyError, match="home has another table than"):  # made for another one
        session(fake).run(split)
    session(fake).run(plan_split(fake, "home", "1", "copy"))


def test_a_wait_tells_how_far_it_is_and_has_a_deadline(fake: FakeMirrors) -> None:
    plan = plan_from_legs(fake, "home", [fake.disk("a"), fake.disk("b")], MirrorOptions())
    session(fake).run(plan, wait=False)
    now = iter(range(100))
    seen: list[Resync] = []
    waiter = Waiter(fake, seen.append, clock=lambda: float(next(now)))
    with pytest.raises(DeadlineError, match="1 of 4 regions are in sync after 0 s; it continues"):
        waiter.wait("home", 0)
    waiter.wait("home", 60)
    assert [one.in_sync for one in seen] == [1, 2, 3, 4]
    assert seen[-1].sectors == seen[-1].total == SECTORS
    assert seen[2].rate > 0
    assert seen[2].seconds_left == (SECTORS - seen[2].sectors) / seen[2].rate
    session(fake).finish("mirror", "home")
