"""What holds for every test in the rig: it leaves nothing, and its failure stays its own."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmcopy.block import sysfs
from dmcopy.block.mounts import parse_mountinfo
from dmcopy.cli import main
from dmcopy.ledger import Ledger
from dmcopy.mapper.kernel import KernelMapper
from dmcopy.mapper.names import unmangle
from dmcopy.mapper.tree import top_down, with_deps
from dmcopy.table import Error, Table


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have the longest test begin first: at the end it would run alone, and the other worker idle.

    It takes almost a third of the time of those that boot guests of their own.
    """
    longest = Path(__file__).parent / "rig/test_kit.py"
    items.sort(key=lambda item: item.path != longest)


@pytest.fixture(autouse=True, scope="session")
def _each_parser_is_built_once() -> Iterator[None]:
    """Keep the parser of each noun: to build that of `dm` takes a second in a guest."""
    with pytest.MonkeyPatch.context() as patch:
        build = functools.cache(main._build_parser)
        patch.setattr(
            main,
            "_build_parser",
            lambda noun, _wanted=None, *, whole=False: build(noun, whole=whole),
        )
        yield


@pytest.fixture(autouse=True)
def no_cookie_is_left() -> Iterator[None]:
    """Check that the test leaves no semaphore: udev's cookies live until the machine goes down."""
    table = Path("/proc/sysvipc/sem")
    before = table.read_text()
    yield
    assert table.read_text() == before, "the test left a cookie of udev's"


@pytest.fixture(autouse=True)
def no_device_is_left(tmp_path: Path) -> Iterator[None]:
    """Check that the test leaves no mapped device, and remove what it left.

    A test that fails half way leaves its devices. Without this each test behind it fails, too.
    """
    before = devices()
    yield
    left = devices() - before
    if left:
        _remove(left, KernelMapper(ledger=Ledger(tmp_path / "left.jsonl"), timeout=60))
    assert not left, "the test left devices"


def devices() -> set[str]:
    """Return the names of all mapped devices that have had a table, without a call of dmsetup."""
    names = (sysfs.read(f"/sys/block/{disk}/dm/name") for disk in sysfs.entries("/sys/block"))
    return {unmangle(name) for name in names if name}  # one that just goes has no name any more


def _remove(left: set[str], mapper: KernelMapper) -> None:
    infos = [info for info in top_down(with_deps(mapper)) if info.name in left]
    for info in infos:  # what waits for I/O is let go
        mapper.swap(info.name, Table.of(8, Error()), flush=False, lockfs=False)
    numbers = {info.number for info in infos}
    for mount in parse_mountinfo(Path("/proc/self/mountinfo").read_text()):
        if mount.devno in numbers:
            subprocess.run(["umount", "-l", mount.point], check=False, timeout=60)
    for info in infos:
        mapper.remove(info.name)
