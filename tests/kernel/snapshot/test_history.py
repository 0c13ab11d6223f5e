"""What is noted of a history is the same each time, and whatever is not is told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dmcopy.testing.compare import DifferenceError
from dmcopy.testing.steps import Burst
from dmcopy.testing.workload import Workload

from . import history
from .engines import UserEngine
from .history import DISKS, History, Seen

SEED = 0


@pytest.fixture(scope="module")
def two(folder: Path) -> Iterator[tuple[UserEngine, UserEngine]]:
    engines = UserEngine(folder / "one", DISKS), UserEngine(folder / "two", DISKS)
    for engine in engines:
        history.start_up(engine)
    yield engines
    for engine in engines:
        history.shut_down(engine)


def played(engine: UserEngine, depth: int = 1) -> Iterator[Seen]:
    return History(Workload(SEED, depth=depth), engine).play()


@pytest.fixture
def notes(
    two: tuple[UserEngine, UserEngine], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> list[int]:
    monkeypatch.setattr(history, "NOTES", tmp_path / "build" / "notes")
    assert history.noted() == {}
    history.note(two[0], [(SEED, 1, True)])
    return history.noted()[history.key(SEED, 1, True)]


@pytest.mark.parametrize("depth", [1, 16])
def test_a_history_is_the_same_again(two: tuple[UserEngine, UserEngine], depth: int) -> None:
    history.compare(two, played(two[0], depth), played(two[1], depth))
    noted = [history.checksum(seen) for seen in played(two[0], depth)]
    assert history.first_unlike(played(two[1], depth), noted) == ""


def test_each_kind_of_difference_is_told(
    two: tuple[UserEngine, UserEngine], notes: list[int]
) -> None:
    seen = list(played(two[1]))
    kinds = {one.what.rstrip("0123456789") for one in seen}
    assert kinds >= {"the step's result", "status, table or events", "the COW of snap"}
    assert history.first_unlike(seen, notes) == ""
    for number, one in enumerate(seen):
        other = [*notes[:number], notes[number] ^ 1, *notes[number + 1 :]]
        assert history.first_unlike(seen, other) == f"{one.what} after {one.step}"
    assert history.first_unlike(seen, [*notes, 1]).startswith("the end")
    assert history.first_unlike([*seen, seen[0]], notes) == f"{seen[0].what} after {seen[0].step}"


def test_what_is_seen_otherwise_has_another_checksum(two: tuple[UserEngine, UserEngine]) -> None:
    for one in played(two[0]):
        match one.value:
            case bytes(data):
                others: list[object] = [data[:-1] + bytes([data[-1] ^ 1]), data[:-1], data + b"\0"]
            case [first, *rest]:
                changed = [first._replace(error="EIO")] if hasattr(first, "_replace") else []
                others = [[*changed, *rest], [first, *rest, first]]
            case dict(views):
                name, view = next(iter(views.items()))
                others = [{**views, name: view._replace(events=view.events + 1)}]
            case _:
                others = ["EIO"]
        for other in others:
            assert history.checksum(one._replace(value=other)) != history.checksum(one)


def test_beside_each_other_the_first_difference_is_told(two: tuple[UserEngine, UserEngine]) -> None:
    def spoiled() -> Iterator[Seen]:
        for one in played(two[1]):
            if isinstance(one.step, Burst):
                two[1].poke("disk0", 0, b"\xff" * 4096)
            yield one

    with pytest.raises(DifferenceError, match="differs after step"):
        history.compare(two, played(two[0]), spoiled())
