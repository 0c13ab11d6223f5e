"""`dmcopy vm kernels|run|shell|test|vagrant`: the rig."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import signal
import struct
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Final

from dmcopy.cli.streams import relay
from dmcopy.errors import DeadlineError, MissingError, UsageError
from dmcopy.units import parse_bytes
from dmcopy.vm import Guest, box, kernels
from dmcopy.vm.base import BOOT_TIMEOUT
from dmcopy.vm.disks import parse_disk
from dmcopy.vm.qemu import QemuGuest
from dmcopy.vm.vagrant import UP_TIMEOUT, VagrantMachine

_EXAMPLES: Final = """\
examples:
  dmcopy vm run --kernel 6.12 -- uname -r
  dmcopy vm run --disk 1G,serial=a --disk 64M,serial=b -- lsblk
  dmcopy vm shell --kernel ~/linux/arch/x86/boot/bzImage
  dmcopy vm test --kernel 6.1,6.12 -- -k snapshot

'run' ends with the exit code of the command.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EXAMPLES
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    listing = verbs.add_parser("kernels", help="list kernels, and fetch those that are named")
    listing.add_argument("fetch", nargs="*", metavar="K", help="fetch this kernel: 6.1, 6.12")
    listing.add_argument(
        "--update", action="store_true", help="fetch newer packages where there are some"
    )
    listing.add_argument("--json", action="store_true", help="print JSON on stdout")
    run = verbs.add_parser("run", help="boot, run a command as root, end with its status")
    _add_guest_options(run)
    run.add_argument("-n", "--no-stdin", action="store_true", help="give the command no input")
    run.add_argument(
        "command", nargs="+", type=str, metavar="CMD", help="the command and its arguments"
    )
    shell = verbs.add_parser("shell", help="boot, and open a shell")
    _add_guest_options(shell)
    test = verbs.add_parser("test", help="run the tests marked 'kernel' with pytest, in guests")
    test.add_argument(
        "--kernel", default=",".join(kernels.SUITES), metavar="K,…", help="default: %(default)s"
    )
    test.add_argument("arguments", nargs="*", type=str, metavar="ARG", help="arguments for pytest")
    vagrant = verbs.add_parser("vagrant", help="write the Vagrantfile of guests, to edit")
    vagrant.add_argument(
        "action", choices=("init",), metavar="init", help="write it, and the recipe of its box"
    )
    vagrant.add_argument(
        "folder", nargs="?", metavar="DIR", default=box.FOLDER, help="default: %(default)s"
    )


def _add_guest_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--kernel", metavar="K", help=f"6.1, 6.12 or a path (default: {kernels.DEFAULT})")
    add("--provider", choices=("qemu", "vagrant"), default="qemu", help="default: %(default)s")
    add(
        "--disk",
        action="append",
        default=[],
        metavar="SPEC",
        help="a disk: SIZE,serial=NAME[,file=PATH][,twin] (another has its serial); repeatable",
    )
    add("--memory", default="1G", metavar="SIZE", help="default: %(default)s")
    add("--cpus", type=int, metavar="N", help="processors (default: 1 emulated, 2 under KVM)")
    add("--timeout", type=float, metavar="S", help="limit for the boot and the command, in seconds")
    add(
        "--share",
        action="append",
        default=[],
        metavar="DIR",
        help="a folder that the guest may write to, at the same path; may be repeated",
    )


def run(args: argparse.Namespace) -> int:
    verb: Callable[[argparse.Namespace], int] = {
        "kernels": _kernels,
        "run": _run,
        "shell": _shell,
        "test": _test,
        "vagrant": _vagrant,
    }[args.verb]
    return verb(args)


