"""Disks, the cache and its locks, the accelerator's memory, the RAM disk, QEMU's arguments."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from dmcopy.block import tools
from dmcopy.errors import DeadlineError, DeviceError, MissingError, UsageError
from dmcopy.vm import accel, base, cache, disks, initramfs, machine, qemu
from dmcopy.vm.disks import Disk, parse_disk
from dmcopy.vm.leash import Leashed

from .conftest import gone


def test_a_disk_in_words(tmp_path: Path) -> None:
    disk = parse_disk("1G,serial=a")
    assert (disk.size_bytes, disk.device) == (1 << 30, "/dev/disk/by-id/virtio-a")
    assert parse_disk(f"64M,serial=b,file={tmp_path}/x").path == tmp_path / "x"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1Q,serial=a", "'1Q' is not a size"),
        ("1G", "is not a disk"),
        ("1G,serial=a,bus=ide", "is not a disk"),
        ("1G,serial=a b", "'a b' is not a serial"),
        ("1G,serial=" + "x" * 21, "is not a serial"),
        ("0,serial=a", "whole sectors"),
        ("513B,serial=a", "whole sectors"),
    ],
)
def test_what_is_no_disk(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        parse_disk(text)


def test_two_disks_of_one_serial() -> None:
    with pytest.raises(UsageError, match=r"two disks have the serial a: .*1G,serial=a,twin"):
        disks.check_disks([Disk("1M", "a"), Disk("2M", "a")])
    twin = parse_disk("2M,serial=a,twin")
    assert twin == Disk("2M", "a", twin=True)
    disks.check_disks([Disk("1M", "a"), twin, twin])


def test_a_disk_keeps_its_file(tmp_path: Path) -> None:
    disk = Disk("1M", "a", tmp_path / "a.img")
    disk.create(tmp_path / "unused").write_bytes(b"x" * (1 << 20))
    assert disk.create(tmp_path / "unused").read_bytes() == b"x" * (1 << 20)
    with pytest.raises(UsageError, match="asked for with 2097152"):
        Disk("2M", "a", tmp_path / "a.img").create(tmp_path / "unused")


def test_a_disks_file_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to(tmp_path / "victim")
    for name in ("no-folder/a.img", "dangling"):
        with pytest.raises(DeviceError, match=f"{name}: cannot make a disk's file of it"):
            Disk("1M", "a", tmp_path / name).create(tmp_path / "unused")
    assert not (tmp_path / "victim").exists()


def test_a_lock_is_exclusive_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with (
        cache.locked(path, "fetching", 1),
        pytest.raises(DeadlineError, match="another dmcopy has been fetching"),
        cache.locked(path, "fetching", 0.1),
    ):
        pass
    assert not path.exists()
    path.touch()  # as a process that was killed leaves it
    with cache.locked(path, "fetching", 1):
        pass


def test_no_place_for_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    with pytest.raises(MissingError, match="set XDG_CACHE_HOME"):
        cache.cache_dir()


def test_the_newest_logs_are_kept(cache: Path, tmp_path: Path) -> None:
    from dmcopy.vm.cache import keep_log

    console = tmp_path / "console"
    console.write_text("Kernel panic")
    for number in range(25):
        assert keep_log(console, f"console{number}").read_text() == "Kernel panic"
    assert len(list((cache / "logs").iterdir())) == 20


def test_a_cache_of_somebody_else_is_refused(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    from dmcopy.vm.cache import cache_dir

    assert cache_dir() == cache
    cache.chmod(0o777)
    with pytest.raises(MissingError, match="is open to every user: set XDG_CACHE_HOME"):
        cache_dir()
    cache.chmod(0o755)
    monkeypatch.setattr(os, "geteuid", lambda: cache.stat().st_uid + 1)
    with pytest.raises(MissingError, match="is another user's: set XDG_CACHE_HOME"):
        cache_dir()


def test_no_home_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    from dmcopy.vm.cache import cache_dir

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: Path("~nobody-of-that-name").expanduser())
    with pytest.raises(MissingError, match="no home folder to keep kernels in: set XDG_CACHE_HOME"):
        cache_dir()


@pytest.mark.parametrize(
    "kept",
    [
        b"\xff\x00",
        b"[",
        b"[" * 100_000,
        b"[1]",
        b"{}",
        b'{"on": HERE}',
        b'{"on": HERE, "accel": 7}',
    ],
)
def test_what_was_found_out_and_is_damaged_is_found_out_again(
    monkeypatch: pytest.MonkeyPatch, cache: Path, tmp_path: Path, kept: bytes
) -> None:
    here = {"boot": accel._BOOT_ID.read_text().strip(), "qemu": "qemu", "uid": os.getuid()}
    cache.mkdir()
    (cache / "accel.json").write_bytes(kept.replace(b"HERE", json.dumps(here).encode()))
    monkeypatch.setattr(accel, "try_kvm", lambda *_: "it hung")
    monkeypatch.setattr("os.access", lambda *_: True)
    assert accel.choose("qemu", tmp_path) == "tcg"
    assert json.loads((cache / "accel.json").read_text())["accel"] == "tcg"


@pytest.mark.usefixtures("cache")
def test_the_accelerator_is_tried_once_a_boot(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    trials: list[str] = []

    monkeypatch.setattr(accel, "try_kvm", lambda program, _: trials.append(program) or "it hung")
    monkeypatch.setattr("os.access", lambda *_: True)
    assert accel.choose("qemu", tmp_path) == accel.choose("qemu", tmp_path) == "tcg"
    assert trials == ["qemu"]
    assert "/dev/kvm is there but it hung" in capsys.readouterr().err
    boot_id = tmp_path / "boot_id"
    boot_id.write_text("another boot\n")
    monkeypatch.setattr(accel, "_BOOT_ID", boot_id)
    monkeypatch.setattr(accel, "try_kvm", lambda *_: "")
    assert accel.choose("qemu", tmp_path) == "kvm"


@pytest.mark.usefixtures("cache")
def test_what_may_pass_is_tried_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """QEMU says immediately that another hypervisor has it: that may have ended by the next run."""
    qemu = tmp_path / "qemu"
    qemu.write_text(
        "#!/bin/sh\necho 'ioctl(KVM_CREATE_VM) failed: Device or resource busy'\nexit 1\n"
    )
    qemu.chmod(0o755)
    monkeypatch.setattr("os.access", lambda *_: True)
    assert accel.choose(str(qemu), tmp_path) == "tcg"
    monkeypatch.setattr(accel, "try_kvm", lambda *_: "")
    assert accel.choose(str(qemu), tmp_path) == "kvm"


@pytest.mark.usefixtures("cache")
def test_no_kvm_and_a_forced_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    assert accel.choose("qemu", Path("x")) == "tcg"
    monkeypatch.setenv("DMCOPY_ACCEL", "kvm")
    assert accel.choose("qemu", Path("x")) == "kvm"


def test_the_ram_disk_is_an_archive(tmp_path: Path) -> None:
    archive = initramfs.Archive()
    archive.folder("etc")
    archive.file("etc/odd", b"12345")
    archive.file("etc/empty", b"")
    path = tmp_path / "archive"
    path.write_bytes(archive.finish())
    data, seen = path.read_bytes(), {}
    while True:
        fields = [int(data[6 + 8 * i : 14 + 8 * i], 16) for i in range(13)]
        assert data[:6] == b"070701"
        name_end = 110 + fields[11]
        name = data[110 : name_end - 1].decode()
        start = -(-name_end // 4) * 4
        seen[name] = data[start : start + fields[6]]
        data = data[-(-(start + fields[6]) // 4) * 4 :]
        if name == "TRAILER!!!":
            break
    assert seen == {"etc": b"", "etc/odd": b"12345", "etc/empty": b"", "TRAILER!!!": b""}
    assert data == b""


def test_no_busybox_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(MissingError, match="install busybox-static"):
        initramfs.busybox()


def test_no_qemu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmcopy.block.tools.which", lambda _: None)
    with pytest.raises(MissingError, match="no qemu-system-x86_64 here: apt-get install"):
        machine.find_qemu()


@pytest.mark.parametrize(("levels", "needed"), [(0b1, False), (0b10, False), (0b100, True)])
def test_a_guest_has_what_the_hosts_programs_need(levels: int, needed: bool) -> None:
    """A libc built for x86-64-v3 says so in its notes, as `ld -z x86-64-v3` writes them."""
    note = struct.pack("<3I4sIII", 4, 16, 5, b"GNU", 0xC0008002, 4, levels)
    assert machine.needs_avx(bytes(672) + note) == needed
    assert not machine.needs_avx(bytes(672))


def test_arguments_for_qemu() -> None:
    argv = machine.board("qemu", "tcg", 512, None)
    assert argv[argv.index("-m") + 1] == "512M"
    assert argv[argv.index("-smp") + 1] == "1"
    assert "4" in machine.board("qemu", "tcg", 512, 4)
    assert "tcg,thread=multi,tb-size=256" in argv
    assert "host" in machine.board("qemu", "kvm", 512, None)
    assert {"-avx2", "-erms"} <= {*argv[argv.index("-cpu") + 1].split(",")}
    shared = machine.shared_folders([Path("/a,b")])
    assert "path=/a,,b" in shared[5]
    assert "readonly=on" in shared[1]
    assert "readonly" not in shared[5]
    assert "serial=s1" in machine.disk_options(0, "s1", Path("/x"))[3]


@pytest.mark.parametrize("path", [b"/a b\tc", "/d\xe4ten/\u65e5".encode(), b"/\xff\\0101%s"])
def test_a_path_in_the_guests_settings_is_one_word(path: bytes) -> None:
    escaped = qemu._escaped(Path(os.fsdecode(path)))
    assert escaped.isascii()
    assert not set(escaped) & set(" \t\n")
    said = subprocess.run(["sh", "-c", 'printf "%b" "$1"', "sh", escaped], capture_output=True)
    assert said.stdout == path


def test_the_end_of_a_console_is_read_and_no_more(tmp_path: Path) -> None:
    console = tmp_path / "console"
    assert base.end_of(console) == ""
    console.write_bytes(b"x\r\n" * 1_000_000 + b"\xffKernel panic\r\n")
    said = base.end_of(console)
    assert said.endswith("\nx\n\ufffdKernel panic\n")
    assert len(said) <= base._TEXT_BYTES


def test_no_program_comes_from_the_working_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    planted = tmp_path / "qemu-system-x86_64"
    planted.write_text("#!/bin/sh\n")
    planted.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    for path in ("", ":", ".", "./", f"{tmp_path.name}/.."):
        monkeypatch.setenv("PATH", path)
        assert tools.which("qemu-system-x86_64") != str(planted)
        assert all(word.startswith("/") for word in tools.search_path().split(":"))
        assert tools.which("depmod"), "it is in sbin, which a short PATH leaves out"


@pytest.mark.parametrize("path", ["/dev/shm/x", "/run/x", "/proc", "/sys/block"])
def test_what_a_guest_cannot_see_is_refused(path: str) -> None:
    with pytest.raises(UsageError, match="is not visible in a guest"):
        qemu._visible(Path(path))


def leashed_sleep(folder: Path) -> tuple[Leashed, int]:
    folder.mkdir()
    program = Leashed(folder, ["sh", "-c", 'echo $$ >"$1/pid"; exec sleep 100', "sh", str(folder)])
    while not (folder / "pid").exists() or not (folder / "pid").read_text():
        assert program.wait(0.02) is None
    return program, int((folder / "pid").read_text())


def test_the_leash_ends_its_program_and_removes_the_folder(tmp_path: Path) -> None:
    program, pid = leashed_sleep(tmp_path / "run")
    program.close()
    assert gone(pid)
    assert not (tmp_path / "run").exists()


def test_a_leashed_program_makes_no_file_that_gives_rights_away(tmp_path: Path) -> None:
    """What QEMU does for a guest in a shared folder, it does with the rights of the host's user."""
    folder, share = tmp_path / "run", tmp_path / "share"
    folder.mkdir()
    share.mkdir()
    script = """
        cd "$1"
        echo '#!/bin/sh' >program
        ln -s program link
        chmod 755 program && echo plain
        chmod 4755 program || chmod 2755 program || echo no setid
        mknod node c 1 3 || mknod node b 7 0 || echo no node
        mkfifo fifo && echo fifo
        mkdir -m 2755 folder || echo no setgid folder
    """
    calls = (
        "import os\n"
        "for make in (lambda: os.setxattr('program', 'user.x', b'1'),\n"
        "             lambda: os.open('new', os.O_CREAT | os.O_WRONLY, 0o4755)):\n"
        "    try: make()\n"
        "    except PermissionError: print('refused')\n"
        "os.close(os.open('new', os.O_CREAT | os.O_WRONLY, 0o755))\n"
    )
    words = ["sh", "-c", f'{script}exec "$2" -c "$3"', "sh", str(share), sys.executable, calls]
    program = Leashed(folder, words)
    assert program.wait(30) == 0
    said = [line for line in (folder / "output").read_text().splitlines() if ":" not in line]
    program.close()
    assert said == ["plain", "no setid", "no node", "fifo", "no setgid folder", *["refused"] * 2]
    assert {path.name: path.lstat().st_mode & 0o6111 for path in share.iterdir()} == {
        "program": 0o111,
        "link": 0o111,
        "fifo": 0,
        "new": 0o111,
    }


