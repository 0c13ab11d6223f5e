"""Copies to loop devices that resume: their file is what they are known by, not their number."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dmcopy.block.loop import LoopDevice, loop_device
from dmcopy.errors import UsageError
from dmcopy.transfer import (
    TransferOptions,
    TransferOutcome,
    TransferRequest,
    TransferSession,
    open_all,
)
from tests.loop.conftest import LoopFactory

pytestmark = pytest.mark.loop

SECTORS = 2048
SIZE = SECTORS * 512


@pytest.fixture
def folder(loops: LoopFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work where loop devices may be; there is a source, and a file for the destination."""
    monkeypatch.chdir(loops.folder)
    Path("src").write_bytes(os.urandom(SIZE))
    make()
    return loops.folder


def make() -> None:
    with open("file", "wb") as file:
        file.truncate(4 * SIZE)


def copy(loop: LoopDevice) -> TransferOutcome:
    with open_all(TransferRequest("src", (loop.path,))) as opened:
        return TransferSession(opened, TransferOptions(map_path="map")).run()


@pytest.mark.usefixtures("folder")
def test_the_same_file_is_known_behind_another_loop_device() -> None:
    with loop_device("file") as before:
        assert copy(before).resumed == 0
    # The other one takes the number, if that is given again.
    with loop_device("src", read_only=True), loop_device("file") as after:
        assert copy(after).resumed == SECTORS


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("change", ["made again", "from elsewhere"])
def test_another_file_or_part_of_it_is_not_taken_for_the_one_before(change: str) -> None:
    """They have the same node, size and path, and perhaps inode."""
    with loop_device("file", size=SECTORS) as device:
        copy(device)
    if change == "made again":
        os.unlink("file")
        make()
    offset = SECTORS if change == "from elsewhere" else 0
    with loop_device("file", size=SECTORS, offset=offset) as device:
        with pytest.raises(UsageError, match="map of a copy to /dev/loop"):
            copy(device)
        assert Path(device.path).read_bytes() == bytes(SIZE)


@pytest.mark.usefixtures("folder")
def test_one_whose_file_has_lost_its_name_is_known_until_it_is_detached() -> None:
    with loop_device("file") as device:
        copy(device)
        os.unlink("file")
        make()  # another one of that name
        assert copy(device).resumed == SECTORS