def _kernels(args: argparse.Namespace) -> int:
    for name in args.fetch:
        if args.update and name in kernels.SUITES:
            kernels.fetch(name)
        else:
            kernels.find(name)
    here = kernels.cached()
    rows: list[dict[str, str | None]] = [
        {"kernel": kernel.short, "version": kernel.version, "path": str(kernel.image)}
        for kernel in here
    ]
    missing = [name for name in kernels.SUITES if name not in {kernel.short for kernel in here}]
    rows += [{"kernel": name, "version": None, "path": None} for name in missing]
    if args.json:
        print(json.dumps(rows))
        return 0
    for row in rows:
        where = row["path"] or f"not fetched; Debian {kernels.SUITES[str(row['kernel'])]} has it"
        print(f"{row['kernel']:<6} {row['version'] or '-':<22} {where}")
    return 0


def _run(args: argparse.Namespace) -> int:
    deadline = time.monotonic() + (args.timeout or 86400)
    stdin = None if args.no_stdin else _input()
    with _guest(args) as guest:
        left = deadline - time.monotonic()
        if left <= 0:
            raise DeadlineError(f"nothing of the {args.timeout:.0f} s was left after the boot")
        command = guest.start(
            args.command,
            stdin=stdin,
            # When the reader has gone, a program that writes is told so, as in a pipe here.
            stdout=relay(1, lambda: command.signal(signal.SIGPIPE)),
            stderr=relay(2),
        )
        return guest.wait(command, left).status


@contextlib.contextmanager
def _guest(args: argparse.Namespace) -> Iterator[Guest]:
    if args.timeout is not None and args.timeout <= 0:
        raise UsageError(f"--timeout {args.timeout:g}: give a number of seconds above 0")
    disks = [parse_disk(text) for text in args.disk]
    if args.provider == "vagrant":
        if args.share or args.cpus:
            raise UsageError("--share and --cpus are not for Vagrant: its Vagrantfile says that")
        memory = parse_bytes(args.memory, default="m") >> 20
        kernel, timeout = args.kernel or kernels.DEFAULT, args.timeout or UP_TIMEOUT
        with (
            VagrantMachine(kernel, disks, memory, timeout=timeout) as machine,
            machine.boot() as guest,
        ):
            yield guest
        return
    with QemuGuest(
        kernel=args.kernel or kernels.DEFAULT,
        disks=disks,
        memory=args.memory,
        timeout=min(args.timeout or BOOT_TIMEOUT, BOOT_TIMEOUT),
        share=[Path(word) for word in args.share],
        cpus=args.cpus,
    ) as guest:
        yield guest


def _input() -> IO[bytes] | None:
    """Our standard input, unless reading it would stop us: a job in the background of a shell."""
    try:
        fd = sys.stdin.fileno()
    except (AttributeError, ValueError, OSError):  # none, or closed, or no file at all
        return None
    if os.isatty(fd) and os.tcgetpgrp(fd) != os.getpgrp():
        return None
    return sys.stdin.buffer


def _shell(args: argparse.Namespace) -> int:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("vm shell needs a terminal: use vm run -- CMD elsewhere")
    with _guest(args) as guest:
        before = termios.tcgetattr(0)
        tty.setraw(0)
        try:
            with open(0, "rb", buffering=0, closefd=False) as terminal:
                command = guest.start(
                    ["/bin/bash", "-l"], stdin=terminal, stdout=relay(1, draws=True), tty=True
                )
                signal.signal(signal.SIGWINCH, lambda *_: command.resize(_window()))
                command.resize(_window())
                return guest.wait(command, args.timeout or 7 * 86400).status
        finally:
            termios.tcsetattr(0, termios.TCSADRAIN, before)


def _window() -> bytes:
    return fcntl.ioctl(0, termios.TIOCGWINSZ, struct.pack("HHHH", 0, 0, 0, 0))


def _test(args: argparse.Namespace) -> int:
    try:
        import pytest  # noqa: F401
    except ImportError:
        raise MissingError("no pytest here: pip install 'dmcopy[pytest]'") from None
    argv = [sys.executable, "-m", "pytest", "--vm", args.kernel, "-m", "kernel", *args.arguments]
    sys.stdout.flush()
    os.execv(argv[0], argv)


def _vagrant(args: argparse.Namespace) -> int:
    for path in box.init(Path(args.folder)):
        print(path)
    return 0
