"""A process that serves devices, for tests that kill it.

    python -m tests.loop.export.server KIND FOLDER SPEC

SPEC is as in `dm create --concise`. It prints a line for each device when all are there, and ends
at the end of its input. The ledger and the files that are made are in FOLDER.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from dmcopy.export.fuse import files
from dmcopy.export.kinds import MODULES
from dmcopy.ledger import Ledger
from dmcopy.mapper.userspace import UserMapper
from dmcopy.table.concise import parse_concise


def main(kind: str, folder: str, spec: str) -> None:
    files.runtime_folder = lambda *_: Path(folder)  # type: ignore[attr-defined]
    front_end = importlib.import_module(MODULES[kind]).FRONT_END
    with UserMapper() as mapper:
        devices = parse_concise(spec)
        mapper.create_all(list(devices))
        with front_end(mapper.reactor, ledger=Ledger(Path(folder, "ledger"))) as served:
            for one in devices:
                print(served.add(one.name, mapper.open(one.name)), flush=True)
            ended: list[int] = []
            mapper.reactor.watch(sys.stdin.fileno(), ended.append)
            mapper.reactor.run_until(lambda: ended)
            mapper.reactor.unwatch(sys.stdin.fileno())


if __name__ == "__main__":
    main(*sys.argv[1:])
