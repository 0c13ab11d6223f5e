"""A trial of what would be done to userspace devices: printed as dmsetup's commands.

The `dmsetup` of `dmcopy dm shim` runs them, on the device server.
"""

from __future__ import annotations

import shlex
import sys
from typing import Any, Final, TextIO

from dmcopy.asking import NoServerError
from dmcopy.mapper.names import mangle
from dmcopy.mapper.served import ServedMapper

_LOOKING: Final = frozenset(("ls", "info", "table", "status", "deps", "targets"))
_IDLE: Final = frozenset(("plugin", "refusal"))


class ServedScript(ServedMapper):
    """Prints what would change something; only looks at what is there, and starts no server."""

    def __init__(self, *, timeout: float = 30.0, stream: TextIO | None = None) -> None:
        super().__init__(timeout=timeout)
        self._stream = stream or sys.stdout

    def suspend(self, name: str, *, flush: bool = True, lockfs: bool = True) -> None:
        """Print the command; nothing is frozen."""
        self._print("suspend", *_options(noflush=not flush, nolockfs=not lockfs), mangle(name))

    def resume(self, name: str, *, flush: bool = True, lockfs: bool = True) -> None:
        """Print the command; nothing is frozen."""
        self._print("resume", *_options(noflush=not flush, nolockfs=not lockfs), mangle(name))

    def remove(
        self,
        name: str,
        *,
        deferred: bool = False,
        force: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Print the command."""
        del timeout
        self._print("remove", *_options(deferred=deferred, force=force), mangle(name))

    def _ask(self, do: str, *, start: bool = False, seconds: float = 0, **words: Any) -> Any:
        del start
        if do in _LOOKING:
            try:
                return super()._ask(do, seconds=seconds, **words)
            except NoServerError:
                if do != "targets":
                    raise
                return {}
        name = mangle(words.get("name", ""))
        table = words.get("table")
        if do in ("create", "load"):
            options = ["--uuid", words["uuid"]] if words.get("uuid") else []
            options += _options(readonly=words["readonly"], notable=table is None)
            self._print(do, *options, name, table=table)
        elif do == "rename":
            self._print(do, name, mangle(words["new_name"]))
        elif do == "set_uuid":
            self._print("rename", "--setuuid", name, words["uuid"])
        elif do == "message":
            self._print(do, name, str(words["sector"]), *words["words"])
        elif do not in _IDLE:
            self._print(do, name)
        return ""

    def _print(self, *words: str, table: str | None = None) -> None:
        text = shlex.join(["dmsetup", *words])
        if table is not None:
            text += f" <<'END-OF-TABLE'\n{table}\nEND-OF-TABLE"
        print(text, file=self._stream)


def _options(**given: bool) -> list[str]:
    return [f"--{name}" for name, value in given.items() if value]
