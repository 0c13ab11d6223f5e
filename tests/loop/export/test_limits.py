"""Where the system gives no more threads or memory: all that was made is taken away, or told."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dmcopy.block import file_mounts
from dmcopy.errors import MissingError
from dmcopy.export.base import Place
from dmcopy.export.fuse.files import FuseFiles
from dmcopy.export.loop import LoopDevices
from dmcopy.ledger import Ledger
from tests.loop.export.conftest import Serving
from tests.loop.export.here import Here

pytestmark = pytest.mark.loop
MIB = 1 << 20
SIZE = 8 * MIB


def made_of(file: Path) -> list[str]:
    """Return the loop devices that the system knows to be made of a file."""
    found = Path("/sys/block").glob("loop*/loop/backing_file")
    return [str(one) for one in found if one.read_text().strip().startswith(str(file))]


def served(serving: Serving, kind: type[FuseFiles | LoopDevices]) -> tuple[Path, FuseFiles]:
    if kind is LoopDevices and (reason := LoopDevices.why_not()):
        pytest.skip(reason)
    image = serving.image("image", SIZE)
    serving.make("a", f"0 {SIZE >> 9} linear {image} 0")
    path = serving.folder / "served"
    place = Place(at=str(path))
    return path, kind(serving.mapper.reactor, place, ledger=serving.ledger)  # type: ignore[return-value]


def assert_nothing_is_left(serving: Serving, path: Path) -> None:
    assert not os.path.lexists(path)
    assert not file_mounts.source_of(str(path))
    assert not made_of(path)
    assert serving.ledger.entries() == []


@pytest.mark.parametrize(
    ("kind", "threads"),
    [(FuseFiles, 0), (FuseFiles, 1), *((LoopDevices, left) for left in range(4))],
)
def test_without_threads_nothing_is_left_behind(
    serving: Serving,
    only_threads: Callable[[int], None],
    kind: type[FuseFiles],
    threads: int,
) -> None:
    """Whichever thread cannot be started: one that makes it, or one that would take it away."""
    path, front_end = served(serving, kind)
    only_threads(threads)
    refused = pytest.raises(MissingError, match="no more processes and threads may be started")
    with refused, front_end:
        front_end.add("a", serving.mapper.open("a"))
    assert_nothing_is_left(serving, path)


def test_without_threads_one_that_is_in_use_stays_and_is_cut_off_at_the_end(
    serving: Serving, only_threads: Callable[[int], None]
) -> None:
    path, front_end = served(serving, FuseFiles)
    front_end.add("a", serving.mapper.open("a"))
    with serving.opened(str(path)) as fd:
        only_threads(0)
        with pytest.raises(MissingError, match="no more processes and threads may be started"):
            front_end.remove("a")
        assert file_mounts.source_of(str(path)), "it is still served"
        with pytest.raises(MissingError, match="no more processes and threads may be started"):
            front_end.close()
        with pytest.raises(OSError, match="not connected"):
            os.pread(fd, 512, 0)
        only_threads(9)
    assert_nothing_is_left(serving, path)


def test_without_memory_for_its_requests_nothing_is_left_mounted(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, front_end = served(serving, FuseFiles)

    def none(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("dmcopy.export.fuse.file.Memory", none)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(MemoryError):
        front_end.add("a", serving.mapper.open("a"))
    assert_nothing_is_left(serving, path)
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_program_that_cannot_be_started_leaves_nothing(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, front_end = served(serving, LoopDevices)

    def run(*_: object, **__: object) -> None:
        raise OSError(12, os.strerror(12))

    with monkeypatch.context() as patch:
        patch.setattr("dmcopy.block.loop.tools.run", run)
        with pytest.raises(OSError, match="Cannot allocate memory"):
            front_end.add("a", serving.mapper.open("a"))
        assert_nothing_is_left(serving, path)
    front_end.add("a", serving.mapper.open("a"))
    with monkeypatch.context() as patch:
        patch.setattr("subprocess.Popen", run)  # to detach it takes no program
        front_end.close()
    assert_nothing_is_left(serving, path)


def test_one_that_cannot_be_closed_keeps_no_other(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a thread or a file that it takes is not to be had."""
    for name in "abc":
        serving.make(name, f"0 {SIZE >> 9} linear {serving.image(name, SIZE)} 0")
    front_end = FuseFiles(serving.mapper.reactor, ledger=serving.ledger)
    monkeypatch.setattr("dmcopy.export.fuse.files.runtime_folder", lambda *_: serving.folder / "s")
    (serving.folder / "s").mkdir()
    paths = [Path(front_end.add(name, serving.mapper.open(name))) for name in "abc"]
    remove = front_end.remove

    def failing(name: str) -> None:
        if name == "b":
            raise OSError(24, os.strerror(24))
        remove(name)

    monkeypatch.setattr(front_end, "remove", failing)
    with pytest.raises(OSError, match="Too many open files"):
        front_end.close()
    for path in paths:
        assert_nothing_is_left(serving, path)


def test_a_server_that_may_not_have_the_memory_leaves_nothing(here: Here) -> None:
    """And says which limit was met; 64 MiB are too few for its requests, or for a thread."""
    image = here.image("image", SIZE)
    words = ["prlimit", f"--as={64 * MIB}", sys.executable, "-m", "dmcopy", "dm", "create", "x"]
    said = here.run(*words, "--table", f"0 {SIZE >> 9} linear {image} 0", code=5)
    assert said.count("\n") == 1
    assert "memory" in said or "raise the limit" in said
    (entry,) = Ledger().entries()
    assert entry.kind == "server"
    assert not made_of(here.folder)
    os.kill(int(entry.uuid.split()[0]), signal.SIGTERM)
