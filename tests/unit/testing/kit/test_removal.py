"""How long what a test has used is waited for: as its users say."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dmcopy.block import holders, processes
from dmcopy.block.holders import Holder
from dmcopy.errors import BusyError
from dmcopy.testing.kit import removal
from dmcopy.testing.kit.removal import patiently

NODE = "/dev/dm-7"
LOOKS = Holder("process", "(udev-worker)", pid=70)
STAYS = Holder("process", "sleep", pid=71)
MOUNT = Holder("mount", "/mnt")


class Busy:
    """A device with users, which let go at the last of `tries`. Time is virtual."""

    def __init__(self, users: list[Holder], tries: int) -> None:
        self.users = users
        self.tries = tries
        self.now = 0.0

    def remove(self, seconds: float) -> None:
        self.tries -= 1
        if self.tries:
            self.now += seconds
            raise BusyError(NODE, [str(one) for one in self.users])


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> Busy:
    made = Busy([], 1)
    clock = SimpleNamespace(monotonic=lambda: made.now)
    monkeypatch.setattr("dmcopy.testing.kit.removal.time", clock)
    monkeypatch.setattr(holders, "who", lambda path: made.users if path == NODE else [])
    monkeypatch.setattr(processes, "is_of_udev", lambda pid: pid == LOOKS.pid)
    return made


@pytest.mark.parametrize("users", [[LOOKS], [], [LOOKS, LOOKS]])
def test_what_only_looks_is_waited_for(busy: Busy, users: list[Holder]) -> None:
    busy.users, busy.tries = users, 9
    patiently(busy.remove, NODE)
    assert busy.now == 8 * removal.TRY_SECONDS
    began, busy.tries = busy.now, 99
    with pytest.raises(BusyError):
        patiently(busy.remove, NODE)
    assert busy.now == began + removal.PATIENCE_SECONDS + removal.TRY_SECONDS


@pytest.mark.parametrize("users", [[STAYS], [MOUNT], [LOOKS, STAYS]])
def test_who_stays_is_told_after_one_try(busy: Busy, users: list[Holder]) -> None:
    busy.users, busy.tries = users, 9
    with pytest.raises(BusyError, match=r"in use by"):
        patiently(busy.remove, NODE)
    assert busy.tries == 8


def test_what_is_known_to_be_in_use_is_tried_once(busy: Busy) -> None:
    busy.tries = 9
    with pytest.raises(BusyError):
        patiently(busy.remove, NODE, 0.0)
    assert busy.tries == 8
