"""Where output cannot go: a full disk, a reader that went away, streams that were closed."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from dmcopy.cli import cow_facts
from dmcopy.cli.main import main
from dmcopy.errors import DeviceError, DmcopyError, ExitCode
from tests.unit.cow.stores import allocate, build


@pytest.fixture
def cow(tmp_path: Path) -> str:
    path = tmp_path / "cow"
    path.write_bytes(build(8, allocate(range(20_000), 8), 20_200))
    return str(path)


def shell(redirected: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dmcopy", *words]
    script = ["bash", "-c", f'set -o pipefail; "$@" {redirected}', "bash", *command]
    return subprocess.run(script, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(("verb", "buffering"), [("dump", ""), ("info", "1"), ("--help", "")])
def test_a_full_disk_is_one_sentence(
    cow: str, verb: str, buffering: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", buffering)
    ended = shell(">/dev/full", "cow", verb, cow)
    assert ended.returncode == 1
    assert ended.stderr == "dmcopy: standard output: cannot write: No space left on device\n"


def test_a_reader_may_go_away(cow: str) -> None:
    ended = shell("| head -c 1", "cow", "dump", cow)
    assert (ended.returncode, len(ended.stdout), ended.stderr) == (0, 1, "")


@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_closed_streams_are_not_missed(cow: str, closed: str) -> None:
    before = Path(cow).read_bytes()
    ended = shell(closed, "cow", "dump", cow)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert Path(cow).read_bytes() == before


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (KeyboardInterrupt(), ExitCode.INTERRUPTED, "interrupted"),
        (DmcopyError("it is too wet"), ExitCode.FAILED, "it is too wet"),
    ],
)
def test_the_notes_of_an_error_follow_it(
    error: BaseException,
    code: int,
    says: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def info(_: object) -> None:
        error.add_note("'merge before' stopped halfway: go on with finish")
        raise error

    monkeypatch.setattr(cow_facts, "_info", info)
    assert main(["cow", "info", "x"]) == code
    said = capsys.readouterr().err.splitlines()
    assert said == [f"dmcopy: {says}", "dmcopy: 'merge before' stopped halfway: go on with finish"]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.EMFILE, "files"), "too many files are open"),
        (BlockingIOError(errno.EAGAIN, "fork"), "no more processes and threads may be started"),
        (RuntimeError("can't start new thread"), "no more processes and threads may be started"),
        (RuntimeError("can't allocate read lock"), "there is no memory left for this"),
        (OSError(errno.ENOMEM, "fork"), "there is no memory left for this"),
        (MemoryError(), "there is no memory left for this"),
    ],
)
def test_a_limit_of_the_system_is_one_sentence(
    error: Exception, says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever line meets it: ulimit, prlimit(1), a container."""

    def info(_: object) -> None:
        raise error

    monkeypatch.setattr(cow_facts, "_info", info)
    assert main(["cow", "info", "x"]) == ExitCode.MISSING
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"dmcopy: {says}")
    with pytest.raises(type(error)):
        main(["--traceback", "cow", "info", "x"])


def test_a_limit_met_at_a_device_is_the_machine_s_not_the_device_s() -> None:
    for number in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        assert DeviceError("x", "open it", number).exit_code == ExitCode.MISSING
    assert DeviceError("x", "open it", errno.EIO).exit_code == ExitCode.FAILED


@pytest.mark.parametrize("error", [OSError(errno.EIO, "x"), RuntimeError("x"), ValueError("x")])
def test_what_is_no_limit_is_not_taken_for_one(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def info(_: object) -> None:
        raise error

    monkeypatch.setattr(cow_facts, "_info", info)
    with pytest.raises(type(error)):
        main(["cow", "info", "x"])


@pytest.mark.parametrize("words", [["copy", "a", "b"], ["zero", "a"], ["cow", "merge", "a", "b"]])
def test_a_working_folder_that_is_gone_is_told(words: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", 'rmdir "$PWD" && exec "$@"', "sh", sys.executable, "-m", "dmcopy", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    said = "dmcopy: the working folder is gone: go to another one (cd)\n"
    assert (done.returncode, done.stderr) == (2, said)
