"""No control character of a name, a file or a guest reaches a terminal, by whatever prints it."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from dmcopy.cli.shown import Shown, brief, drawing, printable, shown
from dmcopy.cli.streams import relay

EVIL = "\x1b]0;title\x07\x1b[2J\x9b31m\r\x08\u202e"


def test_what_is_not_printable_is_escaped() -> None:
    assert printable("Müsli 日本\n") == "Müsli 日本\\n"
    assert shown("a\tb\nMüsli\x1b[31m\r\x85\u2028\udce9\n") == (
        "a\tb\nMüsli\\x1b[31m\\r\\x85\\u2028\\udce9\n"
    )
    assert shown(EVIL).isprintable()


def test_the_middle_of_a_very_long_line_is_left_out() -> None:
    name = "x" * 1000
    assert brief(name) == name
    said = brief(f"dmcopy: {'x' * 5000}: cannot open it: File name too long")
    assert len(said) < 900
    assert said.startswith("dmcopy: xxx")
    assert "characters are left out" in said
    assert said.endswith("xxx: cannot open it: File name too long"), "what is wrong is still said"


def test_a_stream_writes_only_what_is_printable_but_for_those_who_draw() -> None:
    raw = io.BytesIO()
    stream = Shown(raw, encoding="ascii", write_through=True)
    assert stream.write("\x1b[1mMüsli\udcff\n") == 11
    assert raw.getvalue() == b"\\x1b[1mM\\xfcsli\\udcff\n"
    drawn = drawing(stream)
    drawn.write("\x1b[H")
    drawn.flush()
    assert raw.getvalue().endswith(b"\\udcff\n\x1b[H")
    plain = io.StringIO()
    assert drawing(plain) is plain


def test_the_words_of_a_guest_on_a_terminal() -> None:
    master, slave = pty.openpty()
    try:
        write = relay(slave)
        write("a\tMü".encode()[:-1])  # a character in two parts
        write("Müsli\n".encode()[2:3] + b"\x1b]0;evil\x07\xff\n")
        os.write(slave, b"end")
        told = b""
        while not told.endswith(b"end"):
            told += os.read(master, 4096)
        assert b"\\x1b]0;evil\\x07\\udcff\r\n" in told
        assert "Mü".encode() in told
        relay(slave, draws=True)(b"\x1b[H")
        assert os.read(master, 4096) == b"\x1b[H"
    finally:
        os.close(master)
        os.close(slave)


NAME = f"evil{EVIL}"
BYTES = os.fsencode("n") + b"\xe9\x1b[31m"


@pytest.mark.parametrize(
    ("name", "locale"), [(os.fsencode(NAME), "C.UTF-8"), (BYTES, "C")], ids=["control", "not UTF-8"]
)
@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("copy", "@", "@.out"), 0),
        (("copy", "@", "@.out", "--dry-run"), 0),
        (("copy", "@.nix", "@.out"), 2),
        (("copy", "@", "x", "--@"), 2),
        (("@",), 2),
        (("devices", "who", "@.nix"), 2),
        (("dm", "explain", "0 8 @"), 2),
        (("mirror-log", "info", "@"), 4),
    ],
)
def test_odd_names_on_a_terminal(
    tmp_path: Path, words: tuple[str, ...], code: int, name: bytes, locale: str
) -> None:
    (tmp_path / os.fsdecode(name)).write_bytes(bytes(4096))
    argv = [os.fsencode(word).replace(b"@", name) for word in words]
    if words[0] == "dm":  # a table splits at blanks
        argv[-1] = argv[-1].replace(b"\r", b"")
    got, told = on_a_terminal(tmp_path, argv, locale)
    assert got == code, told
    assert b"Traceback" not in told
    text = told.replace(b"\r\n", b"\n").decode()
    assert shown(text) == text
    assert "\\x1b" in text


def on_a_terminal(folder: Path, argv: list[bytes], locale: str) -> tuple[int, bytes]:
    """Run dmcopy with stdout and stderr on a terminal; return its exit code and what came."""
    master, slave = pty.openpty()
    environment = {**os.environ, "LC_ALL": locale, "TERM": "xterm", "PYTHONPATH": os.getcwd()}
    process = subprocess.Popen(
        [sys.executable, "-m", "dmcopy", *argv],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=slave,
        stderr=slave,
        env=environment,
    )
    os.close(slave)
    told = b""
    try:
        while data := os.read(master, 65536):
            told += data
    except OSError:  # EIO: the last writer is gone
        pass
    finally:
        os.close(master)
    return process.wait(60), told


def test_json_has_the_name_itself(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(bytes(4096))
    argv = [sys.executable, "-m", "dmcopy", "copy", NAME, "out", "--json", "--progress=none"]
    done = subprocess.run(
        argv, capture_output=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.getcwd()}
    )
    assert json.loads(done.stdout)["source"]["path"] == NAME
