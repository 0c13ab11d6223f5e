"""What dmsetup 1.02.185 printed on 6.12, word for word, of the same commands in the same order."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from dmcopy.shim import main
from dmcopy.shim.devices import Info

from .model import DISKS, MAJOR, Model

FILES = {
    "FILE": "0 8 zero\n",
    "FILE2": "# comment\n\n  0 8 zero  # tail\n8 8 linear /dev/vda 0\n",
    "BAD": "0 8 nosuch x\n",
    "BAD2": "zero\n",
}
# The number of a device that was there for a moment, which only the kernel's is.
GONE = " (253:0) failed"


def recorded() -> list[tuple[str, int, str, str]]:
    """The commands of the session, each with its exit code and what it printed on both streams."""
    found = []
    text = (Path(__file__).parent / "session.txt").read_text(encoding="utf-8")
    for part in text.split("$ dmsetup ")[1:]:
        command, code, *lines = part.splitlines()
        out = "".join(line[2:] + "\n" for line in lines if line.startswith("o:"))
        err = "".join(line[2:] + "\n" for line in lines if line.startswith("e:"))
        found.append((command, int(code.removeprefix("rc ")), out, err.replace(GONE, "  failed")))
    return found


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Model:
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    model = Model()
    names = {number: path.removeprefix("/dev/") for path, number in DISKS.items()}
    names.update({(MAJOR, minor): f"dm-{minor}" for minor in range(99)})
    for module in ("show", "report", "tree"):
        monkeypatch.setattr(f"dmcopy.shim.{module}.block_name", lambda one: names.get(one, ""))
    monkeypatch.setattr(Info, "read_ahead", 256)
    return model


def test_all_is_printed_as_dmsetup_prints_it(
    kernel: Model,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    wrong = []
    for command, code, out, err in recorded():
        with (tmp_path / "FILE").open(encoding="utf-8") as stdin:
            monkeypatch.setattr("sys.stdin", stdin)
            got = main.run(shlex.split(command), kernel)
        printed = capfd.readouterr()
        said = "".join(
            line + "\n" for line in printed.err.splitlines() if not line.startswith("dmcopy: ")
        )
        if (got, printed.out, said) != (code, out, err):
            wrong.append(command)
            print(f"$ dmsetup {command}\nwanted {(code, out, err)}")
            print(f"got    {(got, printed.out, said)}")
    assert wrong == []
