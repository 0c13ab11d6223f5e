"""Histories that a campaign's tests play, by processes that import this module."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def good(seed: int) -> int:
    return seed


def sized(seed: int, *, steps: int = 40, width: int = 8, flag: bool = True) -> dict[str, int]:
    """Fails for 7 with 13 steps or more, however wide."""
    assert flag
    assert width
    assert seed != 7 or steps < 13, f"seed {seed} breaks after step 13"
    return {"steps": steps, "odd": seed % 2}


def dies_once(seed: int) -> dict[str, int]:
    """Dies of 5, unless it did before."""
    place = Path(os.environ["DMCOPY_TEST_FOLDER"])
    with open(place / "played", "a") as file:
        file.write(f"{seed}\n")
    if seed == 5 and not (place / "died").exists():
        (place / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return {"count": 1}


def dies(seed: int) -> int:
    if seed == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return 1


def slow(seed: int) -> dict[str, int]:
    """Takes a while, and notes who played what."""
    time.sleep(0.02)
    with open(Path(os.environ["DMCOPY_TEST_FOLDER"]) / "played", "a") as file:
        file.write(f"{os.getpid()} {seed}\n")
    return {"count": 1, "sum": seed}
