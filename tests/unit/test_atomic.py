"""Files that are replaced as a whole: the old or the new, durably, and no other's harmed."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from dmcopy.atomic import replace_file
from dmcopy.errors import UsageError

OLD, NEW = b"old", b"new content"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_one_that_is_not_there_is_made_as_open_would_make_it() -> None:
    replace_file("file", NEW)
    Path("other").touch()
    assert Path("file").read_bytes() == NEW
    assert os.stat("file").st_mode == os.stat("other").st_mode
    assert sorted(os.listdir()) == ["file", "other"]


def test_one_that_is_there_keeps_its_mode() -> None:
    Path("file").write_bytes(OLD)
    os.chmod("file", 0o604)
    replace_file("file", NEW)
    assert Path("file").read_bytes() == NEW
    assert stat.S_IMODE(os.stat("file").st_mode) == 0o604


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_one_that_is_there_keeps_its_owner() -> None:
    Path("file").write_bytes(OLD)
    os.chown("file", 1234, 4321)
    replace_file("file", NEW)
    status = os.stat("file")
    assert (status.st_uid, status.st_gid) == (1234, 4321)


@pytest.mark.parametrize("there", [True, False], ids=["there", "dangling"])
def test_a_link_stays_one(there: bool) -> None:
    os.mkdir("far")
    if there:
        Path("far/file").write_bytes(OLD)
    os.symlink("far/file", "link")
    replace_file("link", NEW)
    assert os.readlink("link") == "far/file"
    assert Path("far/file").read_bytes() == NEW
    assert os.listdir("far") == ["file"]


def test_no_neighbour_is_touched_whatever_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one name that it takes beside the file is free, or it takes another."""
    drawn = iter(["1", "2", "3"])
    monkeypatch.setattr("secrets.token_hex", lambda _: next(drawn))
    os.mkfifo(".dmcopy-1")
    os.symlink("victim", ".dmcopy-2")
    Path("victim").write_bytes(OLD)
    replace_file("file", NEW)
    assert Path("victim").read_bytes() == OLD
    assert Path("file").read_bytes() == NEW
    assert sorted(os.listdir()) == [".dmcopy-1", ".dmcopy-2", "file", "victim"]


@pytest.mark.parametrize("kind", ["fifo", "folder", "device", "link to a device"])
def test_what_is_no_file_is_refused(kind: str) -> None:
    path = "odd"
    if kind == "fifo":
        os.mkfifo("odd")
    elif kind == "folder":
        os.mkdir("odd")
    elif kind == "device":
        path = "/dev/null"
    else:
        os.symlink("/dev/null", "odd")
    before = os.lstat(path)
    with pytest.raises(UsageError, match=f"{path} is no regular file"):
        replace_file(path, NEW)
    after = os.lstat(path)
    assert (after.st_mode, after.st_ino) == (before.st_mode, before.st_ino)


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_failure_leaves_things_as_they_were(
    call: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("file").write_bytes(OLD)
    descriptors = os.listdir("/proc/self/fd")

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match=os.strerror(number)):
        replace_file("file", NEW)
    assert Path("file").read_bytes() == OLD
    assert os.listdir() == ["file"]
    assert len(os.listdir("/proc/self/fd")) == len(descriptors)


def test_an_interruption_leaves_things_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", interrupt)
    with pytest.raises(KeyboardInterrupt):
        replace_file("file", NEW)
    assert os.listdir() == []


def test_short_writes_are_gone_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:3]))
    replace_file("file", NEW)
    assert Path("file").read_bytes() == NEW


def test_the_content_is_durable_before_its_name_and_the_name_at_the_end(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut may leave a file that is empty, or none where the caller was told of one."""
    Path("file").write_bytes(OLD)
    told: list[str] = []
    fsync, rename = os.fsync, os.rename

    def synced(fd: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        told.append("folder" if path == folder else f"file with {path.read_text()}")
        fsync(fd)

    def renamed(old: str, new: str) -> None:
        told.append("rename")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    replace_file("file", NEW)
    assert told == ["file with new content", "rename", "folder"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_a_folder_that_cannot_be_synced(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems have no such thing; where it failed, it is told."""
    fsync = os.fsync

    def sync(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", sync)
    if number == errno.EINVAL:
        replace_file("file", NEW)
    else:
        with pytest.raises(OSError, match="Input/output error"):
            replace_file("file", NEW)
    assert Path("file").read_bytes() == NEW
