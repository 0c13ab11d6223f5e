"""What README and guides show of devices in userspace: run here as printed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dmcopy.block import file_mounts
from dmcopy.mapper.control import has_driver
from tests.docs.blocks import FILES, ROOT, blocks, run

pytestmark = pytest.mark.loop

# Ends a device server that a block has left.
_END = """
import os, signal
from dmcopy.ledger import Ledger, alive
for one in Ledger().entries():
    if one.kind == "server" and alive(one.uuid):
        os.kill(int(one.uuid.split()[0]), signal.SIGTERM)
"""
# Runs the words behind it with folders of their own, which go with the last process.
_SCRIPT = """
mkdir -p /run/dmcopy /dev/dmcopy
for folder in /run/dmcopy /dev/dmcopy /mnt; do mount -t tmpfs -o mode=700 none $folder; done
[ ! -d /dev/mapper ] || mount -t tmpfs none /dev/mapper
end=$1 status=0; shift
"$@" || status=$?
python -c "$end"
exit $status
"""
WRAPPER = ("unshare", "--mount", "--propagation", "private", "bash", "-euc", _SCRIPT, "bash", _END)


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if blocks(path, "loop")],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_every_block_runs_as_printed(path: Path, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("loop devices need root")
    if reason := file_mounts.why_not():
        pytest.skip(reason)
    found = blocks(path, "loop")
    if has_driver() and any("/dev/mapper" in block.text for block in found):
        pytest.skip("this kernel has device-mapper, whose nodes are in /dev/mapper")
    for block in found:
        run(block, tmp_path, *WRAPPER)
