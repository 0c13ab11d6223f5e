"""The Vagrantfile and its box: written for a project's own folder, and built from packages."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from dmcopy.errors import DeviceError, MissingError, UsageError
from dmcopy.vm.cache import cache_dir

FOLDER: Final = "vagrant"
FILES: Final = ("Vagrantfile", "build-box")
_OWN: Final = Path(__file__).parent / "recipe"
_MARK: Final = "DMCOPY_QEMU"  # what the Vagrantfile of another makes nothing of
_SECONDS: Final = 1800.0


def init(folder: Path) -> list[Path]:
    """Write the Vagrantfile and the box's recipe to a folder, which is made; return their paths.

    Raises UsageError where one of them is there, DeviceError.
    """
    made: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in [folder / name for name in FILES]:
            with path.open("xb") as file:
                made.append(path)
                file.write((_OWN / path.name).read_bytes())
        made[1].chmod(0o755)
    except BaseException as error:
        for path in made:  # one without the other would be in the way of the next try
            path.unlink(missing_ok=True)
        if isinstance(error, FileExistsError):
            raise UsageError(
                f"{error.filename} is there already: name another folder, or remove it"
            ) from None
        if isinstance(error, OSError):
            action = "write the Vagrantfile to it"
            raise DeviceError(str(folder), action, error.errno or 0) from None
        raise
    return made


def recipe(project: Path) -> Path:
    """Return the folder of the Vagrantfile for a project: its own, or else dmcopy's."""
    own = project / FOLDER
    try:
        return own if _MARK in (own / FILES[0]).read_text(errors="replace") else _OWN
    except OSError:
        return _OWN


def build(folder: Path, suite: str) -> Path:
    """Return the box of a Debian suite, made at the first call and when its recipe has changed.

    Raises MissingError with the log where it cannot be made.
    """
    script = folder / FILES[1]
    script = script if script.exists() else _OWN / FILES[1]
    boxes = cache_dir() / "boxes"
    box = boxes / f"dmcopy-{suite}.box"
    stamp, log = box.with_suffix(".recipe"), box.with_suffix(".log")
    want = hashlib.sha256(script.read_bytes()).hexdigest()
    if box.exists() and stamp.exists() and stamp.read_text() == want:
        return box
    began = time.monotonic()
    print("dmcopy: building the box from Debian packages (two to four minutes)", file=sys.stderr)
    boxes.mkdir(exist_ok=True)
    with log.open("wb") as file:
        words = ["bash", str(script), str(box), suite]
        done = subprocess.run(words, stdout=file, stderr=file, timeout=_SECONDS, check=False)
    if done.returncode:
        raise MissingError(f"{script} ended with {done.returncode}: see {log}")
    stamp.write_text(want)
    shutil.rmtree(cache_dir() / "vagrant/boxes" / box.stem, ignore_errors=True)
    print(f"dmcopy: box built: {time.monotonic() - began:.0f} s", file=sys.stderr)
    return box
