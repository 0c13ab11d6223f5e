"""The device server as commands use it: nodes that are mounted, and nothing left at the end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import ExitStack

import pytest

from dmcopy.asking import ask
from dmcopy.block.sysfs import backing_file
from dmcopy.errors import BusyError
from dmcopy.runtime import control_path
from dmcopy.table import Table
from tests.loop.export.here import MIB, SECONDS, Here
from tests.waiting import Program

pytestmark = pytest.mark.loop


def test_from_an_image_to_a_mounted_device_and_back(here: Here) -> None:
    image = here.image("disk.img", 32 * MIB)
    here.dm("create", "disk", "--table", f"0 65536 linear {image} 0")
    node = here.folder / "dev" / "disk"
    assert here.mapper.path("disk") == str(node)
    server = here.server()
    here.run("mkfs.ext4", "-q", node)
    point = here.mounted(node)
    (point / "file").write_text("there")
    os.sync()
    told = here.dm("remove", "disk", code=6)
    assert f"the file system mounted on {point}" in told
    assert (point / "file").read_text() == "there"
    here.run("umount", point)
    here.dm("rename", "disk", "other")
    assert not node.exists()
    assert (here.folder / "dev" / "other").is_block_device()
    here.dm("remove", "other")
    assert here.ended(server)
    assert b"there" in image.read_bytes()


def test_devices_stand_on_each_other_by_every_name(here: Here) -> None:
    image = here.image("disk.img", MIB)
    base = here.mapper.create("base", Table.parse(f"0 2048 linear {image} 0"))
    number = base.info.devno
    real = os.path.realpath(base.path)
    file = backing_file(os.path.basename(real))
    link, bound = here.folder / "link", here.image("bound", 0)
    link.symlink_to(base.path)
    here.run("mount", "--bind", file, bound)
    with open(base.path, "rb") as node, open(file, "rb") as opened:
        words = [f"/proc/self/fd/{one.fileno()}" for one in (node, opened)]
        words += [base.path, "/dev/mapper/base", real, number, file, str(link), str(bound)]
        for word in words:
            with here.mapper.device("top", Table.parse(f"0 8 linear {word} 0")) as top:
                assert str(top.table) == f"0 8 linear {base.path} 0"
    # and what asks the server itself, without the names that a client knows
    for word in (real, file, str(link), str(bound)):
        table = f"0 8 linear {word} 0"
        ask(control_path(), {"do": "create", "name": "top", "table": table, "uuid": ""})
        assert str(here.mapper.table("top")) == f"0 8 linear {base.path} 0"
        assert here.mapper.info("base").open_count == 1
        here.mapper.remove("top")
    here.run("umount", bound)
    for word in (base.path, number):
        with here.mapper.device("top", Table.parse(f"0 8 linear {word} 0")) as top:
            assert str(top.table) == f"0 8 linear {base.path} 0"
            with top.open() as opened:
                opened.write(0, b"x" * 4096)
            with base.open() as opened:
                assert opened.read(0, 8) == b"x" * 4096
    base.remove()


def test_what_stands_on_a_device_by_way_of_the_kernel_is_refused(here: Here) -> None:
    """To open it, the server would wait for itself."""
    image = here.image("disk.img", 32 * MIB)
    base = here.mapper.create("base", Table.parse(f"0 65536 linear {image} 0"))
    here.run("mkfs.ext4", "-q", base.path)
    point = here.mounted(base.path)
    with open(point / "inner", "wb") as inner:
        inner.truncate(MIB)
    below = base.path, backing_file(os.path.basename(os.path.realpath(base.path)))
    loops = []
    # as btrfs: the number says nothing of the device, only the mount does
    anonymous = here.folder / "mounted" / "anonymous"
    anonymous.mkdir()
    here.run("mount", "-t", "tmpfs", base.path, anonymous)
    (anonymous / "inner").write_bytes(bytes(MIB))
    with ExitStack() as stack:
        stack.callback(here.run, "umount", point, anonymous)
        for file in (point / "inner", *below):
            loops.append(here.run("losetup", "--find", "--show", file).strip())
            stack.callback(here.run, "losetup", "--detach", loops[-1], code=None)
        for word in (str(point / "inner"), str(anonymous / "inner"), *loops):
            assert "the server of that would wait for itself" in here.mapper.refusal(
                Table.parse(f"0 8 linear {word} 0")
            ), word
    base.remove()


def test_the_node_follows_the_table(here: Here) -> None:
    image = here.image("disk.img", 4 * MIB)
    device = here.mapper.create("disk", Table.parse(f"0 2048 linear {image} 0"))
    for sectors in (8192, 16, 2048):
        device.swap(Table.parse(f"0 {sectors} linear {image} 0"))
        assert here.run("blockdev", "--getsz", device.path).strip() == str(sectors)
        with open(device.path, "rb") as node:
            assert node.seek(0, os.SEEK_END) == sectors << 9
    device.suspend()
    writer = subprocess.Popen(
        ["dd", "if=/dev/zero", f"of={device.path}", "bs=4096", "count=1", "oflag=direct"],
        stderr=subprocess.DEVNULL,
    )
    assert device.info.suspended
    assert writer.poll() is None
    device.resume()
    assert writer.wait(SECONDS) == 0
    device.remove()


def test_the_node_is_read_only_when_the_table_is(here: Here) -> None:
    image = here.image("disk.img", MIB)
    table = Table.parse(f"0 2048 linear {image} 0")
    device = here.mapper.create("disk", table, readonly=True)
    for readonly in (True, False, True):
        here.mapper.load("disk", table, readonly=readonly)
        device.resume()
        assert here.run("blockdev", "--getro", device.path).strip() == str(int(readonly))
    with open(device.path, "rb"):
        here.mapper.load("disk", table)
        device.resume()  # it is open, and stays as it is
        assert not device.info.readonly
    device.remove()


def test_a_suspend_freezes_what_is_mounted(here: Here) -> None:
    image = here.image("disk.img", 32 * MIB)
    here.dm("create", "disk", "--table", f"0 65536 linear {image} 0")
    here.run("mkfs.ext4", "-q", here.mapper.path("disk"))
    point = here.mounted(here.mapper.path("disk"))
    (point / "file").write_text("before")
    here.dm("suspend", "disk")
    snapshot = here.folder / "then.img"
    snapshot.write_bytes(image.read_bytes())
    here.run("e2fsck", "-fn", snapshot)  # frozen, it needs no journal
    writer = subprocess.Popen(["sh", "-c", 'echo after > "$1"/file', "sh", str(point)])
    here.dm("resume", "disk")
    assert writer.wait(SECONDS) == 0
    assert (point / "file").read_text() == "after\n"
    with pytest.raises(BusyError):
        here.mapper.remove("disk")
    here.run("umount", point)
    here.dm("remove", "disk")


def test_what_is_suspended_is_removed_and_its_writers_fail(here: Here) -> None:
    image = here.image("disk.img", MIB)
    device = here.mapper.create("disk", Table.parse(f"0 2048 linear {image} 0"))
    with open(device.path, "r+b", buffering=0) as node:
        node.write(b"x" * 4096)  # into the page cache
        device.suspend()
        with pytest.raises(BusyError, match="process"):
            device.remove()
        device.resume()
    deadline = time.monotonic() + SECONDS
    while here.mapper.exists("disk"):
        device.suspend()
        try:
            device.remove()
        except BusyError:  # by a program of another test's that looks at all disks, and waits now
            device.resume()
            assert time.monotonic() < deadline, "it stays open"


def test_dmsetups_text(here: Here) -> None:
    assert here.dm("ls") == "No devices found\n"
    image = here.image("disk.img", MIB)
    here.dm("create", "b", "--table", f"0 8 zero\n8 8 linear {image} 8")
    here.dm("create", "a", "-u", "U", "--notable")
    minor = here.mapper.info("b").number[1]  # type: ignore[index]
    assert here.dm("ls").splitlines() == ["a\t(0:0)", f"b\t(7:{minor})"]
    assert here.dm("table", "b") == f"0 8 zero \n8 8 linear {image} 8\n"
    assert here.dm("status").splitlines() == ["a: ", "b: 0 8 zero ", "b: 8 8 linear "]
    told = here.dm("info", "a")
    assert "State:             SUSPENDED\n" in told
    assert "Tables present:    None\n" in told
    assert told.endswith("UUID: U\n\n")
    columns = here.dm("info", "-c", "--noheadings", "--separator", "|", "-o", "name,attr,segments")
    assert columns.splitlines() == ["a|--sw|0", "b|L--w|2"]
    assert here.dm("remove", "a", "b") == ""


def test_two_that_begin_at_the_same_time_have_one_server(here: Here) -> None:
    words = [sys.executable, "-m", "dmcopy", "dm", "create", "--table", "0 8 zero"]
    started = [subprocess.Popen([*words, f"d{number}"]) for number in range(4)]
    assert [one.wait(SECONDS) for one in started] == [0] * 4
    assert [info.name for info in here.mapper.ls()] == [f"d{number}" for number in range(4)]
    here.dm("remove", *(f"d{number}" for number in range(4)))


AS_USER = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--")


@pytest.mark.skipif(not os.path.exists("/usr/bin/fusermount3"), reason="no fusermount3")
def test_an_ordinary_user_has_files_and_nbd_exports(here: Here) -> None:
    folder, image = here.folder / "users", here.image("disk.img", MIB)
    folder.mkdir(mode=0o700)
    here.folder.chmod(0o711)
    for each in (folder, image):
        os.chown(each, 65534, 65534)
    env = ["env", f"DMCOPY_RUNTIME_DIR={folder}", "HOME=/nonexistent"]
    dm = [*AS_USER, *env, sys.executable, "-m", "dmcopy", "dm"]
    here.run(*dm, "create", "data", "--table", f"0 2048 linear {image} 0")
    try:
        copied = here.run(
            *AS_USER, "dd", "if=/dev/urandom", f"of={folder}/data", "bs=64k", "count=8"
        )
        assert "8+0 records out" in copied
        assert image.read_bytes()[: 512 << 10].count(0) < 64 << 10
        assert (folder / "data.nbd").is_socket()
        (folder / "link").symlink_to(folder / "data")
        here.run(*dm, "create", "top", "--table", f"0 8 linear {folder}/link 0")
        assert here.run(*dm, "table", "top") == f"0 8 linear {folder}/data 0\n"
        here.run(*dm, "remove", "top")
        here.run(*dm, "rename", "data", "other")
        assert sorted(path.name for path in folder.glob("other*")) == ["other", "other.nbd"]
    finally:
        here.run(*dm, "remove", "other")
    assert not list(folder.glob("other*"))


@pytest.mark.parametrize("kind", ["fuse", "nbd"])
@pytest.mark.skipif(not os.path.exists("/usr/bin/fusermount3"), reason="no fusermount3")
def test_serve_has_a_name_that_a_device_cannot_have_then(here: Here, kind: str) -> None:
    """A user's have one folder. The second is told a way out, and the first is not harmed."""
    folder, image, other = here.folder / "users", *(here.image(name, MIB) for name in "ab")
    folder.mkdir(mode=0o700)
    here.folder.chmod(0o711)
    for each in (folder, image, other):
        os.chown(each, 65534, 65534)
    env = ["env", f"DMCOPY_RUNTIME_DIR={folder}", "HOME=/nonexistent"]
    dmcopy = [*AS_USER, *env, sys.executable, "-m", "dmcopy"]
    create = [*dmcopy, "dm", "create", "--table", f"0 8 linear {other} 0"]
    serve = [*dmcopy, "serve", "--via", kind, "--table"]
    with Program([*serve, f"0 8 linear {image} 0"], stdout=subprocess.PIPE) as serving:
        assert serving.stdout is not None
        try:
            node = folder / ("dev" if kind == "fuse" else "dev.nbd")
            assert str(node) in serving.stdout.readline().decode().replace("%2F", "/")
            said = here.run(*create, "dev", code=6)
            assert f"{node} is in use by a" in said
            assert said.endswith("; give the device another name, or end what is there\n")
            assert "say another --name, or" in here.run(*serve, f"0 8 linear {other} 0", code=6)
            assert here.run(*create, "other") == ""
            here.run(*dmcopy, "dm", "remove", "other")
            if kind == "nbd":
                assert node.is_socket()
            else:
                here.run(*AS_USER, "cmp", "-n", "4096", node, image)
        finally:
            serving.terminate()
        assert serving.wait(SECONDS) == 0
    assert not node.exists()


