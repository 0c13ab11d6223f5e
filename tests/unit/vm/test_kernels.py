"""Which kernel a word means, what its modules need, and what is said of one that will not do."""

from __future__ import annotations

import io
import lzma
import shutil
import tarfile
import zlib
from pathlib import Path

import pytest

from dmcopy.block import tools
from dmcopy.errors import MissingError, UsageError
from dmcopy.vm import debian, kernels
from dmcopy.vm.image import unpack_image

VERSION = "6.1.0-50-amd64"
MODULES = {
    "virtio_pci": "virtio",
    "virtio_blk": "virtio",
    "virtio_console": "virtio",
    "9pnet_virtio": "9pnet virtio",
    "9pnet": "",
    "9p": "9pnet",
    "overlay": "",
    "dm-mod": "",
}


def bzimage(version: str) -> bytes:
    image = bytearray(0x400)
    image[0x202:0x206] = b"HdrS"
    image[0x20E:0x210] = (0x100).to_bytes(2, "little")
    text = f"{version} (builder) #1".encode() + b"\0"
    image[0x300 : 0x300 + len(text)] = text
    return bytes(image)


def install(root: Path, without: str = "") -> Path:
    """A kernel as a package unpacks it; returns its vmlinuz."""
    modules = root / "lib/modules" / VERSION
    modules.mkdir(parents=True)
    lines = []
    for name, needs in MODULES.items():
        if name != without:
            (modules / f"{name}.ko").touch()
            lines.append(f"{name}.ko:{''.join(f' {need}.ko' for need in needs.split())}\n")
    (modules / "modules.dep").write_text("".join(lines))
    (modules / "modules.builtin").write_text("kernel/drivers/virtio/virtio.ko\n")
    (root / "boot").mkdir()
    image = root / "boot" / f"vmlinuz-{VERSION}"
    image.write_bytes(bzimage(VERSION))
    return image


def put_in_cache(cache: Path, version: str) -> None:
    folder = cache / "kernels" / version
    folder.mkdir(parents=True)
    (folder / debian.COMPLETE).touch()


def test_a_vmlinuz_with_its_modules_beside_it(tmp_path: Path) -> None:
    kernel = kernels.find(str(install(tmp_path)))
    assert kernel.version == VERSION
    assert kernel.short == "6.1"
    assert kernel.modules == tmp_path / "lib/modules" / VERSION


def test_modules_come_after_what_they_need_and_without_what_is_built_in(tmp_path: Path) -> None:
    install(tmp_path)
    files = kernels.dependencies(tmp_path / "lib/modules" / VERSION, ("9p", "9pnet_virtio"))
    assert [path.name for path in files] == ["9pnet.ko", "9p.ko", "9pnet_virtio.ko"]


@pytest.mark.parametrize(("without", "named"), [("dm-mod", "dm_mod"), ("virtio_blk", "virtio_blk")])
def test_a_kernel_that_lacks_something_is_refused(tmp_path: Path, without: str, named: str) -> None:
    with pytest.raises(MissingError, match=f"kernel {VERSION} has no {named}"):
        kernels.find(str(install(tmp_path, without)))


