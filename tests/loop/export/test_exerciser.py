"""Files of an origin and of its snapshot, exercised both at a time through loop devices."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.loop.export.conftest import SECONDS, Serving
from tests.loop.export.exerciser import DifferenceError, Exerciser

MIB = 1 << 20
SEEDS = range(1, 41 if os.environ.get("DMCOPY_TEST") == "long" else 2)
OPERATIONS = 400


@pytest.mark.loop
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
@pytest.mark.parametrize("seed", SEEDS)
def test_files_of_an_origin_and_of_its_snapshot(serving: Serving, kind: str, seed: int) -> None:
    """What either holds is the model's; what both held before, the snapshot still holds."""
    if shutil.which(f"mkfs.{kind}") is None:
        pytest.skip(f"mkfs.{kind} is not installed")
    size = 320 * MIB if kind == "xfs" else 64 * MIB
    sectors = size >> 9
    image, cow = serving.image("image", size), serving.image("cow", 96 * MIB)
    serving.make("live", f"0 {sectors} linear {image} 0")
    live = serving.loop("live")
    serving.run(f"mkfs.{kind}", "-q", live)
    on_live = serving.mount(live)
    old = ended(serving, begun(serving, on_live / "old", seed))
    serving.umount(on_live)

    then = serving.snapshot("live", image, cow, sectors)
    serving.mount(live)
    on_then = serving.mount(then, *(["-o", "nouuid"] if kind == "xfs" else []))
    at_once = [
        begun(serving, on_live / "old", seed + 1),
        begun(serving, on_then / "new", seed + 2),
    ]
    changed, new = [ended(serving, one) for one in at_once]
    # Once more from the devices: the file systems are mounted anew.
    for point in (on_live, on_then):
        serving.umount(point)
    for device in (live, then):
        serving.run(*(["e2fsck", "-fn"] if kind == "ext4" else ["xfs_repair", "-n"]), device)
        serving.mount(device, "-o", "ro" + (",nouuid" if kind == "xfs" else ""))
    found = serving.run("sha256sum", on_live / "old", on_then / "old", on_then / "new")
    assert [line.split()[0] for line in found.splitlines()] == [changed, old, new]
    assert old != changed


def begun(serving: Serving, file: Path, seed: int) -> subprocess.Popen[str]:
    words = ["-m", "tests.loop.export.exerciser", file, "--seed", seed, "--operations", OPERATIONS]
    argv = [sys.executable, *map(str, words)]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    serving.stack.callback(serving.meanwhile, process.communicate)
    serving.stack.callback(process.kill)
    return process


def ended(serving: Serving, process: subprocess.Popen[str]) -> str:
    """Wait for an exerciser, which must find no difference; return what the file holds."""
    said, wrong = serving.meanwhile(lambda: process.communicate(timeout=SECONDS))
    assert process.returncode == 0, wrong
    report = json.loads(said)
    assert report["left_out"] == []
    return str(report["sha256"])


def test_a_byte_that_was_never_written_is_noticed(tmp_path: Path) -> None:
    """The judge is judged: a file that another writes to is told at that byte."""
    path = tmp_path / "file"
    exerciser = Exerciser(str(path), 3)
    exerciser.run(200)
    place = next(i for i in range(len(exerciser.model)) if i > 1000)
    with open(path, "r+b") as other:
        other.seek(place)
        other.write(bytes([exerciser.model[place] ^ 1]))
    with pytest.raises(DifferenceError, match=f"seed 3: byte {place} is "):
        exerciser.run(0)
    exerciser.close()
