"""What README and guides show of the rig itself: run here as printed, which boots guests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.docs.blocks import FILES, ROOT, blocks, run


@pytest.mark.long
@pytest.mark.skipif(os.environ.get("DMCOPY_TEST") != "long", reason="seven boots: only with --long")
@pytest.mark.parametrize(
    "path",
    [path for path in FILES if blocks(path, "rig")],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_every_block_runs_as_printed(path: Path, tmp_path: Path) -> None:
    for block in blocks(path, "rig"):
        run(block, tmp_path)
