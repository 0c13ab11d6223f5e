"""A limit of the system that is met says nothing of what was asked: it is no "no" that stays."""

from __future__ import annotations

import errno
import mmap
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from dmcopy import ledger
from dmcopy.block import backing, holders, sysfs
from dmcopy.block.sysfs import LIVE
from dmcopy.errors import MissingError
from dmcopy.io import Reactor, backend, probe
from dmcopy.io import ring as rings

CLIENT = """
from dmcopy.errors import DmcopyError
try:
    from dmcopy.kcopyd import Client
    Client(16).destroy()
except DmcopyError as error:
    print(type(error).__name__, error)
"""


@contextmanager
def no_descriptor() -> Iterator[None]:
    """Let no file be opened."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("files", range(5, 11))
def test_the_library_tells_it_in_a_sentence(files: int) -> None:
    """Whatever meets it first: the import of a module, the back end, or what it waits with."""
    done = subprocess.run(
        ["prlimit", f"--nofile={files}", sys.executable, "-c", CLIENT],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert not done.stdout or done.stdout.startswith("MissingError ")


@pytest.mark.parametrize(
    "ask",
    [
        lambda: sysfs.names(),
        lambda: sysfs.read("/proc/self/mountinfo"),
        lambda: holders.mount_points(),
        lambda: holders.who(__file__),
        lambda: backing.of_all(LIVE),
    ],
)
def test_who_uses_a_device_is_not_nobody(ask: Callable[[], object]) -> None:
    """Or what is mounted would be written."""
    ask()
    with no_descriptor(), pytest.raises(MissingError, match="too many files are open"):
        ask()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_back_end_that_could_not_be_tried_is_tried_again(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if lacks := probe()["uring"]:
        pytest.skip(lacks)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(backend, "_ring_lacks", None)
        patch.setattr(rings.Ring, "__init__", refuse)
        assert os.strerror(number) in probe()["uring"]
        with pytest.raises(MissingError, match="it cannot be tried now"):
            Reactor("uring")
        with Reactor() as reactor:
            assert reactor.backend.name == "threads"
        patch.undo()
        assert probe()["uring"] == ""


def test_a_reactor_that_cannot_be_made_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor a raw OSError, where the ring itself meets the limit that its trial did not."""
    if lacks := probe()["uring"]:
        pytest.skip(lacks)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(mmap, "mmap", refuse)
    with pytest.raises(MissingError, match="too many files are open"):
        Reactor("uring")
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_process_that_cannot_be_looked_at_has_not_ended() -> None:
    """Or what it has made would be removed, and what it notes would be of no boot."""
    ours = ledger.identity(os.getpid())
    for ask in (lambda: ledger.alive(ours), ledger.boot_id):
        assert ask()
        with no_descriptor(), pytest.raises(MissingError, match="too many files are open"):
            ask()
