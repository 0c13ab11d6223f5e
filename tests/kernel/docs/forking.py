"""`dmcopy`, `python` and `pytest` as forks of a process which has imported all they need already.

A Python takes seconds for that in an emulated guest, and the pages have some forty of them run.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import pkgutil
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmcopy.cli import main

PACKAGES = ("dmcopy.cli", "dmcopy.mapper", "dmcopy.workflows")
NOUNS = ("dm", "mirror", "snapshot")
# It asks by its number: all else about it is in /proc. One that serves is sent signals: a real one.
COMMAND = """#!/bin/sh
case " $1 $2 " in *" serve "*) exec {python} -m dmcopy "$@" ;; esac
mkfifo "{folder}/$$"
echo $$ >"{folder}/asked"
read -r status <"{folder}/$$"
exit "$status"
"""


@contextlib.contextmanager
def commands(folder: Path) -> Iterator[Path]:
    """Make the commands in `folder`, which work for the length of a `with` block."""
    os.mkfifo(folder / "asked")
    for name in ("dmcopy", "python", "pytest"):
        command = folder / name
        command.write_text(COMMAND.format(python=sys.executable, folder=folder))
        command.chmod(0o755)
    server = os.fork()
    if not server:
        try:
            _serve(folder)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    try:
        yield folder
    finally:
        os.kill(server, signal.SIGTERM)
        os.waitpid(server, 0)


def _serve(folder: Path) -> None:
    """Answer for ever. Each answer is a process that runs the command in one of its own."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for name in PACKAGES:
        package = importlib.import_module(name)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{name}.{module.name}")
    for noun in NOUNS:
        main._build_parser(noun)  # which tests/kernel/conftest.py keeps
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nothing waits for the answers
    with open(os.open(folder / "asked", os.O_RDWR)) as asked:  # for writing, too: or it has an end
        for line in asked:
            if not os.fork():
                _answer(folder, int(line))


def _answer(folder: Path, asking: int) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if not child:
        code = 1
        try:
            code = _become(Path("/proc", str(asking)))
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    (folder / str(asking)).write_text(f"{code if code >= 0 else 128 - code}\n")
    os._exit(0)


def _become(asking: Path) -> int:
    """Run the command of a process: with its words, its environment, its folder and its streams."""
    _, command, *words = map(os.fsdecode, (asking / "cmdline").read_bytes().split(b"\0")[:-1])
    pairs = (item.partition(b"=") for item in (asking / "environ").read_bytes().split(b"\0"))
    environment = {name: value for name, _, value in pairs if name}
    os.chdir(asking / "cwd")
    for number, mode in enumerate((os.O_RDONLY, os.O_WRONLY, os.O_WRONLY)):
        fd = os.open(asking / "fd" / str(number), mode)
        os.dup2(fd, number)
        os.close(fd)
    os.environb.clear()
    os.environb.update(environment)
    sys.stdin = sys.__stdin__ = _text(0, "r")  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = _text(1, "w")  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _text(2, "w")  # type: ignore[misc]
    if Path(command).name == "dmcopy":
        sys.argv = ["dmcopy", *words]
        return main.main()
    if Path(command).name == "pytest":
        sys.argv = ["pytest", *words]
        # The plugin of hypothesis would import it at the end, to say that there is nothing to say.
        return int(pytest.main([*words, "-p", "no:hypothesispytest"]))
    sys.path.insert(0, "")
    exec(compile(words[-1], "<string>", "exec"), {"__name__": "__main__"})
    return 0


def _text(number: int, mode: str) -> io.TextIOWrapper:
    file = io.FileIO(number, mode, closefd=False)
    return io.TextIOWrapper(file, write_through=True)
