"""What the commands share that serve devices until they are told to stop."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from dmcopy.cli import signals
from dmcopy.cli.output import add_json, emit_json_line, printable
from dmcopy.export.kinds import kinds

if TYPE_CHECKING:
    from dmcopy.export.base import FrontEnd
    from dmcopy.io import Device, Reactor


def add_options(parser: argparse.ArgumentParser, *, verb: bool = False) -> None:
    """Declare how and where a device is served. `verb`: as for `add_json`."""
    parser.add_argument(
        "--via",
        choices=kinds(),
        metavar="KIND",
        help=f"how: {', '.join(kinds())} (default: the first that works here)",
    )
    parser.add_argument(
        "--socket",
        metavar="PATH",
        help="where: a Unix socket, which only you can open (default: NAME.nbd in /run/dmcopy or "
        "$XDG_RUNTIME_DIR/dmcopy)",
    )
    parser.add_argument(
        "--listen",
        metavar="ADDR:PORT",
        help="where: TCP, on the loopback without ADDR; all that reach it can read and write, "
        "unless there are --tls-creds",
    )
    parser.add_argument(
        "--tls-creds",
        metavar="DIR",
        help="nbd by TLS alone: DIR holds server-cert.pem and server-key.pem; with ca-cert.pem, "
        "clients need a certificate of it",
    )
    parser.add_argument(
        "--at",
        metavar="PATH",
        help="where: the file that fuse and loop make (default: NAME in the same folder)",
    )
    add_json(parser, verb=verb)


class Served:
    """Devices behind a front end, until a signal comes; SIGINT, SIGTERM and SIGHUP are the end."""

    def __init__(self, reactor: Reactor, front_end: FrontEnd, *, as_json: bool) -> None:
        self._reactor = reactor
        self._front_end = front_end
        self._as_json = as_json
        self._stopping = False

    def interrupt(self) -> None:
        """End it soon. Called from a signal handler."""
        self._stopping = True
        self._reactor.call_soon_threadsafe(lambda: None)

    def run(
        self, devices: Mapping[str, Device], ready: Callable[[], object] = lambda: None
    ) -> None:
        """Serve them; print where each is found, the first thing on stdout.

        `ready` is called before that is told.
        """
        from dmcopy.export.flusher import become_io_flusher

        become_io_flusher()
        with signals.interrupting(self), self._front_end:
            found = {name: self._front_end.add(name, one) for name, one in devices.items()}
            ready()
            for name, device in devices.items():
                self._announce(name, device, found[name])
            self._reactor.run_until(lambda: self._stopping)
            signals.unhurried()

    def _announce(self, name: str, device: Device, found: str) -> None:
        if not self._as_json:
            print(printable(found), flush=True)
            return
        facts = {
            "name": name,
            "via": self._front_end.kind,
            "open": found,
            "sectors": device.sectors,
            "block_size": device.logical_block_size,
            "read_only": device.read_only,
        }
        emit_json_line(facts)
