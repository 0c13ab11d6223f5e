"""Signals: every command ends in bounded time, with its books kept, and says how far it is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dmcopy.cli import signals, streams
from dmcopy.cli.main import main
from dmcopy.errors import ExitCode
from tests.unit.cli.test_streams import unread
from tests.waiting import Program, until

SIZE = 8 << 20
DEADLINE = 60.0
MAPPED = ["--map", "map", "--map-interval", "0.01"]


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("src").write_bytes(os.urandom(SIZE))


def start(*words: str, before: Callable[[], object] | None = None, **how: Any) -> Any:
    """Start a command that is slow enough to be found at work."""
    command = [sys.executable, "-m", "dmcopy", *words]
    return Program(command, preexec_fn=before, **how)


def saved() -> int:
    """Return how many sectors the map says are written."""
    try:
        state = json.loads(Path("map.dests").read_text())
    except FileNotFoundError:
        return 0
    return sum(count for _, count in state["destinations"][0]["written"])


@pytest.mark.parametrize("number", signals.ENDING)
def test_a_copy_that_nobody_hears_ends_with_its_map_saved(number: int) -> None:
    read, write = unread()
    with start("copy", "src", "dst", "--limit", "1M", *MAPPED, stderr=write) as process:
        os.close(write)
        until(saved, "something in the map")
        process.send_signal(number)
        assert process.wait(DEADLINE) == ExitCode.INTERRUPTED
    os.close(read)
    done = saved() << 9
    assert 0 < done < SIZE
    assert Path("src").read_bytes()[:done] == Path("dst").read_bytes()[:done]
    assert main(["copy", "src", "dst", *MAPPED]) == 0
    assert Path("src").read_bytes() == Path("dst").read_bytes()


def test_what_is_ignored_from_the_start_stays_so() -> None:
    def ignore() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    words = ["copy", "src", "dst", "--limit", "1M", *MAPPED]
    with start(*words, before=ignore, stderr=subprocess.PIPE, text=True) as process:
        until(saved, "something in the map")
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGHUP)
        before = saved()
        until(lambda: saved() > before, "more in the map")
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=DEADLINE)
    assert process.returncode == ExitCode.INTERRUPTED
    assert "dmcopy: interrupted; the same command with --map map resumes from here\n" in said


@pytest.mark.parametrize("number", signals.ENDING)
def test_a_command_that_waits_for_events_ends(number: int) -> None:
    with start("devices", "watch", stderr=subprocess.PIPE, text=True) as process:
        assert "watching" in process.stderr.readline()
        process.send_signal(number)
        _, said = process.communicate(timeout=DEADLINE)
    assert (process.returncode, said) == (ExitCode.INTERRUPTED, "dmcopy: interrupted\n")


def test_how_a_program_ended_is_told_to_one_whose_parent_ignores_that() -> None:
    def ignore() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)

    Path("dmsetup").write_text("#!/bin/sh\necho Device does not exist. >&2\nexit 1\n")
    Path("dmsetup").chmod(0o755)
    env = {**os.environ, "PATH": f"{Path.cwd()}:{os.environ['PATH']}"}
    with start("dm", "remove", "gone", before=ignore, env=env, stderr=subprocess.PIPE) as process:
        _, said = process.communicate(timeout=DEADLINE)
    assert (process.returncode, b"cannot remove it" in said) == (ExitCode.FAILED, True), said


def test_a_held_back_alarm_ends_what_does_not_end_by_itself() -> None:
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    try:
        with signals.handled():
            assert signal.SIGALRM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
        assert signal.SIGALRM in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


HURRIED = """
import sys
from dmcopy.__main__ import run
from dmcopy.cli import signals

