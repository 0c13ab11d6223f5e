"""`dmcopy dm shim`: a `dmsetup` for scripts on a machine without device-mapper."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path
from typing import Final

from dmcopy.atomic import replace_file
from dmcopy.cli.dm_verbs import VerbParser
from dmcopy.cli.output import say
from dmcopy.errors import DeviceError, UsageError
from dmcopy.mapper.control import has_driver

_EPILOG: Final = """\
examples:
  dmcopy dm shim ~/shim
  PATH=~/shim:$PATH ./script-that-calls-dmsetup
  dmcopy dm shim --remove ~/shim

Its devices are userspace devices, in this user's device server, which is started by the first
that is made and ends with the last. As root, and where the kernel has no device-mapper, they have
their nodes in /dev/mapper as always. It takes dmsetup's words, and prints and ends as dmsetup does.
"""
_NAME: Final = "dmsetup"
_MARK: Final = "# made by 'dmcopy dm shim', and removed by 'dmcopy dm shim --remove'"
_SCRIPT: Final = """\
#!{interpreter}
{mark}
import sys
sys.path.append({package!r})
from dmcopy.shim.main import main
main()
"""
_LONGEST: Final = 250
"""What the kernel takes after #! (BINPRM_BUF_SIZE in include/uapi/linux/binfmts.h)."""


def configure(verbs: argparse._SubParsersAction[VerbParser]) -> None:
    text = "put a dmsetup for userspace devices into a directory"
    parser = verbs.add_parser("shim", help=text, description=text)
    parser.epilog = _EPILOG
    parser.add_argument("directory", metavar="DIR", help="where; it is made if it is not there")
    parser.add_argument("--remove", action="store_true", help="remove it from there again")
    parser.set_defaults(verb=_shim, timeout=30.0)


def _shim(args: argparse.Namespace) -> None:
    folder = Path(args.directory)
    path = folder / _NAME
    there = _look(path)
    try:
        if args.remove:
            if not there:
                raise UsageError(f"there is no {path} that could be removed")
            path.unlink()
            return
        folder.mkdir(exist_ok=True)
        replace_file(path, _script().encode())
        path.chmod(0o755)
    except OSError as error:
        what = "remove it" if args.remove else "put a dmsetup there"
        raise DeviceError(str(path if args.remove else folder), what, error.errno or 0) from error
    print(path)
    say(f"first on PATH it is what scripts call: PATH={folder.resolve()}:$PATH")
    if has_driver():
        say("this kernel has device-mapper: the nodes of userspace devices are in /dev/dmcopy")


def _look(path: Path) -> bool:
    """Return whether our dmsetup is there. Raises UsageError for another's."""
    if not os.path.lexists(path):
        return False
    with contextlib.suppress(OSError, ValueError):
        if path.is_file() and not path.is_symlink() and _MARK in path.read_text().splitlines()[:9]:
            return True
    raise UsageError(f"{path} is not dmcopy's: choose another directory")


def _script() -> str:
    """Return the program: this Python, without what only delays its start."""
    package = str(Path(__file__).parents[2])
    interpreter = f"{sys.executable} -ISE"
    if len(interpreter) > _LONGEST or " " in sys.executable:
        # The same file for the shell and for Python, which to the one is a command, to the other
        # a text.
        interpreter = f"/bin/sh\n'''exec' \"{sys.executable}\" -ISE \"$0\" \"$@\"\n' '''"
    return _SCRIPT.format(interpreter=interpreter, mark=_MARK, package=package)
