"""The code blocks of README and guides: found, run as printed, and their output compared.

    ```console          a session: lines after `$ ` are commands, what follows is their output
    ```python           a program
    ```text             lines that a test reads from the page, see READ_BY, and runs with stand-ins

A word behind the language says where a block runs: `guest` (real device-mapper, as root, with the
empty disks /dev/vda to /dev/vdd), `loop` (here, as root with loop devices and FUSE, in a mount
namespace with nothing of others in /mnt and dmcopy's folders), `rig` (here, and it boots guests),
`checkout` (here, at the top of the checkout); without one it runs anywhere.
A word with a dot in it is the name of a file, which is written for the blocks that follow. All
blocks of a page that run in one place run in order, in one folder.

In output a line of `...` stands for any lines and `…` for anything within one; times, rates, how
full a store is (`0.8%  2 MiB`) and versions of the machine's (`kernel 6.12.1`, `udev 252`) are
taken to be equal, and so are runs of blanks. A command that fails must be followed by `echo $?`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
FILES: Final = [
    path
    for path in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *sorted(ROOT.glob("dmcopy/guide/*.md")),
    )
    if path.exists()
]
PLACES: Final = ("", "checkout", "guest", "loop", "rig")
READ_BY: Final = {
    "dmcopy/guide/mirrors.md": "tests/kernel/workflows/test_mirror_nbd.py",  # two machines
    "dmcopy/guide/serve.md": "tests/loop/export/test_strangers.py",  # a server that has a name
    "dmcopy/guide/targets.md": "tests/unit/test_plugins.py",  # an installed package
    "dmcopy/guide/testing.md": "tests/unit/examples/test_ci.py",  # a CI service, and its packages
}
"""Pages with a block that runs with stand-ins, for what is said behind; and the test that does."""
LANGUAGES: Final = ("console", "python", "text")
SECONDS: Final = 280
_SYSTEM_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MARK: Final = "--- the next command ---"
# Where /dev/kvm is there and does not work, each boot says so.
_OF_THIS_MACHINE: Final = re.compile(r"^dmcopy: accelerator .*\n", re.MULTILINE)
_FENCE: Final = re.compile(r"^```(\w*) ?(.*)$")
_VARIES: Final = re.compile(
    r"\d[\d.,]*%  +\d[\d.,]* [KMGT]?i?B\b"  # how full: a mounted file system writes when it likes
    r"|\b(?:kernel|dm|dmsetup|udev) \d[^\s,]*"  # on what tests ran
    r"|\d[\d.,]* ?(?:(?:[KMGT]i)?B/s|m?s\b(?: \(\d+:\d\d:\d\d\))?|min\b)"
)


@dataclass(frozen=True)
class Block:
    """A fenced block of `path`, whose text begins behind line `line`."""

    path: Path
    line: int
    language: str
    place: str
    text: str

    @property
    def is_file(self) -> bool:
        """Whether the block is a file's content, for the blocks behind it."""
        return "." in self.place

    @property
    def where(self) -> str:
        """The block's place in the checkout, as an editor understands it."""
        return f"{self.path.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Step:
    """A command of a session, and the output that is shown for it."""

    command: str
    shown: str


def blocks(path: Path, place: str | None = None) -> list[Block]:
    """Return the blocks of a file; with `place`, those that are run there."""
    found = list(_parse(path))
    if place is None:
        return found
    runs = [block for block in found if block.place == place and block.language != "text"]
    return runs and [block for block in found if block in runs or block.is_file]


def read_block(page: str) -> str:
    """Return the text of a page's one block that a test of its own runs."""
    (found,) = [block for block in blocks(ROOT / page) if block.language == "text"]
    return found.text


def _parse(path: Path) -> Iterator[Block]:
    begin: tuple[int, str, str] | None = None
    lines: list[str] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        fence = _FENCE.match(line)
        if begin is not None and line == "```":
            yield Block(path, *begin, "\n".join(lines) + "\n")
            begin = None
        elif begin is not None:
            lines.append(line)
        elif fence:
            begin, lines = (number, fence[1], fence[2]), []
    assert begin is None, f"{path}:{begin}: a block that does not end"


def steps(text: str) -> list[Step]:
    """Cut a session into commands and what is shown for each."""
    found: list[Step] = []
    lines = text.splitlines(keepends=True)
    while lines:
        first = lines.pop(0)
        assert first.startswith("$ "), f"a session begins with a command, not with {first!r}"
        command = first[2:]
        while command.endswith("\\\n"):
            command += lines.pop(0)
        shown = ""
        while lines and not lines[0].startswith("$ "):
            shown += lines.pop(0)
        found.append(Step(command, shown))
    return found


def run(block: Block, folder: Path, *wrapper: str, commands: Path | None = None) -> None:
    """Run a block in `folder`; an AssertionError tells where and how it differs from the page.

    `wrapper`: the words of a command that runs the words behind it. `commands`: where there is a
    `dmcopy` and a `python` that stand for this Python's.
    """
    if block.place == "checkout":
        folder = ROOT
    first = commands or Path(sys.executable).parent
    if block.is_file:
        (folder / block.place).write_text(block.text)
        return
    if block.language == "python":
        python = sys.executable if commands is None else str(commands / "python")
        done = _run([*wrapper, python, "-c", block.text], folder, first)
        assert done.returncode == 0, f"{block.where} fails:\n{done.stdout}"
        return
    session = steps(block.text)
    between = f"_status=$?; echo '{_MARK}' $_status; (exit $_status)\n"
    script = between + "".join(f"{step.command}{between}" for step in session)
    done = _run([*wrapper, "bash", "-c", script], folder, first)
    everything = _OF_THIS_MACHINE.sub("", done.stdout)
    said = re.split(f"{_MARK} (\\d+)\n", everything)[2:]
    outputs, statuses = said[:-1:2], said[1::2]
    assert len(outputs) == len(session), f"{block.where} ends early:\n{''.join(said)}"
    asked = [step.command.strip() == "echo $?" for step in session[1:]] + [False]
    for step, output, status, told in zip(session, outputs, statuses, asked, strict=True):
        line = f"{block.where}: $ {step.command}"
        assert status == "0" or told, f"{line}ends with {status}:\n{output}"
        if step.shown:
            assert matches(step.shown, output), f"{line}shows\n{step.shown}and says\n{output}"


def matches(shown: str, output: str) -> bool:
    """Whether `output` is what a page shows."""
    pattern = "".join(
        "(?:.*\n)*?" if line == "..." else f"{_loosely(line)}\n" for line in shown.splitlines()
    )
    return re.fullmatch(pattern, output) is not None


def _loosely(line: str) -> str:
    pieces = []
    for piece in line.split("…"):
        at, text = 0, ""
        for varies in _VARIES.finditer(piece):
            text += re.escape(piece[at : varies.start()]) + f"(?:{_VARIES.pattern})"
            at = varies.end()
        pieces.append(text + re.escape(piece[at:]))
    return re.sub(r"(\\ ){2,}", " +", ".*".join(pieces))


def _run(argv: list[str], folder: Path, first: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": f"{first}:{Path(sys.executable).parent}:{_SYSTEM_PATH}",
        "HOME": str(folder),
        "TMPDIR": os.environ.get("TMPDIR", "/tmp"),
        "LC_ALL": "C.UTF-8",
        "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")),
    }
    return subprocess.run(
        argv,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        timeout=SECONDS,
        check=False,
    )
