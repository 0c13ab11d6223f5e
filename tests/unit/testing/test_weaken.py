"""What is taken away from a run is noticed by a check that looks for it, and by no other."""

from __future__ import annotations

import pytest

from dmcopy.testing.explorer import CrashError
from dmcopy.testing.recording import Sent
from dmcopy.testing.storage import Storage
from dmcopy.testing.weaken import Weakened, weaken


def run(storage: Storage) -> None:
    """Write data, flush, a header with FUA, and then a note that nothing is made durable by."""
    for number in (1, 2):
        storage.disk.write(8 * number, bytes([number]) * 512)
        storage.disk.write(8 * number + 1, bytes([number]) * 512)
        storage.disk.flush()
        storage.disk.write(0, bytes([number]) * 512, fua=True)
        storage.mark(str(number))


def check(storage: Storage) -> None:
    number = storage.disk.read(0, 1)[0]
    assert number >= len(storage.marks), "a commit is gone"
    assert not number or storage.disk.read(8 * number, 2) == bytes([number]) * 1024, "no data"


def careless(storage: Storage) -> None:
    assert storage.disk.read(0, 1)[0] < 3


def test_every_weakening_is_noticed_by_a_good_check() -> None:
    found = weaken(run, check)
    assert [one.kind for one in found] == ["flush", "order", "fua"] * 2
    assert all(one.noticed for one in found)
    text = "without the flush that is event 4, on disk, the check fails after a power cut at "
    assert str(found[0]).startswith(text)
    assert ", behind mark '1', " in str(found[-1])


def test_a_careless_check_notices_nothing() -> None:
    found = weaken(run, careless)
    assert len(found) == 6
    assert not any(one.noticed for one in found)
    assert str(found[0]).endswith("the check still passes")


def test_a_flush_of_nothing_is_not_asked_about() -> None:
    def flushes(storage: Storage) -> None:
        storage.disk.flush()
        storage.disk.write(0, bytes(512), fua=True)
        storage.disk.flush()
        storage.disk.write(1, bytes(512))
        storage.disk.flush()
        storage.disk.flush()

    assert [one.kind for one in weaken(flushes, careless)] == ["fua", "flush"]


def test_a_check_that_fails_as_it_is() -> None:
    with pytest.raises(CrashError):
        weaken(run, lambda _storage: 1 / 0)


def test_the_fixture_and_the_shape() -> None:
    assert Weakened("fua", 3, "on disk", None).noticed is None
    assert Sent(0, 0, b"", True)._replace(fua=False).fua is False
