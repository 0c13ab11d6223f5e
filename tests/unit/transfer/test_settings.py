"""How a copy is done when the user does not say, and what does not go together."""

from __future__ import annotations

from typing import Any

import pytest

from dmcopy.errors import UsageError
from dmcopy.io import IoRegion, Reactor
from dmcopy.io.simulated import SimulatedDisk
from dmcopy.transfer import settings
from dmcopy.transfer.settings import Settings, choose


def regions(block: int = 512) -> tuple[IoRegion, IoRegion]:
    disks = [SimulatedDisk(8192, name, logical_block_size=block) for name in "ab"]
    return IoRegion(disks[0], 0, 8192), IoRegion(disks[1], 0, 8192)


@pytest.fixture(autouse=True)
def works(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Have io_uring, whatever this machine has."""
    found = {"uring": "", "threads": ""}
    monkeypatch.setattr(settings, "probe", lambda: found)
    monkeypatch.delenv("DMCOPY_IO", raising=False)
    return found


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("threads", 8, 2048, 2048)),
        ({"depth": 4}, ("threads", 4, 2048, 1024)),
        ({"piece": 1024}, ("threads", 8, 1024, 1024)),  # bulk begins here
        ({"piece": 1023}, ("uring", 8, 1023, 1024)),
        ({"piece": 8}, ("uring", 8, 8, 8)),
        ({"piece": 9}, ("uring", 8, 9, 16)),
        ({"pages": 1024}, ("threads", 8, 2048, 1024)),  # four pieces of 1 MiB
        ({"pages": 4096}, ("threads", 8, 2048, 4096)),  # but no piece is longer
        ({"pages": 1020}, ("threads", 8, 2040, 1020)),
        ({"pages": 18}, ("uring", 8, 32, 18)),
        ({"pages": 1}, ("uring", 8, 1, 1)),
        ({"pages": 4}, ("uring", 8, 8, 4)),
        ({"limit": 1 << 30}, ("threads", 8, 2048, 2048)),
        ({"limit": 1 << 20}, ("uring", 8, 256, 256)),  # eight pieces a second
        ({"limit": 1}, ("uring", 8, 8, 8)),
        ({"backend": "uring"}, ("uring", 8, 2048, 2048)),
    ],
)
def test_what_is_chosen(given: dict[str, Any], expected: tuple[Any, ...]) -> None:
    source, dest = regions()
    assert choose(source, [dest], **given) == expected


def test_a_piece_is_whole_blocks() -> None:
    source, dest = regions(8192)
    assert choose(source, [dest], pages=26).piece == 48
    assert choose(source, [dest], pages=2).piece == 16
    assert choose(source, [dest], limit=100 << 10).piece == 16
    assert choose(source, [dest], limit=1 << 20).piece == 256


def test_the_back_end(works: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    source, dest = regions()
    assert choose(None, [dest], piece=8).backend == "threads", "zeroing moves nothing"
    works["uring"] = "forbidden"
    assert choose(source, [dest], piece=8).backend == "threads"
    monkeypatch.setenv("DMCOPY_IO", "uring")
    assert choose(source, [dest]).backend == "uring"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"depth": 0}, "the depth is 1 to 1024 requests in flight, not 0"),
        ({"depth": 1025}, "not 1025"),
        ({"pages": 1}, "1 pages are less than one block of 8192 bytes: give at least --pages 2"),
        ({"pages": 1 << 40}, "1099511627776 pages are 4 PiB, and this machine has"),
        ({"piece": 8}, r"a piece is 8 KiB \(one block\) to 1 MiB in whole blocks, not 4 KiB"),
        ({"piece": 24}, "in whole blocks, not 12 KiB"),
        ({"piece": 2064}, "to 1 MiB in whole blocks, not 1.008 MiB"),
        ({"piece": 32, "pages": 3}, "3 pages hold less than one piece of 16 KiB: .* --pages 4"),
    ],
)
def test_what_does_not_go_together(given: dict[str, Any], says: str) -> None:
    source, dest = regions(8192)
    with pytest.raises(UsageError, match=says):
        choose(source, [dest], **given)


def test_what_just_goes_together() -> None:
    source, dest = regions(8192)
    assert choose(source, [dest], depth=1024, piece=2048, pages=256).depth == 1024
    assert choose(source, [dest], depth=1, piece=16, pages=2).pages == 2


def test_what_follows_from_them() -> None:
    assert Settings("uring", 8, 9, 16).sub_job == 16
    assert Settings("uring", 8, 16, 16).sub_job == 16
    assert Settings("uring", 8, 16, 16).outstanding == 16


@pytest.mark.parametrize(("depth", "inline"), [(1, True), (2, False)])
def test_one_at_a_time_is_done_by_plain_calls(
    depth: int, inline: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[Any] = []
    monkeypatch.setattr(settings, "Reactor", lambda *words, **more: said.append((words, more)))
    assert not isinstance(Settings("threads", depth, 8, 8).reactor(), Reactor)
    assert said == [(("threads",), {"inline": inline})]


@pytest.mark.parametrize(
    ("source_is", "dests_are", "piece", "backend"),
    [
        ("device", ["device"], None, "uring"),
        ("device", ["device"] * 3, None, "uring"),
        ("file", ["device"], None, "threads"),
        ("device", ["device", "file"], None, "threads"),
        ("file", ["file"], 128, "uring"),  # small pieces are quicker by the ring wherever
    ],
)
def test_devices_get_the_ring_and_large_pieces_of_files_threads(
    works: dict[str, str], source_is: str, dests_are: list[str], piece: int | None, backend: str
) -> None:
    def region(kind: str) -> IoRegion:
        disk = SimulatedDisk(8192, kind)
        disk.is_block = kind == "device"  # type: ignore[attr-defined]
        return IoRegion(disk, 0, 8192)

    source, dests = region(source_is), [region(kind) for kind in dests_are]
    assert choose(source, dests, piece=piece).backend == backend
    works["uring"] = "forbidden"
    assert choose(source, dests, piece=piece).backend == "threads"
