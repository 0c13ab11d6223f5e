"""What is told never changes what is done: every command, with streams that take nothing."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from dmcopy.cli import streams
from dmcopy.cli.streams import Messages, Output
from dmcopy.errors import ExitCode
from tests.unit.cow.stores import allocate, build

ROOT = Path(__file__).parents[3]


def full() -> int:
    return os.open("/dev/full", os.O_WRONLY)


def unread() -> tuple[int, int]:
    """Return both ends of a pipe that is full: a writer waits for ever."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    try:
        while True:
            os.write(write, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(write, True)
    return read, write


def gone() -> int:
    read, write = os.pipe()
    os.close(read)
    return write


def prepare(folder: Path) -> None:
    rng = random.Random(4)
    (folder / "big").write_bytes(rng.randbytes(1 << 20))
    (folder / "other").write_bytes(rng.randbytes(1 << 20))
    (folder / "small").write_bytes(bytes(512))
    (folder / "zeroed").write_bytes(rng.randbytes(1 << 16))
    pairs = allocate(range(40), 8)
    for name in ("origin", "merged"):
        (folder / name).write_bytes(rng.randbytes(100 * 4096))
    for name in ("cow", "merged-cow"):
        (folder / name).write_bytes(build(8, pairs, 60))
    (folder / "damaged").write_bytes(build(8, [*pairs, (1, 7)], 60))


def walk(folder: Path, closed: str = "", **streams: int) -> tuple[dict[str, int], str]:
    """Run every command; return their codes, and what they have said on stderr."""
    prepare(folder)
    said = folder / "said"
    with ExitStack() as stack, said.open("wb") as err, open(os.devnull, "wb") as out:
        for fd in streams.values():
            stack.callback(os.close, fd)
        argv = [sys.executable, "-m", "tests.unit.cli.walk"]
        subprocess.run(
            ["/bin/sh", "-c", f'exec "$@" {closed}', "sh", *argv],
            cwd=folder,
            # No dmsetup is found: nothing of this machine is looked at, or touched.
            env={**os.environ, "PYTHONPATH": str(ROOT), "PATH": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=streams.get("stdout", out),
            stderr=streams.get("stderr", err),
            timeout=120,
            check=True,
        )
    return json.loads((folder / "codes").read_text()), said.read_text()


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    codes, said = walk(tmp_path_factory.mktemp("control"))
    assert "Traceback" not in said
    assert {0, 2, 4} <= set(codes.values()), "some of each kind"
    return codes


def test_a_reader_of_the_output_that_has_gone_changes_nothing(
    tmp_path: Path, control: dict[str, int]
) -> None:
    codes, said = walk(tmp_path, stdout=gone())
    assert codes == control
    assert "Traceback" not in said
    assert "roken pipe" not in said


def test_streams_without_anybody_change_nothing(tmp_path: Path, control: dict[str, int]) -> None:
    assert walk(tmp_path, "<&- >&-", stderr=gone())[0] == control


def test_messages_that_nobody_reads_change_nothing(tmp_path: Path, control: dict[str, int]) -> None:
    read, write = unread()
    try:
        assert walk(tmp_path, stderr=write)[0] == control
    finally:
        os.close(read)


def test_output_that_cannot_be_written_is_told_where_nothing_else_failed(
    tmp_path: Path, control: dict[str, int]
) -> None:
    codes, said = walk(tmp_path, stdout=full())
    for words, code in control.items():
        assert codes[words] in {code, code or ExitCode.FAILED}, words
    assert codes["cow info cow"] == ExitCode.FAILED
    assert "dmcopy: standard output: cannot write: No space left on device\n" in said
    assert "Traceback" not in said


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def test_a_message_that_is_not_taken_is_dropped_and_later_ones_come(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, write = pipe
    monkeypatch.setattr(streams, "PATIENCE_SECONDS", 0.01)
    messages = Messages(write)
    line = b"x" * 4095 + b"\n"
    for _ in range(100):  # more than any pipe holds by default
        assert messages.write(line) == len(line)
    held = os.read(read, 1 << 20)
    assert len(held) % len(line) == 0, "whole lines only"
    messages.write(b"later\n")
    assert os.read(read, 100) == b"later\n"
    assert os.get_blocking(write), "others write there, too"


@pytest.mark.parametrize("made", [full, gone])
def test_a_message_that_cannot_be_written_is_dropped(made: Callable[[], int]) -> None:
    fd = made()
    messages = Messages(fd)
    assert [messages.write(b"lost"), messages.write(b"lost, too")] == [4, 9]
    os.close(fd)


def test_a_message_that_got_out_in_part_is_ended_first(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, write = pipe
    monkeypatch.setattr(streams, "PATIENCE_SECONDS", 0.01)
    messages = Messages(write)
    long = b"long" * (1 << 18) + b"\n"
    messages.write(long)
    messages.write(b"lost\n")
    got = b""
    while not got.endswith(b"\n"):
        got += os.read(read, 1 << 20)
        messages.write(b"")
    assert got == long


def test_output_waits_for_its_reader_even_where_the_pipe_does_not_block(
    pipe: tuple[int, int],
) -> None:
    read, write = pipe
    os.set_blocking(write, False)
    reader = subprocess.Popen(["wc", "-c"], stdin=read, stdout=subprocess.PIPE)
    with io.BufferedWriter(Output(write, "w", closefd=False)) as output:
        output.write(bytes(1 << 20))
        output.flush()
        assert not output.raw.failure
    os.dup2(read, write)  # no writer is left
    assert int(reader.communicate(timeout=60)[0]) == 1 << 20


def test_what_another_program_prints_is_passed_on_until_it_cannot_be(tmp_path: Path) -> None:
    lost = list[int]()
    kept = os.dup(1)
    try:
        os.dup2(os.open(tmp_path / "out", os.O_CREAT | os.O_WRONLY), 1)
        write = streams.relay(1, lambda: lost.append(1))
        write(b"some")
        os.dup2(full(), 1)
        write(b"more")
        write(b"more")
    finally:
        os.dup2(kept, 1)
        os.close(kept)
    assert ((tmp_path / "out").read_bytes(), lost) == (b"some", [1])
