"""What README and guides show of real device-mapper: run in a guest as printed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.blocks import FILES, ROOT, blocks, run

pytestmark = pytest.mark.kernel(either=True)


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if blocks(path, "guest")],
    ids=lambda path: str(path.relative_to(ROOT)),
)
@pytest.mark.usefixtures("scratch_disks")
def test_every_block_runs_as_printed(path: Path, tmp_path: Path) -> None:
    for block in blocks(path, "guest"):
        run(block, tmp_path)
