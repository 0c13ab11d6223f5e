"""`dmcopy disk`: a disk with a volatile write cache, whose power can be cut."""

from __future__ import annotations

import argparse
import contextlib
import os
from typing import TYPE_CHECKING, Any, Final

from dmcopy.cli.output import add_json, emit_json, say
from dmcopy.cli.parser import positive, size
from dmcopy.cli.serving import add_options
from dmcopy.errors import DeviceError, ExitCode, UsageError

if TYPE_CHECKING:
    from dmcopy.block import BlockDevice
    from dmcopy.export.base import FrontEnd
    from dmcopy.export.control import Reply
    from dmcopy.export.volatile import VolatileDisk
    from dmcopy.io import Reactor

_EXAMPLES: Final = """\
examples:
  dmcopy disk serve root.img --name root                    keeps writes back until they are flushed
  dmcopy disk cut root                                      loses what was not flushed
  dmcopy disk cut root --seed 7                             loses, keeps or tears it, as 7 says
  dmcopy disk serve --size 1G --cut-after-writes 500        by itself, where a test wants it
  dmcopy disk serve root.img --log writes.log               for replay-log and its like

A power cut cuts the disk's connections off, and serves on: what was flushed is there, and of the
rest each write is lost, kept or torn by block. To kill a VM does not do that: what it has written
is in the host's page cache, and stays. Discards and zeroing take effect immediately. The host's own
power cut is another matter: the file is made durable when the command ends.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EXAMPLES
    add_json(parser)
    verbs = parser.add_subparsers(dest="verb_name", metavar="VERB", required=True)
    _configure_serve(verbs)
    text = "cut the power of a disk that is served, and have it back"
    cut = verbs.add_parser("cut", help=text, description=text)
    cut.add_argument("name", metavar="DISK", help="its name, or the path of its --socket")
    cut.add_argument("--seed", type=int, metavar="N", help="how (default: all of it is lost)")
    add_json(cut, verb=True)
    cut.set_defaults(verb=_cut)


def run(args: argparse.Namespace) -> int:
    code: int = args.verb(args)
    return code


def _configure_serve(verbs: Any) -> None:
    text = "serve a disk that keeps writes back until they are flushed"
    serve = verbs.add_parser("serve", help=text, description=text)
    serve.add_argument("file", nargs="?", metavar="FILE", help="the file or device behind the disk")
    serve.add_argument(
        "--size",
        type=size,
        metavar="SIZE",
        help="make FILE with this size, or without one a disk that is gone at the end",
    )
    serve.add_argument("--name", metavar="N", help="what the disk is called (default: disk)")
    serve.add_argument(
        "--seed", type=int, metavar="N", help="what the cuts below leave (default: all is lost)"
    )
    serve.add_argument(
        "--cut-after-writes", type=positive, default=0, metavar="N", help="cut the power at write N"
    )
    serve.add_argument(
        "--cut-at-flush", type=positive, default=0, metavar="N", help="cut the power at flush N"
    )
    serve.add_argument(
        "--log",
        metavar="LOG",
        help="a new file that logs all that becomes durable, in the format of dm-log-writes",
    )
    add_options(serve, verb=True)
    serve.set_defaults(verb=_serve)


def _serve(args: argparse.Namespace) -> int:
    if (args.file is None) and (args.size is None):
        raise UsageError("say what the disk is: a FILE, or --size for one that is gone at the end")
    if args.size == 0:
        raise UsageError("a disk has a sector at least: say another --size")
    # Here and not above: the engine takes time to import.
    from dmcopy.cli.dm_run import faults_told
    from dmcopy.cli.serving import Served
    from dmcopy.export.base import Place, find
    from dmcopy.export.volatile import VolatileDisk
    from dmcopy.export.write_log import WriteLog
    from dmcopy.io import Reactor
    from dmcopy.io.reactor import log_exception

    name = args.name or "disk"
    front_end = find(args.via)
    with contextlib.ExitStack() as exits:
        exits.enter_context(faults_told(args))
        reactor = exits.enter_context(Reactor(stacked=True))
        reactor.on_exception = log_exception
        served = front_end(reactor, Place(args.socket, args.listen, args.at, args.tls_creds))
        below = _open(args, exits)
        disk = VolatileDisk(below, reactor)
        disk.cut_after_writes, disk.cut_at_flush = args.cut_after_writes, args.cut_at_flush
        disk.seed = args.seed
        if args.log is not None:
            log = WriteLog(args.log, disk.logical_block_size)
            exits.callback(log.close)
            disk.log = log

        def listen() -> None:
            _listen(args, exits, reactor, served, name, disk)

        Served(reactor, served, as_json=args.json).run({name: disk}, listen)
        disk.cut_at_flush = 0  # this flush is no user's
        disk.close()
    return ExitCode.OK


def _open(args: argparse.Namespace, exits: contextlib.ExitStack) -> BlockDevice:
    """Open the file behind the disk, made where a size was said."""
    from dmcopy.block import BlockDevice

    path = args.file
    if path is None:
        import tempfile

        fd, named = tempfile.mkstemp()
        exits.callback(os.close, fd)
        os.unlink(named)
        os.truncate(fd, args.size << 9)
        path = f"/proc/self/fd/{fd}"
    elif args.size is not None:
        try:
            with open(path, "xb") as new:
                try:
                    new.truncate(args.size << 9)
                except OSError:
                    os.unlink(path)
                    raise
        except OSError as error:
            raise DeviceError(path, "make a disk's file of it", error.errno or 0) from None
    return exits.enter_context(BlockDevice.open(path, write=True, direct=False))


def _listen(
    args: argparse.Namespace,
    exits: contextlib.ExitStack,
    reactor: Reactor,
    served: FrontEnd,
    name: str,
    disk: VolatileDisk,
) -> None:
    """Have cuts cut the disk's users off, and be asked for them."""
    from dmcopy.export.control import Control

    def lost() -> None:
        say(f"dmcopy: {name}: the power was cut")
        served.disconnect(name)

    def cut(request: dict[str, Any], answer: Reply) -> None:
        seed = request.get("seed")
        if seed is not None and not isinstance(seed, int):
            raise UsageError(f"{seed!r} is no seed")
        facts = {"writes": disk.writes, "flushes": disk.flushes}
        disk.cut(seed, lambda: answer(facts))

    disk.power_lost = lost
    path, otherwise = _control(name), "say another --name"
    if args.socket:
        path, otherwise = f"{args.socket}.control", "say another --socket PATH"
    control = Control(reactor, path, {"cut": cut}, otherwise=otherwise)
    exits.callback(control.close)


def _control(name: str) -> str:
    """Return the path of a disk's control socket: beside its own, or by its name."""
    from dmcopy.runtime import runtime_folder

    if "/" in name:
        return name if name.endswith(".control") else f"{name}.control"
    return str(runtime_folder() / f"{name}.control")


def _cut(args: argparse.Namespace) -> int:
    from dmcopy.asking import ask

    answer = ask(_control(args.name), {"do": "cut", "seed": args.seed}, own=False)
    if args.json:
        emit_json({"writes": answer["writes"], "flushes": answer["flushes"]})
    return ExitCode.OK
