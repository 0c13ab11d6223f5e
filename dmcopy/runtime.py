"""Where a user's servers have their sockets and files while they run.

That is one place for a user. With $DMCOPY_RUNTIME_DIR it is another one, with a device server and a
ledger of its own: for tests that know nothing of each other.
"""

from __future__ import annotations

import contextlib
import os
import stat

from dmcopy.errors import UsageError

TYPE_CHECKING = False  # as in typing, whose import takes as long as all else that the shim does
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Final

RUNTIME_DIR: Final = "DMCOPY_RUNTIME_DIR"
MAPPER_DIR: Final = "DMCOPY_MAPPER_DIR"
SERVER: Final = "server,control"
"""The device server's socket: no device has such a name for its node, see `mapper.names.mangle`."""


def folder_path() -> Path:
    """Return where the folder is, or would be: /run/dmcopy for root."""
    from pathlib import Path  # here: see above

    return Path(_folder())


def _folder() -> str:
    if asked := os.environ.get(RUNTIME_DIR):
        return os.path.join(os.getcwd(), asked)
    if os.geteuid() == 0:
        return "/run/dmcopy"
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    if not base.startswith("/"):  # then it is to be ignored, says the XDG Base Directory standard
        base = f"/run/user/{os.geteuid()}"
    return f"{base}/dmcopy"


def environment() -> dict[str, str]:
    """Return the environment for a server, which has another working folder."""
    asked = [name for name in (RUNTIME_DIR, MAPPER_DIR) if os.environ.get(name)]
    return {**os.environ, **{name: os.path.join(os.getcwd(), os.environ[name]) for name in asked}}


def runtime_folder(otherwise: str = "--socket PATH") -> Path:
    """Return the folder of what this user serves, /run/dmcopy for root, made with mode 0700.

    `otherwise`: what to say on the command line to do without. Raises UsageError where
    there is none, or where others could have put something into it.
    """
    folder = folder_path()
    asked = os.environ.get(RUNTIME_DIR) or os.geteuid() == 0
    variable = RUNTIME_DIR if asked else "XDG_RUNTIME_DIR"
    otherwise = " or ".join(filter(None, [otherwise, f"another {variable}"]))
    try:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
    except OSError as error:
        raise UsageError(
            f"there is no place for it, {folder} cannot be made ({error.strerror}): say {otherwise}"
        ) from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise UsageError(
            f"{folder} is not a folder that only you write to: make it one, with mode 0700, or "
            f"say {otherwise}"
        )
    return folder


def nodes_folder() -> str:
    """Return where root's userspace devices have their nodes."""
    asked = os.environ.get(RUNTIME_DIR)
    return f"{_folder()}/dev" if asked else "/dev/dmcopy"


def mapper_folder() -> str:
    """Return where they have nodes, too, if the kernel has no device-mapper; "" for nowhere.

    Servers of tests, which know nothing of each other, would meet there: with $DMCOPY_RUNTIME_DIR
    it is nowhere, unless $DMCOPY_MAPPER_DIR says where.
    """
    default = "" if os.environ.get(RUNTIME_DIR) else "/dev/mapper"
    return os.environ.get(MAPPER_DIR, default)


SERVER_NAME: Final = "the device server"
"""What the ledger calls it."""


def kept_path() -> str:
    """Return the path of what the device server had last; it removes it when it ends."""
    return f"{_folder()}/server,devices"


def control_path() -> str:
    """Return the path of the device server's control socket, whether it is there or not."""
    return f"{_folder()}/{SERVER}"