signals.GRACE_SECONDS = 0.5
sys.argv = ["dmcopy", "copy", "src", "dst"]
sys.exit(run())
"""


def test_output_that_nobody_reads_holds_nothing_up() -> None:
    read, write = unread()
    with Program([sys.executable, "-c", HURRIED], stdout=write) as process:
        os.close(write)
        until(lambda: Path("dst").exists() and is_copied(), "the end of the copy")
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE) == ExitCode.INTERRUPTED
    os.close(read)


def is_copied() -> bool:
    return Path("src").read_bytes() == Path("dst").read_bytes()


@pytest.mark.parametrize(
    ("how", "says"),
    [("plain", " of 8192 KiB"), ("none", "copy: "), ("json", '"seconds_left": ')],
)
def test_it_says_how_far_it_is_when_it_is_asked(how: str, says: str) -> None:
    words = ["copy", "src", "dst", "--limit", "512K", "--progress", how, *MAPPED]
    with start(*words, stderr=subprocess.PIPE, text=True) as process:
        until(saved, "something in the map")
        process.send_signal(signal.SIGUSR1)
        assert any(says in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=DEADLINE)
    assert process.returncode == ExitCode.INTERRUPTED


def test_an_interrupt_without_a_map_says_what_it_would_have_saved() -> None:
    words = ["copy", "src", "dst", "--limit", "1M", "--progress", "json"]
    with start(*words, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if json.loads(line).get("sectors", 0) and json.loads(line)["event"] == "progress":
                break
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=DEADLINE)
    assert process.returncode == ExitCode.INTERRUPTED
    assert "KiB of it for another run to resume\n" in said.splitlines(keepends=True)[-1]
    assert "dmcopy: interrupted; --map FILE would have saved " in said


class Work:
    """Work that does not end when it is asked to."""

    asked = 0

    def interrupt(self) -> None:
        self.asked += 1


class Ended(BaseException):
    """The process would have ended here."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """A clock to be set, and no process that ends."""

    def end(code: int) -> None:
        assert code == ExitCode.INTERRUPTED
        raise Ended

    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr(os, "_exit", end)
    with signals.handled():
        yield now


def test_a_second_signal_ends_the_process_at_once(clock: list[float]) -> None:
    work = Work()
    with signals.interrupting(work):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGHUP)  # at the same moment: as one with it
        assert work.asked == 1
        clock[0] += 1
        with pytest.raises(Ended):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.usefixtures("clock")
def test_work_that_does_not_end_in_time_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "GRACE_SECONDS", 0.5)
    work = Work()
    with signals.interrupting(work):
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Ended):
            signal.pause()


def test_without_work_it_is_an_exception_and_what_was_before_comes_back() -> None:
    before = [signal.getsignal(number) for number in signals.ENDING]
    with pytest.raises(KeyboardInterrupt), signals.handled():
        os.kill(os.getpid(), signal.SIGHUP)
    assert [signal.getsignal(number) for number in signals.ENDING] == before


@pytest.mark.parametrize("number", signals.ENDING)
def test_the_last_moment_is_no_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    """When the work is done, and what it printed is still to get out."""
    finish, calls = streams.finish, list[int]()

    def finished(code: int) -> int:
        calls.append(code)
        if len(calls) == 1:
            os.kill(os.getpid(), number)
        return finish(code)

    monkeypatch.setattr(streams, "finish", finished)
    assert main(["devices", "list"]) == ExitCode.INTERRUPTED
    assert calls == [0, ExitCode.INTERRUPTED]
    assert capsys.readouterr().err == "dmcopy: interrupted\n"


def test_nothing_is_caught_before_there_is_a_stream_to_tell_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A signal that comes while the streams are opened does what it does to any program."""
    before = [signal.getsignal(number) for number in signals.ENDING]
    seen = list[object]()

    def opened() -> None:
        seen.extend(signal.getsignal(number) for number in signals.ENDING)

    monkeypatch.setattr(streams, "open_streams", opened)
    monkeypatch.setattr(sys, "argv", ["dmcopy", "--version"])
    with pytest.raises(SystemExit):
        main()
    assert seen == before


ENTRY = """
import signal
import dmcopy.__main__ as entry
import dmcopy.cli.main as command
command.main = lambda: signal.getsignal(signal.SIGINT) == signal.{}
raise SystemExit(0 if entry.run() else 1)
"""


@pytest.mark.parametrize(("before", "then"), [("SIG_DFL", "SIG_DFL"), ("SIG_IGN", "SIG_IGN")])
def test_a_command_that_has_hardly_begun_is_ended_without_a_traceback(
    before: str, then: str
) -> None:
    """Python's own handler would print one, for as long as modules are imported."""

    def set_up() -> None:
        signal.signal(signal.SIGINT, getattr(signal, before))

    words = [sys.executable, "-c", ENTRY.format(then)]
    with Program(words, preexec_fn=set_up) as process:
        assert process.wait(DEADLINE) == 0


def test_an_interrupted_check_is_not_a_good_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dmcopy.mirror.check import LegComparison

    run = LegComparison.run

    def interrupted(self: LegComparison) -> object:
        os.kill(os.getpid(), signal.SIGTERM)
        return run(self)

    monkeypatch.setattr(LegComparison, "run", interrupted)
    Path("twin").write_bytes(Path("src").read_bytes())
    assert main(["mirror", "check", "src", "twin"]) == ExitCode.INTERRUPTED
    assert "dmcopy: interrupted; what was not compared may differ" in capsys.readouterr().err
