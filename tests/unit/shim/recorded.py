"""What dmsetup 1.02.185 printed on 6.12, word for word, of the same commands in the same order.

`session.txt` is of what scripts do, `seldom.txt` goes down dmsetup(8): each command, its exit code,
and what it printed on standard output (`o:`) and standard error (`e:`). Where the shim differs,
lines that begin with `=` have what it prints instead. Of the usage only the first line is there.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from dmcopy.shim import main
from dmcopy.shim.devices import Info

from .model import DISKS, MAJOR

if TYPE_CHECKING:
    from dmcopy.shim.devices import Devices

SESSIONS = ("session", "seldom")
_FILES = {
    "FILE": "0 8 zero\n",
    "FILE2": "# comment\n\n  0 8 zero  # tail\n8 8 linear /dev/vda 0\n",
    "BAD": "0 8 nosuch x\n",
    "BAD2": "zero\n",
}
_USAGE = "Usage:\n"
# The number of a device that was there for a moment, which only the kernel's is.
_GONE = re.compile(r" \(\d+:\d+\) failed: (?!No such device or address)")


class Said(NamedTuple):
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    def plain(self) -> Said:
        """Without the usage, and the number of a device that was there for a moment."""
        head, usage, _ = self.err.partition(_USAGE)
        return self._replace(err=_GONE.sub("  failed: ", head) + usage)


class Step(NamedTuple):
    """A command: what dmsetup made of it, and what the shim makes of it if that differs."""

    command: str
    kernel: Said
    shim: Said | None

    def is_shims(self, said: Said) -> bool:
        """Whether the shim may say that. Beside dmsetup's words it has sentences of its own."""
        if self.shim is not None:
            return said.plain() == self.shim
        own = [line for line in said.err.splitlines(True) if not line.startswith("dmcopy: ")]
        return said._replace(err="".join(own)).plain() == self.kernel


def unlike(session: str, play: Callable[[str], Said], *, shim: bool = True) -> str:
    """Play the commands of a session; tell of those that end or print in another way."""
    wrong = []
    for step in _recorded(session):
        said = play(step.command)
        if not (step.is_shims(said) if shim else said.plain() == step.kernel):
            wanted = (step.shim if shim else None) or step.kernel
            wrong.append(f"$ dmsetup {step.command}\nwanted {wanted}\ngot    {said}")
    return "\n".join(wrong)


def by_shim(
    devices: Devices, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[[str], Said]:
    """Return what plays a command by the shim, where `write_files` has written.

    Block devices are called as the kernel calls those that have these numbers there.
    """
    names = {number: path.removeprefix("/dev/") for path, number in DISKS.items()}
    names.update({(MAJOR, minor): f"dm-{minor}" for minor in range(99)})
    for module in ("show", "report", "tree"):
        monkeypatch.setattr(f"dmcopy.shim.{module}.block_name", lambda one: names.get(one, ""))
    monkeypatch.setattr(Info, "read_ahead", 256)

    def play(command: str) -> Said:
        with open("FILE", encoding="utf-8") as stdin:
            monkeypatch.setattr("sys.stdin", stdin)
            code = main.run(shlex.split(command), devices)
        return Said(code, *capfd.readouterr())

    return play


def write_files(named: Callable[[str], str] = str) -> None:
    """Write the tables that commands read into the current folder; `named` names their disks."""
    for name, text in _FILES.items():
        Path(name).write_text(named(text), encoding="utf-8")


def _recorded(session: str) -> list[Step]:
    text = (Path(__file__).parent / f"{session}.txt").read_text(encoding="utf-8")
    return [_step(*part.splitlines()) for part in text.split("$ dmsetup ")[1:]]


def _step(command: str, *lines: str) -> Step:
    own = [line[1:] for line in lines if line.startswith("=")]
    kernel = [line for line in lines if not line.startswith("=")]
    return Step(command, _said(kernel).plain(), _said(own).plain() if own else None)


def _said(lines: list[str]) -> Said:
    code = next(int(line.removeprefix("rc ")) for line in lines if line.startswith("rc "))
    out, err = (
        "".join(f"{line[2:]}\n" for line in lines if line.startswith(mark)) for mark in ("o:", "e:")
    )
    return Said(code, out, err)
