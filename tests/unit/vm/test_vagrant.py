"""The Vagrant provider without Vagrant: recipes, boxes, folders, what is refused."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from dmcopy.cli.main import main
from dmcopy.errors import ExitCode, MissingError, UsageError
from dmcopy.vm import box, copied, vagrant


def test_init_writes_what_a_user_edits_and_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert box.recipe(tmp_path) == box._OWN
    assert main(["vm", "vagrant", "init"]) == 0
    assert capsys.readouterr().out == "vagrant/Vagrantfile\nvagrant/build-box\n"
    assert os.access("vagrant/build-box", os.X_OK)
    assert box.recipe(tmp_path) == tmp_path / "vagrant"
    Path("vagrant/Vagrantfile").write_text("edited, with DMCOPY_QEMU")
    Path("vagrant/build-box").unlink()
    assert main(["vm", "vagrant", "init"]) == ExitCode.USAGE
    assert "vagrant/Vagrantfile is there already: name another folder" in capsys.readouterr().err
    assert not Path("vagrant/build-box").exists()
    assert main(["vm", "vagrant", "init", "other"]) == 0
    assert Path("vagrant/Vagrantfile").read_text() == "edited, with DMCOPY_QEMU"
    assert main(["vm", "vagrant", "init", "/proc/none"]) == ExitCode.FAILED


def test_init_leaves_no_half_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of the two files would be in the way of the next try."""
    (tmp_path / "file").touch()
    for word, code in (("file", 2), ("file/below", 1), ("x" * 300, 1)):
        assert main(["vm", "vagrant", "init", str(tmp_path / word)]) == code
        assert capsys.readouterr().err.count("\n") == 1
    read = Path.read_bytes

    def full(path: Path) -> bytes:
        if path.name == "build-box":
            raise OSError(errno.ENOSPC, "full")
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", full)
        assert main(["vm", "vagrant", "init", str(tmp_path / "new")]) == ExitCode.FAILED
    assert "No space left on device" in capsys.readouterr().err
    assert not list((tmp_path / "new").iterdir())
    (tmp_path / "new" / "build-box").symlink_to("nowhere")
    assert main(["vm", "vagrant", "init", str(tmp_path / "new")]) == ExitCode.USAGE
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["build-box"]


def test_the_vagrantfile_of_another_tool_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "vagrant").mkdir()
    (tmp_path / "vagrant/Vagrantfile").write_text("Vagrant.configure('2') { }")
    assert box.recipe(tmp_path) == box._OWN


def test_a_box_is_built_once_for_each_recipe(cache: Path, tmp_path: Path) -> None:
    script = tmp_path / "build-box"
    stale = cache / "vagrant/boxes/dmcopy-trixie"
    for count, text in ((1, ""), (1, ""), (2, "# another")):
        script.write_text(f'echo "$2" > "$1"; echo once >> "$1.built" {text}')
        stale.mkdir(parents=True, exist_ok=True)
        made = box.build(tmp_path, "trixie")
        assert made.read_text() == "trixie\n"
        assert len(Path(f"{made}.built").read_text().split()) == count
    assert not stale.exists(), "Vagrant would continue with its copy of the box before"
    script.write_text("echo no mirror >&2; exit 7")
    with pytest.raises(MissingError, match=r"build-box ended with 7: see .*trixie\.log"):
        box.build(tmp_path, "trixie")
    assert "no mirror" in made.with_suffix(".log").read_text()


def test_what_is_copied_to_a_guest(tmp_path: Path) -> None:
    project, packages = tmp_path / "p", tmp_path / "p/.venv/lib/python3/site-packages"
    packages.mkdir(parents=True)
    (project / "tests").mkdir()
    path = ["", str(project / "tests"), str(packages), "/no/such", os.path.dirname(os.__file__)]
    imports = copied.imported_folders([*path, "/usr/lib/python3/dist-packages"])
    assert imports == [project / "tests", packages]
    assert copied.distinct([project, *imports]) == [project, packages]


def test_what_a_machine_must_have(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"one of 6\.1, 6\.12, and not /boot/vmlinuz: use QEMU"):
        vagrant.check("/boot/vmlinuz")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr("dmcopy.block.tools.which", lambda _: None)
    with pytest.raises(MissingError, match="no vagrant here: apt-get install --no-install-rec"):
        vagrant.check("6.1")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(MissingError, match="needs root"):
        vagrant.check("6.1")
