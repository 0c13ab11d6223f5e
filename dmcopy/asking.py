"""A question to one of this user's servers: a line of JSON there, a line of JSON back.

    {"version": 1, "do": "cut", "seed": 7}
    {"version": 1, "ok": true}
    {"version": 1, "ok": false, "error": "…", "kind": "UsageError"}

What went wrong at the server is raised here as it was there, with its kind, errno and notes.
"""

from __future__ import annotations

import contextlib
import json
import os

from dmcopy import errors
from dmcopy.errors import DeadlineError, DmcopyError, ExitCode, UsageError, of_limit
from dmcopy.runtime import kept_path

TYPE_CHECKING = False  # as in typing, whose import takes as long as all else that the shim does
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from typing import Any, Final

VERSION: Final = 1
MAX_PATH: Final = 107
"""What fits into sun_path with its end, in bytes (man 7 unix)."""
MAX_ANSWER: Final = 64 << 20
_TRIES: Final = 5


class NoServerError(UsageError):
    """No process listens there. `ended`: one did, and is gone without an answer."""

    def __init__(self, text: str, *, ended: bool = False) -> None:
        self.ended = ended
        if ended:
            self.exit_code = ExitCode.FAILED
        super().__init__(text)


def ask(
    path: str, request: dict[str, Any], *, timeout: float = 60.0, own: bool = True
) -> dict[str, Any]:
    """Ask the server at `path`, and wait for its answer, `timeout` seconds at most.

    `own`: only this user's or root's is believed. Raises NoServerError, what the server answers
    with, DeadlineError, UsageError for another user's.
    """
    with asked(path, request, timeout=timeout, own=own) as answer:
        return answer


@contextlib.contextmanager
def asked(
    path: str, request: dict[str, Any], *, timeout: float = 60.0, own: bool = True
) -> Iterator[dict[str, Any]]:
    """Ask as `ask` does; until the block ends, the server sees that who has asked is there."""
    if len(os.fsencode(path)) > MAX_PATH:
        raise UsageError(f"{path} is too long for a socket")
    line = b""
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout)
        try:
            sock.connect(path)
        except TimeoutError:
            raise _late(path, timeout) from None
        except PermissionError:
            raise UsageError(f"the server at {path} is another user's") from None
        except OSError as error:
            raise NoServerError(f"there is no server at {path}: {error.strerror}") from None
        if own and _user(sock) not in (0, os.geteuid()):
            raise UsageError(f"the server at {path} is another user's")
        try:
            try:
                sock.sendall(json.dumps({"version": VERSION, **request}).encode() + b"\n")
            except (BrokenPipeError, ConnectionResetError):
                pass  # one that refuses to listen has answered, and is gone: that can be read
            with sock.makefile("rb") as stream:
                line = stream.readline(MAX_ANSWER)
        except TimeoutError:
            raise _late(path, timeout) from None
        except OSError:  # it was killed
            pass
        yield _read(path, line)


def _user(sock: socket.socket) -> int:
    """Return whose process listens; what a folder has that others write to may be theirs."""
    import socket
    import sys

    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(credentials[4:8], sys.byteorder)


def _read(path: str, line: bytes) -> dict[str, Any]:
    """Return an answer. Raises what it says."""
    try:
        answer = json.loads(line)
    except ValueError:
        text = f"the server at {path} ended before it answered"
        raise NoServerError(text, ended=True) from None
    if not isinstance(answer, dict) or answer.get("version") != VERSION:
        spoken = answer.get("version") if isinstance(answer, dict) else None
        raise DmcopyError(
            f"the server at {path} is of another version: it speaks {spoken!r:.20}, and this "
            f"dmcopy {VERSION}; use the dmcopy that started it, or end it"
        )
    if answer.get("ok") is not True:
        raise error_of(answer)
    return answer


def ask_devices(
    path: str,
    request: dict[str, Any],
    *,
    timeout: float,
    start: Callable[[], object] | None = None,
) -> Any:
    """Ask this user's device server, which `start` starts where there is none; return the result.

    Raises as `ask`, and DmcopyError where it was killed with its devices.
    """
    for _ in range(_TRIES):
        try:
            return ask(path, request, timeout=timeout)["result"]
        except NoServerError as error:
            if error.ended:
                raise
            if os.path.exists(kept_path()):
                raise DmcopyError(
                    "the device server was killed, and its devices with it: 'dmcopy serve "
                    "--resume' has them back, 'dmcopy dm reap' gives them up"
                ) from None
            if start is None:
                raise
        start()
    raise DmcopyError("the device server ends again and again as soon as it was started")


def told(error: Exception) -> DmcopyError:
    """Return an error as one that an answer can have."""
    if isinstance(error, DmcopyError):
        return error
    text = f"the device server failed: {type(error).__name__}: {error}"
    return of_limit(error) or DmcopyError(text)


def facts_of(error: DmcopyError) -> dict[str, Any]:
    """Return an error as an answer has it."""
    kinds = (cls.__name__ for cls in type(error).__mro__)
    facts: dict[str, Any] = {
        "error": str(error),
        "kind": next(kind for kind in kinds if hasattr(errors, kind)),
    }
    for name in ("path", "errno", "holders"):
        if hasattr(error, name):
            facts[name] = getattr(error, name)
    if notes := getattr(error, "__notes__", None):
        facts["notes"] = notes
    return facts


def error_of(answer: dict[str, Any]) -> DmcopyError:
    """Return the error that an answer has, as it was raised there."""
    cls = getattr(errors, str(answer.get("kind")), None)
    if not (isinstance(cls, type) and issubclass(cls, DmcopyError)):
        cls = DmcopyError
    text = str(answer.get("error"))
    found: DmcopyError = cls.__new__(cls, text)
    DmcopyError.__init__(found, text)  # the sentence is whole: nothing is to be composed
    for name in ("path", "errno"):
        if name in answer:
            setattr(found, name, answer[name])
    if isinstance(answer.get("holders"), list):
        found.holders = tuple(map(str, answer["holders"]))  # type: ignore[attr-defined]
    for note in answer.get("notes", ()):
        found.add_note(str(note))
    return found


def _late(path: str, timeout: float) -> DeadlineError:
    return DeadlineError(f"the server at {path} did not answer in {timeout:g} s")
