"""What README and guides show of real device-mapper: run in a guest as printed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.blocks import FILES, ROOT, blocks, run

from .forking import commands

pytestmark = pytest.mark.kernel(either=True, cost=5)

COSTS = {"README.md": 27, "testing.md": 28, "serve.md": 23, "mirrors.md": 13, "snapshots.md": 9}


@pytest.fixture(scope="module")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path | None]:
    """Where there are commands that start quickly; in the long run there are none."""
    if os.environ.get("DMCOPY_TEST") == "long":
        yield None
        return
    with commands(tmp_path_factory.mktemp("forked")) as folder:
        yield folder


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=pytest.mark.kernel(cost=COSTS.get(path.name)))
        for path in FILES
        if blocks(path, "guest")
    ],
    ids=lambda path: str(path.relative_to(ROOT)),
)
@pytest.mark.usefixtures("scratch_disks")
def test_every_block_runs_as_printed(path: Path, tmp_path: Path, forked: Path | None) -> None:
    for block in blocks(path, "guest"):
        run(block, tmp_path, commands=forked)
