"""Where a user's servers are, whatever the environment says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dmcopy.errors import UsageError
from dmcopy.runtime import control_path, environment, folder_path, nodes_folder, runtime_folder


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Be a user with a runtime folder of the system's, and none asked for."""
    monkeypatch.delenv("DMCOPY_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


def test_it_is_one_for_a_user(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert folder_path() == user / "dmcopy"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert folder_path() == Path("/run/user/1000/dmcopy")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert folder_path() == Path("/run/dmcopy")
    assert nodes_folder() == "/dev/dmcopy"


@pytest.mark.usefixtures("user")
def test_a_relative_one_of_the_systems_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """The XDG standard says so: the server, whose working folder is /, would be elsewhere."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", "run")
    assert folder_path() == Path("/run/user/1000/dmcopy")


def test_a_server_is_where_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it has another working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DMCOPY_RUNTIME_DIR", "mine")
    monkeypatch.setenv("DMCOPY_MAPPER_DIR", "nodes")
    here, given = control_path(), environment()
    assert here == f"{tmp_path}/mine/server,control"
    monkeypatch.chdir("/")
    for name in ("DMCOPY_RUNTIME_DIR", "DMCOPY_MAPPER_DIR"):
        monkeypatch.setenv(name, given[name])
    assert control_path() == here
    assert given["DMCOPY_MAPPER_DIR"] == f"{tmp_path}/nodes"
    monkeypatch.setenv("DMCOPY_MAPPER_DIR", "")  # nowhere
    assert environment()["DMCOPY_MAPPER_DIR"] == ""


@pytest.mark.parametrize("kind", ["a file", "a link", "another's", "everybody's", "nowhere"])
def test_a_folder_that_is_not_the_users_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    folder = tmp_path / "folder"
    monkeypatch.setenv("DMCOPY_RUNTIME_DIR", str(folder))
    if kind == "a file":
        folder.touch()
    elif kind == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "elsewhere")
    elif kind == "another's":
        folder.mkdir(mode=0o700)
        uid = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    elif kind == "everybody's":
        folder.mkdir()
        folder.chmod(0o777)
    else:
        monkeypatch.setenv("DMCOPY_RUNTIME_DIR", str(folder / "below"))
    with pytest.raises(UsageError, match=r"say --socket PATH or another DMCOPY_RUNTIME_DIR$"):
        runtime_folder()
    with pytest.raises(UsageError, match=r"(or|:) say another DMCOPY_RUNTIME_DIR$"):
        runtime_folder("")


def test_the_users_own_is_made_and_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMCOPY_RUNTIME_DIR", str(tmp_path / "folder"))
    for _ in range(2):
        assert runtime_folder() == tmp_path / "folder"
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o700