def test_a_build_tree(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no kernel built there"):
        kernels.find(str(tmp_path))
    image = tmp_path / "arch/x86/boot/bzImage"
    image.parent.mkdir(parents=True)
    image.write_bytes(bzimage("7.0.0"))
    with pytest.raises(MissingError, match="modules_install"):
        kernels.find(str(tmp_path))
    options = [f"{name}=y\n" for name in kernels._OPTIONS.values()]
    (tmp_path / ".config").write_text("".join(options))
    kernel = kernels.find(str(tmp_path))
    assert (kernel.version, kernel.modules) == ("7.0.0", None)
    (tmp_path / ".config").write_text("".join(options[1:]))
    with pytest.raises(MissingError, match="has no virtio_pci"):
        kernels.find(str(tmp_path))


@pytest.mark.usefixtures("cache")
def test_what_is_no_kernel(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("x" * 0x400)
    with pytest.raises(UsageError, match="is not an x86 kernel image"):
        kernels.find(str(tmp_path / "text"))
    with pytest.raises(UsageError, match="no such kernel image"):
        kernels.find("/no/such")
    with pytest.raises(UsageError, match=r"7\.7: no such kernel: use one of 6\.1, 6\.12"):
        kernels.find("7.7")


def test_cached_kernels_newest_last(cache: Path) -> None:
    for version in ("6.1.0-50-amd64", "6.1.0-9-amd64", "6.12.3-amd64"):
        put_in_cache(cache, version)
    (cache / "kernels" / "6.1.0-99-amd64").mkdir()  # cut off while it was unpacked
    assert [kernel.version for kernel in kernels.cached()] == [
        "6.1.0-9-amd64",
        "6.1.0-50-amd64",
        "6.12.3-amd64",
    ]


@pytest.mark.parametrize("pack", [lzma.compress, lambda data: zlib.compress(data, wbits=31)])
def test_the_elf_kernel_comes_out_of_a_vmlinuz(pack: object) -> None:
    elf = b"\x7fELF" + bytes(1000)
    packed = pack(elf)  # type: ignore[operator]
    assert unpack_image(b"head" * 99 + packed + b"tail") == elf
    assert unpack_image(b"nothing of the kind") is None


def test_the_archive_is_chosen_from_the_hosts_sources() -> None:
    listing = (
        "http://a.example/debian-security/ bookworm-security main\n"
        "http://a.example/debian/ bookworm-updates main\n"
        "http://b.example/debian/ bookworm contrib\n"
        "http://c.example/mirror/debian/ bookworm main\n"
    )
    assert debian.choose_archive(listing) == "http://c.example/mirror/debian/"
    assert debian.choose_archive("http://u.example/ubuntu/ noble main\n") is None


def test_an_archive_named_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMCOPY_DEBIAN", "http://here.example/debian")
    assert debian.archive() == "http://here.example/debian"


def test_no_tool_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("dmcopy.block.tools.search_path", lambda: str(tmp_path))
    with pytest.raises(MissingError, match="no apt-get here"):
        debian.fetch("bookworm", tmp_path)


def test_no_space_for_a_kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(debian, "_SPACE_NEEDED", 1 << 60)
    with pytest.raises(MissingError, match="make room or set XDG_CACHE_HOME"):
        debian.fetch("bookworm", tmp_path)


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="no dpkg-deb")
@pytest.mark.skipif(not tools.which("depmod"), reason="no depmod (kmod)")
def test_a_package_is_unpacked_without_what_no_guest_uses(tmp_path: Path) -> None:
    root = tmp_path / "package"
    modules = root / "usr/lib/modules" / VERSION
    for name in ("drivers/md/dm-mod.ko.xz", "drivers/gpu/big.ko.xz", "fs/9p/9p.ko"):
        path = modules / "kernel" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(lzma.compress(b"module") if name.endswith("xz") else b"module")
    (root / "boot").mkdir()
    (root / f"boot/vmlinuz-{VERSION}").write_bytes(b"head" + lzma.compress(b"\x7fELF and so on"))
    package = tmp_path / "package.deb"
    _build_deb(package, root)
    target = tmp_path / VERSION
    debian.unpack(package, target, VERSION)
    there = {str(path.relative_to(target)) for path in target.rglob("*.ko")}
    here = f"lib/modules/{VERSION}/kernel"
    assert there == {f"{here}/drivers/md/dm-mod.ko", f"{here}/fs/9p/9p.ko"}
    assert (target / "vmlinux").read_bytes() == b"\x7fELF and so on"
    assert (target / f"lib/modules/{VERSION}/modules.dep").exists()
    assert (target / debian.COMPLETE).exists()


def _build_deb(package: Path, root: Path) -> None:
    """A .deb by hand: an ar archive of a version and two tar archives."""
    data, control = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as tar:
        tar.add(root, ".")
    with tarfile.open(fileobj=control, mode="w:xz") as tar:
        info = tarfile.TarInfo("./control")
        text = b"Package: x\nVersion: 1\nArchitecture: all\nMaintainer: x\nDescription: x\n"
        info.size = len(text)
        tar.addfile(info, io.BytesIO(text))
    parts = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": control.getvalue(),
        "data.tar.xz": data.getvalue(),
    }
    with package.open("wb") as file:
        file.write(b"!<arch>\n")
        for name, body in parts.items():
            file.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(body):<10}`\n".encode())
            file.write(body + b"\n" * (len(body) % 2))
