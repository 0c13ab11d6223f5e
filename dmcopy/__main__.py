"""The `dmcopy` command, and `python -m dmcopy`."""

import signal
import sys


def run() -> int:
    """Run the command line. Until it can tell of a Ctrl-C, that ends it as it ends any program."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from dmcopy.cli.main import main

    return main()


if __name__ == "__main__":
    sys.exit(run())