def test_a_program_that_ends_by_itself(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    program = Leashed(tmp_path / "run", ["sh", "-c", "echo why; exit 7"])
    assert program.wait(20) == 7
    assert (tmp_path / "run/output").read_text() == "why\n"
    program.close()


def test_a_leash_that_is_killed_takes_its_program_along(tmp_path: Path) -> None:
    program, pid = leashed_sleep(tmp_path / "run")
    program._process.send_signal(signal.SIGKILL)
    assert gone(pid)
    program.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_an_owner_that_is_killed_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "run"
    code = (
        "import signal, sys; from pathlib import Path; from dmcopy.vm.leash import Leashed\n"
        # Who runs the tests in the background of a shell hands down an ignored SIGINT.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "folder = Path(sys.argv[1]); folder.mkdir()\n"
        "program = Leashed(folder, ['sh', '-c', 'echo $$ >\"$1/pid\"; exec sleep 100', 'sh', "
        "str(folder)])\n"
        "program.wait(100)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", code, str(folder)], stderr=subprocess.DEVNULL)
    while not (folder / "pid").exists() or not (folder / "pid").read_text():
        assert owner.poll() is None
    pid = int((folder / "pid").read_text())
    os.kill(owner.pid, number)
    owner.wait(20)
    assert gone(pid)
    assert not folder.exists() or not list(folder.iterdir()) or _goes(folder)


def _goes(folder: Path) -> bool:
    import time

    deadline = time.monotonic() + 20
    while folder.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return not folder.exists()
