"""A device server of a test's own, and commands that use it."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dmcopy.block import mounts
from dmcopy.cli.main import main
from dmcopy.errors import DmcopyError
from dmcopy.ledger import Ledger, alive
from dmcopy.mapper.served import ServedMapper
from dmcopy.runtime import control_path, kept_path
from tests.waiting import until

SECONDS = 120.0
MIB = 1 << 20


class Here:
    """A runtime folder of the test's own, in memory, and commands with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mapper = ServedMapper()

    def image(self, name: str, size: int) -> Path:
        path = self.folder / name
        with open(path, "wb") as file:
            file.truncate(size)
        return path

    def run(self, *words: str | os.PathLike[str], code: int | None = 0) -> str:
        """Run a program; it must end with `code`, if any is said."""
        done = subprocess.run(
            list(map(str, words)),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )
        assert code in (None, done.returncode), f"{words}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def dm(self, *words: str | os.PathLike[str], code: int = 0) -> str:
        return self.dmcopy("dm", *words, code=code)

    def dmcopy(self, *words: str | os.PathLike[str], code: int = 0) -> str:
        """Run a command, in this process; it must end with `code`."""
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            found = main([*map(str, words)])
        assert found == code, f"{words}: {said.getvalue()}"
        return said.getvalue()

    def mounted(self, node: str | os.PathLike[str]) -> Path:
        """Mount a node on a folder."""
        point = self.folder / "mounted" / os.path.basename(node)
        point.mkdir(parents=True, exist_ok=True)
        self.run("mount", node, point)
        return point

    def server(self) -> str:
        """Return who the server is, as the ledger has it."""
        (entry,) = [entry for entry in Ledger().entries() if entry.kind == "server"]
        return entry.uuid

    def gone(self, server: str) -> None:
        """Wait for the end of a server that was killed."""
        until(lambda: not alive(server), "the end of a killed server")

    def ended(self, server: str = "") -> bool:
        """Wait for the end of the server, which has no devices any more."""
        entries = Ledger().entries
        until(
            lambda: not alive(server) and not any(one.kind == "server" for one in entries()),
            "the end of the device server",
        )
        return True


@contextlib.contextmanager
def of_its_own() -> Iterator[Here]:
    """Give a runtime folder that no other test knows; nothing may be left in it."""
    shm = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="dmcopy-", dir=shm) as name:
        os.environ["DMCOPY_RUNTIME_DIR"] = name
        found = Here(Path(name))
        try:
            yield found
        finally:
            _clear(found)
        assert found.ended()
        assert Ledger().entries() == []
        assert not Path(control_path()).exists()
        table = mounts.parse_mountinfo(Path("/proc/self/mountinfo").read_text())
        assert not [mount.point for mount in table if mount.point.startswith(name)]


def _clear(here: Here) -> None:
    """Take away what a failed test left, so that it is the only one that fails."""
    table = mounts.parse_mountinfo(Path("/proc/self/mountinfo").read_text())
    for mount in reversed(table):
        if mount.point.startswith(f"{here.folder}/mounted"):
            subprocess.run(["umount", "--lazy", mount.point], check=False)
    if Path(kept_path()).exists() and not any(alive(one.uuid) for one in Ledger().entries()):
        here.dm("reap")
    for _ in range(10):
        for info in here.mapper.ls():
            with contextlib.suppress(DmcopyError):
                if info.suspended and info.live:
                    here.mapper.resume(info.name)  # a program that waits for it would have it open
                if not info.open_count:
                    here.mapper.remove(info.name)
    if here.mapper.ls():  # what is left may hold up every sync, and all that looks at disks
        server = here.server()
        os.kill(int(server.split()[0]), signal.SIGKILL)
        here.gone(server)
        here.dm("reap")