def test_the_server_finds_targets_where_the_command_does(here: Here) -> None:
    """Also in a folder that is in PYTHONPATH of this command, and was not when it began."""
    here.dm("create", "first", "--table", "0 8 zero")
    (here.folder / "of_my_own.py").write_text(PLUGIN)
    create = ("create", "mine", "--plugin", "of_my_own", "--table", "0 8 always_zero")
    dmcopy = (sys.executable, "-m", "dmcopy", "dm", *create)
    folders = os.pathsep.join([str(here.folder), *sys.path])
    here.run("env", f"PYTHONPATH={folders}", "DMCOPY_ENGINE=user", *dmcopy)
    with here.mapper.open("mine") as opened:
        assert opened.read(0, 8) == bytes(4096)
    here.dm("remove", "mine")
    here.dm("remove", "first")


PLUGIN = """
from typing import ClassVar

from dmcopy.table import Line
from dmcopy.targets import Map, Target, register


@register
class AlwaysZero(Target):
    name: ClassVar[str] = "always_zero"

    class Words(Line):
        pass

    def map(self, bio):
        for view in bio.memory.views(bio.extents):
            view[:] = bytes(len(view))
        return Map.DONE

    def status(self):
        return ""
"""


def test_another_user_is_refused(here: Here) -> None:
    here.dm("create", "x", "--table", "0 8 zero")
    here.folder.chmod(0o711)
    ls = [*AS_USER, sys.executable, "-m", "dmcopy", "dm", "ls"]
    assert "is another user's" in here.run(*ls, code=2)
    os.chmod(control_path(), 0o666)  # even then
    assert "this server is of user 0, and you are user 65534" in here.run(*ls, code=2)
    here.dm("remove", "x")


IMPOSTOR = """
import socket, sys
with socket.socket(socket.AF_UNIX) as sock:
    sock.bind(sys.argv[1])
    sock.listen()
    print(flush=True)
    sys.stdin.read()
"""


def test_another_users_server_is_not_believed(here: Here) -> None:
    """What a folder to which others write has there may be theirs, and could name any disk."""
    here.folder.chmod(0o777)
    words = [*AS_USER, sys.executable, "-c", IMPOSTOR, control_path()]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with Program(words, **pipes) as impostor:  # type: ignore[call-overload]
        impostor.stdout.readline()
        for verb in (["ls"], ["create", "x", "--table", "0 8 zero"]):
            assert "is another user's" in here.dm(*verb, code=2)
        impostor.stdin.close()
        impostor.wait(SECONDS)
    os.unlink(control_path())
    said = here.dm("create", "x", "--table", "0 8 zero", code=2)
    assert "is not a folder that only you write to" in said
    assert "another DMCOPY_RUNTIME_DIR" in said
    here.folder.chmod(0o700)
