"""`dmcopy demo`: the whole story on sparse files, no root. Ends with 1 when any of it is not so."""

from __future__ import annotations

import argparse
import importlib
import os
import time
from typing import Final

from dmcopy.cli.story import Story
from dmcopy.errors import UsageError

PARTS: Final = ("copy", "snapshot", "mirror")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "part", nargs="?", choices=PARTS, help="only this part: copy, snapshot or mirror"
    )
    parser.add_argument("--folder", metavar="DIR", help="where to put the files (default: $TMPDIR)")
    parser.add_argument(
        "--progress",
        choices=("auto", "bar", "plain", "none"),
        default="auto",
        help="how to show progress (default: a bar on a terminal)",
    )


def run(args: argparse.Namespace) -> int:
    import tempfile
    from pathlib import Path

    story = Story()
    began = time.monotonic()
    if args.folder is not None and not os.path.isdir(args.folder):
        raise UsageError(f"--folder {args.folder}: there is no such folder")
    with tempfile.TemporaryDirectory(prefix="dmcopy-demo-", dir=args.folder) as folder:
        for part in [args.part] if args.part else PARTS:
            importlib.import_module(f"dmcopy.cli.demo_{part}").tell(
                story, Path(folder), args.progress
            )
    return story.end(time.monotonic() - began)
