"""A process that serves a table as a file, and is told what to do on standard input.

    python -m tests.loop.export.server PATH LEDGER TABLE

It prints a line when the file is there, and ends at the end of its input.
"""

from __future__ import annotations

import sys

from dmcopy.export.fuse.served import FuseFile
from dmcopy.ledger import Ledger
from dmcopy.mapper.userspace import UserMapper
from dmcopy.table import Table


def main(path: str, ledger: str, table: str) -> None:
    with UserMapper() as mapper:
        mapper.create("served", Table.parse(table))
        file = FuseFile(mapper.reactor, mapper.open("served"), path, ledger=Ledger(ledger))
        print(file.path, flush=True)
        ended: list[int] = []
        mapper.reactor.watch(sys.stdin.fileno(), ended.append)
        mapper.reactor.run_until(lambda: ended or file.gone)
        mapper.reactor.unwatch(sys.stdin.fileno())
        file.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
