"""The process that disconnects an nbd device when its server has ended, in whatever way.

    python -m dmcopy.export.nbd.watcher MARK

Its standard input is a pipe that only the server has the other end of. The driver itself would keep
what the server had under way for ever.
"""

from __future__ import annotations

import os
import sys

from dmcopy.io import nbd


def main() -> None:
    """Wait for the end of the server, then for the driver's."""
    os.read(0, 1)
    control = nbd.NbdControl()
    number = control.find(sys.argv[1])
    if number is not None:
        control.disconnect(number)


if __name__ == "__main__":
    main()
