"""The devices of this user's device server, asked without what `mapper.served` imports.

The server is started by the first call that makes something; without one there are no devices.
"""

from __future__ import annotations

import contextlib
import errno

from dmcopy.asking import NoServerError, ask_devices, asked
from dmcopy.errors import DmcopyError
from dmcopy.runtime import control_path, nodes_folder
from dmcopy.shim.devices import Info, Refused, refusal
from dmcopy.shim.tables import holders, node, number_of, numbered, resolved, split_message

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

SECONDS = 90.0
"""How long an answer may take: the server's own deadline for I/O is 30 s, and others' calls."""
FOREVER = 1e8


class ServedDevices:
    """See `devices.Devices`."""

    def infos(self) -> list[Info]:
        """Return what is known of every device; none where no server runs."""
        try:
            found = self._ask("ls")
        except DmcopyError as error:
            if isinstance(error, NoServerError) and not error.ended:
                return []
            raise refusal(error) from None
        numbers = {node(values["name"]): values["number"] for values in found}
        mounts = _mounts() if found else b""
        return [_info(values, numbers, mounts) for values in found]

    def table(self, name: str, *, inactive: bool) -> list[str]:
        return self._lines("table", name=name, inactive=inactive)

    def status(self, name: str, *, flush: bool) -> list[str]:
        del flush
        return self._lines("status", name=name)

    def _lines(self, do: str, **words: Any) -> list[str]:
        """Return lines in which the server's own devices are numbers, as the kernel has them."""
        text: str = self._do(do, **words)
        if f" {nodes_folder()}/" in text:
            text = numbered(text, self.infos())
        return text.splitlines()

    def targets(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = self._do("targets", start=True)
        return found

    def create(self, name: str, table: str | None, *, uuid: str, readonly: bool) -> None:
        text = None if table is None else self._resolved(table)
        self._do("create", start=True, name=name, table=text, uuid=uuid, readonly=readonly)

    def load(self, name: str, table: str, *, readonly: bool) -> None:
        self._do("load", name=name, table=self._resolved(table), readonly=readonly)

    def clear(self, name: str) -> None:
        """Drop the loaded table."""
        self._do("clear", name=name)

    def suspend(self, name: str, *, flush: bool, lockfs: bool) -> None:
        """Hold new I/O; `lockfs` freezes a file system first, which thaws when it is resumed."""
        info = self._info(name)
        freezes = lockfs and info.live and not info.suspended
        with self._frozen(info, freezes):
            self._do("suspend", name=name, flush=flush)

    def resume(self, name: str, *, flush: bool, lockfs: bool) -> None:
        info = self._info(name)
        swaps = info.live and info.inactive and not info.suspended
        with self._frozen(info, lockfs and swaps):
            thaw = self._do("resume", name=name, flush=flush)
        if thaw:
            from dmcopy.block import freezing

            try:
                freezing.thawed(info.number, self._telling(name))
            except DmcopyError as error:
                raise refusal(error) from None

    @contextlib.contextmanager
    def _frozen(self, info: Info, wanted: bool) -> Iterator[None]:
        """Freeze what is mounted from a device, of which most calls need no import."""
        if not (wanted and _is_mounted(info.number, _mounts())):
            yield
            return
        from dmcopy.block import freezing

        try:
            with freezing.frozen(info.number, self._telling(info.name)):
                yield
        except DmcopyError as error:
            raise refusal(error) from None

    def _telling(self, name: str) -> Callable[[str], contextlib.AbstractContextManager[object]]:
        return lambda do: asked(control_path(), {"do": do, "name": name}, timeout=SECONDS)

    def remove(self, name: str, *, deferred: bool) -> None:
        self._do("remove", name=name, deferred=deferred)

    def rename(self, name: str, new: str) -> None:
        """Give a device another name."""
        self._do("rename", name=name, new_name=new)

    def set_uuid(self, name: str, uuid: str) -> None:
        self._do("set_uuid", name=name, uuid=uuid)

    def message(self, name: str, sector: int, text: str) -> str:
        answer: str = self._do("message", name=name, sector=sector, words=split_message(text))
        return answer

    def wait(self, name: str, event: int) -> None:
        self._do("wait", name=name, event=event, timeout=FOREVER, seconds=FOREVER)

    def _info(self, name: str) -> Info:
        for info in self.infos():
            if info.name == name:
                return info
        raise Refused(errno.ENXIO)

    def _resolved(self, table: str) -> str:
        return resolved(table, self.infos())

    def _do(self, do: str, *, start: bool = False, **words: Any) -> Any:
        try:
            return self._ask(do, start=start, **words)
        except NoServerError as error:
            raise Refused(errno.EIO if error.ended else errno.ENXIO, str(error)) from None
        except DmcopyError as error:
            raise refusal(error) from None

    def _ask(self, do: str, *, start: bool = False, seconds: float = SECONDS, **words: Any) -> Any:
        request = {"do": do, **words}
        begin = _start if start else None
        return ask_devices(control_path(), request, timeout=seconds, start=begin)


def _start() -> None:
    from dmcopy.mapper.served import start_server  # here: it takes longer than a call

    start_server()


def _mounts() -> bytes:
    with open("/proc/self/mountinfo", "rb") as stream:
        return stream.read()


def _is_mounted(number: tuple[int, int], mounts: bytes) -> bool:
    return b" %d:%d " % number in mounts


def _info(values: dict[str, Any], numbers: dict[str, list[int] | None], mounts: bytes) -> Info:
    """Return what the server knows of a device, and how often it is open; see `ServedMapper`."""
    deps = [numbers.get(dep) or number_of(dep) for dep in values["deps"]]
    number = (0, 0) if values["number"] is None else (values["number"][0], values["number"][1])
    return Info(
        values["name"],
        number,
        uuid=values["uuid"],
        opened=values["open_count"] + _is_mounted(number, mounts) + len(holders(number)),
        segments=values["segments"],
        events=values["events"],
        suspended=values["suspended"],
        readonly=values["readonly"],
        live=values["live"],
        inactive=values["inactive"],
        deferred=values["deferred"],
        deps=[(dep[0], dep[1]) for dep in deps if dep],
    )
