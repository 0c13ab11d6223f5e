"""Either engine, for tests that hold for both; afterwards no device of a test's may be left."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dmcopy.errors import BusyError
from tests.kernel.udevd import without_udevd

from .engines import Engine, KernelEngine, UserEngine


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A place in memory."""
    folder = Path("/dev/shm") / f"dmcopy-snapshot-{os.getpid()}"
    folder.mkdir()
    yield folder
    folder.rmdir()


@pytest.fixture(scope="module")
def kernel_engine(folder: Path) -> Iterator[KernelEngine]:
    """The kernel, with disks that stay attached from test to test."""
    with without_udevd():
        engine = KernelEngine(folder / "kernel")
        yield engine
        engine.close()


@pytest.fixture
def kernel(kernel_engine: KernelEngine) -> Iterator[KernelEngine]:
    """The kernel, with disks full of zeroes."""
    kernel_engine.disks.wipe()
    yield kernel_engine
    left = list(kernel_engine.mapper.paths)
    remove_all(kernel_engine, left)
    assert not left, "the test left devices"


@pytest.fixture
def user(folder: Path) -> Iterator[UserEngine]:
    """The userspace engine, with disks full of zeroes."""
    engine = UserEngine(folder / "user")
    yield engine
    engine.close()


@pytest.fixture(params=[pytest.param("kernel", marks=pytest.mark.kernel), "user"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Each engine in turn: ours needs no guest, which would be 10 to 20 times slower."""
    found: Engine = request.getfixturevalue(request.param)
    return found


def pytest_collection_finish(session: pytest.Session) -> None:
    """On the host of guests: play our half of the histories, for which a guest takes minutes."""
    if "DMCOPY_SEED" in os.environ or session.config.getoption("collectonly"):
        return
    originals = (getattr(item, "original", None) for item in session.items)
    mine = [one for one in originals if one is not None and one.originalname == "test_histories"]
    if mine:
        mine[0].module.note_ours(mine)


def remove_all(engine: Any, names: list[str]) -> None:
    """Remove devices, those first that no other is above."""
    for _ in names:
        for name in list(engine.mapper.paths):
            try:
                engine.mapper.thaw(name)
                engine.remove(name)
            except BusyError:
                continue
