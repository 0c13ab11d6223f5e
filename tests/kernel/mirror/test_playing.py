"""What is noted of our half of a workload is the same each time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dmcopy.mapper.userspace import UserMapper
from dmcopy.testing.disks import Disks
from dmcopy.testing.mirrors import DISKS, MirrorWorkload

from . import playing
from .sides import UserSide

SEEDS = range(6)
STEPS = 12


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UserSide]:
    side = UserSide(Disks(tmp_path_factory.mktemp("mirror") / "user", DISKS), UserMapper())
    yield side
    side.close()


def test_it_is_the_same_again(
    user: UserSide, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(playing, "NOTES", tmp_path / "notes")
    assert playing.noted(0) is None
    playing.note(user, SEEDS, STEPS)
    for seed in SEEDS:
        assert playing.noted(seed) == list(playing.ours(user, MirrorWorkload(seed), STEPS))


def test_another_byte_on_a_leg_is_another_checksum(user: UserSide) -> None:
    for leg, disk in enumerate("abcd"):
        before = user.checksums()
        user.poke(disk, b"another", 2047)
        changed = [one != other for one, other in zip(before, user.checksums(), strict=True)]
        assert changed == [number == leg for number in range(4)]
