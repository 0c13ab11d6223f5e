"""Debian's kernels, through apt with a state of its own: the host's apt sources stay as they are.

Where the packages come from is read from the host's own sources, so a mirror that the user has
configured serves the rig too. Works without root.
"""

from __future__ import annotations

import contextlib
import io
import lzma
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Final

from dmcopy.block import tools
from dmcopy.errors import MissingError
from dmcopy.vm.cache import locked, require_space
from dmcopy.vm.image import unpack_image

COMPLETE: Final = "complete"
_SPACE_NEEDED: Final = 700 << 20
_TIMEOUT: Final = 900.0
_KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

# What a guest can use: the rest (graphics, sound, network cards) is three quarters of a package.
_KEPT: Final = re.compile(
    r"kernel/(arch|block|crypto|fs|lib|mm|virt|net/(9p|core|vmw_vsock|unix|ipv4|ipv6|netfilter)"
    r"|drivers/(ata|block|char|crypto|dax|dca|firmware|hv|md|message|mtd|nvdimm|nvme|pps|ptp|scsi"
    r"|target|uio|vdpa|vhost|virtio|net/(virtio_net|tun|dummy|veth|net_failover)))[/.]"
)


def fetch(suite: str, folder: Path) -> str:
    """Fetch and unpack the newest kernel of Debian `suite` under `folder`; return its version.

    Raises MissingError where apt, a Debian source, the network or the space is missing, and
    DeadlineError if another process has been fetching for ten minutes.
    """
    for tool in ("apt-get", "apt-cache", "dpkg-deb", "depmod"):
        if tools.which(tool) is None:
            package = "kmod" if tool == "depmod" else "apt and dpkg"
            raise MissingError(
                f"no {tool} here, which fetches Debian's kernels: install {package}, or give "
                "--kernel the path of a vmlinuz"
            )
    require_space(folder, _SPACE_NEEDED, "a kernel")
    with locked(folder / ".lock", "fetching a kernel", 600):
        return _fetch_locked(suite, folder)


def _fetch_locked(suite: str, folder: Path) -> str:
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as scratch:
        apt = _Apt(Path(scratch), suite)
        package = apt.newest_kernel()
        version = package.removeprefix("linux-image-")
        if (folder / version / COMPLETE).exists():
            return version
        print(f"dmcopy: fetching {package} from Debian {suite}", file=sys.stderr)
        new = Path(scratch) / version
        unpack(apt.download(package), new, version)
        shutil.rmtree(folder / version, ignore_errors=True)
        new.rename(folder / version)
        return version


class _Apt:
    """apt with its state, cache and sources in `scratch`."""

    def __init__(self, scratch: Path, suite: str) -> None:
        self._scratch = scratch
        self._suite = suite
        for name in ("state/lists/partial", "cache/archives/partial"):
            (scratch / name).mkdir(parents=True)
        (scratch / "status").touch()
        signed = f"[signed-by={_KEYRING}] " if _KEYRING.exists() else ""
        (scratch / "sources.list").write_text(f"deb {signed}{archive()} {suite} main\n")
        self._options = [
            f"-oDir::State={scratch}/state",
            f"-oDir::Cache={scratch}/cache",
            f"-oDir::State::status={scratch}/status",
            f"-oDir::Etc::SourceList={scratch}/sources.list",
            "-oDir::Etc::SourceParts=/dev/null",
            "-oAPT::Architecture=amd64",
            "-oAPT::Sandbox::User=",  # apt's own user may not enter a private folder
            "-oAcquire::Languages=none",
        ]

    def newest_kernel(self) -> str:
        """The package that linux-image-amd64 depends on today."""
        self._run("apt-get", "update", "-qq")
        shown = self._run("apt-cache", "show", "--no-all-versions", "linux-image-amd64")
        match = re.search(r"^Depends:.*?\b(linux-image-\d[^\s,]*)", shown, re.MULTILINE)
        if match is None:
            raise MissingError(f"Debian {self._suite} has no linux-image-amd64 to fetch")
        return match[1]

    def download(self, package: str) -> Path:
        self._run("apt-get", "download", "-qq", package)
        return next(self._scratch.glob(f"{package}_*.deb"))

    def _run(self, tool: str, *words: str) -> str:
        argv = [tool, *self._options, *words]
        done = _run(argv, self._scratch)
        if done.returncode:
            said = (done.stderr.strip() or "no reason given").splitlines()
            reason = next((line for line in said if line.startswith(("E:", "Err"))), said[-1])
            raise MissingError(
                f"cannot get a kernel from Debian {self._suite}: {tool} {words[0]} said: {reason}"
            )
        return done.stdout


def _run(argv: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            argv,
            cwd=folder,
            env=tools.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise MissingError(
            f"{argv[0]} gave no answer within {_TIMEOUT:.0f} s: is the Debian mirror reachable?"
        ) from None


def archive() -> str:
    """Return the address of the Debian archive that the host's own apt uses.

    `DMCOPY_DEBIAN` overrides it. Raises MissingError on a host whose sources have no Debian.
    """
    if "DMCOPY_DEBIAN" in os.environ:
        return os.environ["DMCOPY_DEBIAN"]
    listing = _run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)"], Path("/")
    )
    found = choose_archive(listing.stdout)
    if found is None:
        raise MissingError(
            "no Debian archive among this machine's apt sources: set DMCOPY_DEBIAN to one's "
            "address, or give --kernel the path of a vmlinuz"
        )
    return found


def choose_archive(listing: str) -> str | None:
    """Pick the main archive from lines of `address release component`: no -security, no -updates.

    Debian's own archive ends in /debian wherever it is mirrored.
    """
    for line in listing.splitlines():
        address, release, component = line.split()
        if component == "main" and re.search(r"/debian/?$", address) and "-" not in release:
            return address
    return None


def unpack(package: Path, target: Path, version: str) -> None:
    """Unpack a kernel package to `target`: vmlinux, config and the modules that a guest can use."""
    target.mkdir()
    with _data_of(package) as data, tarfile.open(fileobj=data, mode="r|") as tar:
        for member in tar:
            name = member.name.removeprefix("./").removeprefix("usr/")
            stream = tar.extractfile(member)
            if stream is not None:
                _keep(name, stream, target, version)
    image = (target / "vmlinuz").read_bytes()
    (target / "vmlinux").write_bytes(unpack_image(image) or image)
    done = _run(["depmod", "-b", str(target), version], target)
    if done.returncode:
        raise MissingError(f"depmod cannot index {target}: {done.stderr.strip()}")
    (target / COMPLETE).touch()


def _keep(name: str, stream: IO[bytes], target: Path, version: str) -> None:
    inside = name.removeprefix(f"lib/modules/{version}/")
    if name == f"boot/vmlinuz-{version}":
        path = target / "vmlinuz"
    elif name == f"boot/config-{version}":
        path = target / "config"
    elif name != inside and (inside.startswith("modules.") or _KEPT.match(inside)):
        path = target / name
    else:
        return
    if path.suffix == ".xz":
        # Unpacked once here, not by each guest at each modprobe.
        stream, path = io.BytesIO(lzma.decompress(stream.read())), path.with_suffix("")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        shutil.copyfileobj(stream, file)


@contextlib.contextmanager
def _data_of(package: Path) -> Iterator[IO[bytes]]:
    argv = ["dpkg-deb", "--fsys-tarfile", str(package)]
    with subprocess.Popen(argv, env=tools.environment(), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield process.stdout
