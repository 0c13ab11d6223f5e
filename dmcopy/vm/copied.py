"""What is copied to a guest that has files of its own: folders, and what Python imports here."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path


def imported_folders(path: Sequence[str]) -> list[Path]:
    """Return the folders of a path of Python that no distribution has installed, but for `''`."""
    found = [Path(word) for word in path if word and Path(word).is_dir()]
    ours = [Path(sys.base_prefix) / "lib/python", Path("/usr/lib/python")]
    standard = tuple(str(folder) for folder in ours)
    return [
        folder
        for folder in dict.fromkeys(map(Path.absolute, found))
        if "site-packages" in folder.parts or not str(folder).startswith(standard)
    ]


def distinct(folders: Iterable[Path]) -> list[Path]:
    """Return folders without those that lie in another; a `.venv` is not copied with its folder."""
    found: list[Path] = []
    for folder in sorted({folder.absolute() for folder in folders}):
        if not any(
            folder.is_relative_to(one) and ".venv" not in folder.relative_to(one).parts[:1]
            for one in found
        ):
            found.append(folder)
    return found
