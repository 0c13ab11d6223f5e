"""`dmcopy serve`: devices of a table, or a file, as what other programs open."""

from __future__ import annotations

import argparse
import contextlib
import errno
from typing import TYPE_CHECKING, Final

from dmcopy.cli.serving import add_options
from dmcopy.errors import DeviceError, ExitCode, UsageError

if TYPE_CHECKING:
    from dmcopy.io import Device, Reactor

_EXAMPLES: Final = """\
examples:
  dmcopy serve disk.img                                          a file, or a device
  dmcopy serve --table '0 262144 snapshot old.img cow.img P 8'
  dmcopy serve --concise 'then,,,,0 262144 snapshot old.img cow.img P 8;
      live,,,,0 262144 snapshot-origin old.img'                  a snapshot, then its origin
  qemu-system-x86_64 -drive file="$(head -1 uri)",format=raw     with stdout in the file uri
  dmcopy serve --via loop --table '0 262144 linear disk.img 0'   /dev/loopN, to be mounted
  nbd-client -unix SOCKET -N NAME /dev/nbd0                      as a block device, as root
  dmcopy serve --resume           the devices of 'dm --engine user', whose server was killed

The userspace engine's devices: no root and no kernel driver are needed. The address or
path of each device is printed, a line for each, when other programs can open it. SIGINT, SIGTERM
and SIGHUP end the command: requests that have arrived are done and flushed before.

Ends with 0 after one of these signals; 2 after a wrong word, 5 when this machine lacks something
that --via needs, 6 when a device, a port or a socket is in use, or a served device still was at
the end.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EXAMPLES
    parser.add_argument(
        "file", nargs="?", metavar="FILE", help="a file or device to serve as it is"
    )
    parser.add_argument("--table", metavar="TABLE", help="the table of a device, or the file of it")
    parser.add_argument("--concise", metavar="SPEC", help="several devices, as in dm create")
    parser.add_argument("--name", metavar="N", help="what the device is called (default: dev)")
    parser.add_argument("--read-only", action="store_true", help="let no user write to it")
    text = "have the devices of 'dm --engine user' back, whose server was killed"
    parser.add_argument("--resume", action="store_true", help=text)
    add_options(parser)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal comes."""
    if args.resume:
        return _resume(args)
    what = [args.file, args.table, args.concise]
    if sum(word is not None for word in what) != 1:
        raise UsageError("say what to serve: a FILE, --table or --concise, and one of them")
    if args.concise is not None and args.name is not None:
        raise UsageError("--name is for one device; in --concise each has its name")
    # Here and not above: the engine takes time to import.
    from dmcopy.cli.dm_run import faults_told
    from dmcopy.cli.serving import Served
    from dmcopy.export.base import Place, find
    from dmcopy.io import Reactor, whole
    from dmcopy.io.reactor import log_exception

    front_end = find(args.via)
    with contextlib.ExitStack() as exits:
        exits.enter_context(faults_told(args))
        reactor = exits.enter_context(Reactor(stacked=True))
        reactor.on_exception = log_exception
        served = front_end(reactor, Place(args.socket, args.listen, args.at, args.tls_creds))
        devices = _devices(args, reactor, exits)
        Served(reactor, served, as_json=args.json).run(devices)
        for device in reversed(list(devices.values())):  # what is above others comes first
            if not device.read_only:
                whole.flush(reactor, device)
    return ExitCode.OK


def _resume(args: argparse.Namespace) -> int:
    """Start the device server again, and tell where its devices are."""
    if any(
        (
            args.file,
            args.table,
            args.concise,
            args.name,
            args.read_only,
            args.via,
            args.socket,
            args.listen,
            args.at,
            args.tls_creds,
            args.json,
        )
    ):
        raise UsageError("--resume says it all: leave the rest out")
    from dmcopy.cli.output import printable, say
    from dmcopy.ledger import Ledger
    from dmcopy.mapper.kernel import KernelMapper
    from dmcopy.mapper.reap import Reaper
    from dmcopy.mapper.served import ServedMapper, start_server

    ledger = Ledger()

    def reap(*kinds: str) -> None:
        made = KernelMapper(ledger=ledger)
        reaper = Reaper(made, ledger, lambda one: one.abandoned and one.kind in kinds)
        for why in reaper.run().left.values():
            say(f"dmcopy: left: {why}")

    reap("mount", "loop", "link")
    start_server(resume=True)
    reap("ublk", "nbd")  # what was not taken over
    mapper = ServedMapper()
    for info in mapper.ls():
        print(printable(mapper.path(info.name)))
    return ExitCode.OK


def _devices(
    args: argparse.Namespace, reactor: Reactor, exits: contextlib.ExitStack
) -> dict[str, Device]:
    """Make or open what is to be served, until `exits` close it."""
    if args.file is not None:
        from pathlib import Path

        from dmcopy.block import BlockDevice

        device = exits.enter_context(BlockDevice.open(args.file, write=not args.read_only))
        return {args.name or Path(args.file).name: device}
    from dataclasses import replace

    from dmcopy.cli.dm_run import devices_of
    from dmcopy.mapper.userspace import UserMapper

    made = devices_of(args, [])
    if not made:
        raise UsageError("there is no device in it: write name,uuid,minor,ro|rw,table;...")
    if args.name is not None:
        made = [replace(made[0], name=args.name)]
    if args.read_only:
        made = [replace(one, readonly=True) for one in made]
    if len({one.name for one in made}) < len(made):
        raise UsageError("two devices have the same name")
    mapper = exits.enter_context(UserMapper(reactor))
    try:
        mapper.create_all(made)
    except DeviceError as error:
        if error.errno != errno.EINVAL:
            raise
        raise UsageError(str(error)) from error
    return {one.name: mapper.open(one.name) for one in made}
