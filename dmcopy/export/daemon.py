"""The process of the device server: in the background, one for a user.

    python -m dmcopy.export.daemon READY [resume]

READY is the number of a descriptor: when the server is ready, a line of JSON is written to it, or
why it cannot start. With `resume` it has the devices that a killed one had.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from io import FileIO
from typing import Final

LOCK: Final = "server,lock"
LOG: Final = "server,log"
_MAX_LOG: Final = 1 << 20
_START_SECONDS: Final = 40.0


def main() -> None:
    """Leave the process that started this one, and be the server."""
    if os.fork():
        os._exit(0)  # the process that started it waits for this one only
    with open(int(sys.argv[1]), "wb", buffering=0) as pipe:
        _be_the_server(pipe, resume="resume" in sys.argv[2:])


def _be_the_server(pipe: FileIO, *, resume: bool) -> None:
    # Here and not above: they take time, and the parent need not wait.
    from dmcopy.asking import VERSION, facts_of, told

    def tell(**facts: object) -> None:
        """Say it, once: later the number of the descriptor may be that of a disk's file."""
        import json

        with contextlib.suppress(OSError), pipe:  # the process that started it is gone
            pipe.write(json.dumps({"version": VERSION, **facts}).encode() + b"\n")

    try:
        _serve(lambda: tell(ok=True), resume=resume)
    except Exception as error:
        known = told(error)
        if not pipe.closed:
            tell(ok=False, **facts_of(known))
        if known is not error:
            import logging

            logging.getLogger("dmcopy").error("the device server failed", exc_info=error)
        raise SystemExit(1) from None


def _serve(ready: Callable[[], object], *, resume: bool) -> None:
    from dmcopy.export.device_server import DeviceServer
    from dmcopy.export.flusher import become_io_flusher, lock_memory
    from dmcopy.export.nodes import Nodes
    from dmcopy.io.reactor import Reactor, log_exception
    from dmcopy.ledger import Ledger, identity
    from dmcopy.runtime import SERVER_NAME, control_path, runtime_folder

    folder = runtime_folder("")
    with _only_one(str(folder / LOCK), control_path()) as first:
        if not first:
            ready()
            return
        _log_to(str(folder / LOG))
        become_io_flusher()
        lock_memory()
        ledger = Ledger()
        with Reactor(stacked=True) as reactor:
            reactor.on_exception = log_exception
            server = DeviceServer(reactor, control_path(), Nodes(reactor, ledger), resume=resume)
            ledger.drop("server", SERVER_NAME)  # a killed one's: what it had is this one's now
            entry = ledger.add("server", SERVER_NAME, uuid=identity(os.getpid()))
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: server.stop())
            ready()
            server.run()
        ledger.cancel(entry)


@contextlib.contextmanager
def _only_one(path: str, control: str) -> Iterator[bool]:
    """Hold the lock of a user's only server; give False where another has begun to listen.

    A server that is about to end still has the lock, but listens no more: it is waited for.
    """
    from dmcopy.errors import DeadlineError

    deadline = time.monotonic() + _START_SECONDS
    with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "rb") as file:
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield True
                return
            if _listens(control):
                yield False
                return
            if time.monotonic() > deadline:
                raise DeadlineError(f"{path}: another device server has it, and does not listen")
            time.sleep(0.02)


def _listens(path: str) -> bool:
    """Whether a server is there: one that is being killed is connected to, and does not answer."""
    from dmcopy.asking import NoServerError, ask
    from dmcopy.errors import DmcopyError

    try:
        ask(path, {"do": "ls"}, timeout=_START_SECONDS)
    except NoServerError:
        return False
    except DmcopyError:
        pass  # of another version, or busy
    return True


def _log_to(path: str) -> None:
    """Log errors to a file that stays small; its folder is in memory."""
    import logging
    from logging.handlers import RotatingFileHandler

    handler = RotatingFileHandler(path, maxBytes=_MAX_LOG, backupCount=1, errors="replace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)


if __name__ == "__main__":
    main()
