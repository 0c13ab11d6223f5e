"""The userspace engine in a process of its own, the device server: `Mapper` over its socket.

Its devices are a user's own, and outlive the process that made them; other programs open them by
their nodes. `dmcopy.export.device_server` is the other side.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final

from dmcopy.asking import NoServerError, ask_devices, asked, error_of
from dmcopy.block import freezing, sysfs, tools
from dmcopy.block.devno import DevNo
from dmcopy.errors import DeadlineError, DeviceError, DmcopyError
from dmcopy.mapper import names
from dmcopy.mapper.base import UUID_PREFIX, DmInfo, Version, check_name
from dmcopy.mapper.device import DmDevice
from dmcopy.mapper.noded import NodedMapper
from dmcopy.mapper.own import OwnDevices
from dmcopy.runtime import control_path
from dmcopy.status import StatusLine, parse_lines
from dmcopy.table import Table

if TYPE_CHECKING:
    from dmcopy.io.reactor import Reactor
    from dmcopy.mapper.mapped_io import MappedIo

_START_SECONDS: Final = 60.0
_GRACE_SECONDS: Final = 60.0
"""How much longer than the engine's own deadline a change may take: others come first."""
_QUICK: Final = frozenset(("ls", "info", "table", "status", "deps", "targets", "message"))
"""What is answered immediately, whatever else is under way."""


class ServedMapper(NodedMapper):
    """This user's device server, which is started when something is to be made.

    `timeout`, in seconds, bounds each call beyond what the server itself waits for I/O.
    `uuid_prefix` is as in `KernelMapper`: for the UUIDs of devices that are given none.
    """

    def __init__(self, *, timeout: float = 30.0, reactor: Reactor | None = None) -> None:
        self.timeout = timeout
        self.uuid_prefix = UUID_PREFIX
        self._path = control_path()
        super().__init__(reactor)

    def create(
        self,
        name: str,
        table: Table | None = None,
        *,
        uuid: str = "",
        readonly: bool = False,
        minor: int | None = None,
        keep: bool = False,
    ) -> DmDevice:
        """Make a device; see `Mapper.create`. It outlives this process, whatever `keep` says."""
        del minor, keep
        names.checked(name)
        names.checked_uuid(uuid)
        if not uuid and self.uuid_prefix:
            uuid = f"{self.uuid_prefix}{os.urandom(16).hex()}"
        text = None if table is None else self._text(table)
        self._ask("create", start=True, name=name, table=text, uuid=uuid, readonly=readonly)
        return DmDevice(self, name)

    def open(self, name: str) -> MappedIo:
        from dmcopy.mapper.node import NodeIo

        self.info(name)
        return NodeIo(self, name, self.reactor, self.timeout)

    def load(self, name: str, table: Table, *, readonly: bool = False) -> None:
        self._of(name, "load a table", "load", table=self._text(table), readonly=readonly)

    def clear(self, name: str) -> None:
        self._of(name, "clear its table", "clear")

    def suspend(self, name: str, *, flush: bool = True, lockfs: bool = True) -> None:
        info = self.info(name)
        freezes = lockfs and info.live and not info.suspended
        with freezing.frozen(info.number if freezes else None, self._telling(name)):
            self._of(name, "suspend it", "suspend", flush=flush)

    def resume(self, name: str, *, flush: bool = True, lockfs: bool = True) -> None:
        """Let I/O continue; see `Mapper.resume`. A file system that was frozen thaws."""
        info = self.info(name)
        swaps = info.live and info.inactive and not info.suspended
        with freezing.frozen(info.number if lockfs and swaps else None, self._telling(name)):
            thaw = self._of(name, "resume it", "resume", flush=flush)
        if thaw:
            freezing.thawed(info.number, self._telling(name))

    def remove(
        self,
        name: str,
        *,
        deferred: bool = False,
        force: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Remove a device; see `Mapper.remove`. `force` makes I/O fail first, for good."""
        del timeout
        if force:
            from dmcopy.table import Error

            length = self.table(name).length
            if length:
                self.swap(name, Table.of(length, Error()), flush=False, lockfs=False)
        self._of(name, "remove it", "remove", deferred=deferred)

    def rename(self, name: str, new_name: str) -> None:
        names.checked(new_name)
        self._of(name, "rename it", "rename", new_name=new_name)

    def set_uuid(self, name: str, uuid: str) -> None:
        names.checked_uuid(uuid)
        self._of(name, "set its UUID", "set_uuid", uuid=uuid)

    def ls(self) -> list[DmInfo]:
        """Return this user's devices, by name; none where no server runs."""
        try:
            found: list[dict[str, Any]] = self._ask("ls")
        except NoServerError:
            return []
        mounted = freezing.mounted() if found else set()
        return [_info(values, mounted) for values in found]

    def info(self, name: str) -> DmInfo:
        return _info(self._of(name, "look at it", "info"), freezing.mounted())

    def table(self, name: str, *, inactive: bool = False, showkeys: bool = False) -> Table:
        del showkeys
        return Table.read(self._of(name, "read its table", "table", inactive=inactive))

    def tables(self, *, inactive: bool = False, showkeys: bool = False) -> dict[str, Table]:
        """Return every table, by name; see `table`."""
        del showkeys
        return {info.name: self.table(info.name, inactive=inactive) for info in self.ls()}

    def status(self, name: str, *, flush: bool = True) -> tuple[StatusLine, ...]:
        del flush
        return parse_lines(self._of(name, "read its status", "status"))

    def message(self, name: str, *words: str, sector: int = 0) -> str:
        what = "send it a message"
        answer: str = self._of(name, what, "message", words=words, sector=sector)
        return answer

    def wait(self, name: str, event: int, *, timeout: float) -> int:
        """Wait for an event; see `Mapper.wait`. It holds no other call up."""
        number: int = self._of(
            name, "wait for it", "wait", event=event, timeout=timeout, seconds=timeout
        )
        return number

    def deps(self, name: str) -> tuple[str, ...]:
        return tuple(self._of(name, "read its dependencies", "deps"))

    def targets(self) -> dict[str, Version]:
        found: dict[str, list[int]] = self._ask("targets", start=True)
        return {name: Version(*numbers) for name, numbers in found.items()}

    def path(self, name: str) -> str:
        return self._own().path(name)

    def refusal(self, table: Table) -> str:
        try:
            text = self._text(table)
        except DmcopyError as error:
            return str(error)
        reason: str = self._ask("refusal", start=True, table=text)
        return reason

    def name_of(self, text: str) -> str:
        """Return the name that a person means: a name, or the path of a node."""
        if "/" not in text:
            return names.unmangle(text)
        return self._own().name(text) or names.unmangle(os.path.basename(text))

    def named(self, word: str) -> str:
        """Return the name of the device that `word` is a path of; any other word as it is."""
        return (self._own().name(word) if "/" in word else "") or word

    def load_plugin(self, module: str) -> None:
        """Have the server import targets; it finds `module` where this process does.

        A server that has imported it before keeps what it has.
        """
        folders = list(map(os.path.abspath, sys.path))
        self._ask("plugin", start=True, module=module, folders=folders)

    def _telling(self, name: str) -> freezing.Tell:
        return lambda do: asked(self._path, {"do": do, "name": name}, timeout=self.timeout)

    def _own(self) -> OwnDevices:
        return OwnDevices(self.ls)

    def _text(self, table: Table) -> str:
        """Return the text of a table, checked; this engine's devices by the names it has."""
        table.check()
        return str(table.with_devices(self._own().resolve))

    def _of(self, name: str, action: str, do: str, *, seconds: float = 0, **words: Any) -> Any:
        """Ask for something of a device; without a server there is none."""
        check_name(name)
        try:
            return self._ask(do, seconds=seconds, name=name, **words)
        except NoServerError as error:
            if error.ended:
                raise
            raise DeviceError(name, action, errno.ENXIO) from None

    def _ask(self, do: str, *, start: bool = False, seconds: float = 0, **words: Any) -> Any:
        timeout = self.timeout + seconds + (0 if do in _QUICK else _GRACE_SECONDS)
        begin = start_server if start else None
        return ask_devices(self._path, {"do": do, **words}, timeout=timeout, start=begin)


def start_server(*, resume: bool = False) -> None:
    """Start this user's device server, unless it runs; return when it can be asked.

    `resume`: with the devices that a killed one had. Raises what is in its way.
    """
    ours, theirs = os.pipe()
    try:
        started = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "dmcopy.export.daemon",
                str(theirs),
                *(["resume"] if resume else []),
            ],
            cwd="/",
            env=tools.python_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(theirs,),
            start_new_session=True,
        )
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    with open(ours, "rb") as stream:
        started.wait(_START_SECONDS)  # it leaves immediately: the server is its child
        line = _read_line(stream.fileno())
    try:
        answer = json.loads(line)
    except ValueError:
        folder = os.path.dirname(control_path())
        raise DmcopyError(
            f"the device server ended before it began; {folder}/server,log may say why"
        ) from None
    if not answer["ok"]:
        raise error_of(answer)


def _read_line(fd: int) -> bytes:
    import select

    found = b""
    poll = select.poll()  # not select, which takes no descriptor from 1024 on
    poll.register(fd, select.POLLIN)
    while not found.endswith(b"\n"):
        if not poll.poll(_START_SECONDS * 1000):
            raise DeadlineError(f"the device server did not begin within {_START_SECONDS:g} s")
        more = os.read(fd, 1 << 16)
        if not more:
            break
        found += more
    return found


def _info(values: dict[str, Any], mounted: set[DevNo]) -> DmInfo:
    """Return what the server knows of a device; it is open as often as it is known to be.

    The server counts the tables above it, and here are its mount and the kernel's devices.
    """
    number = None if values["number"] is None else tuple(values["number"])
    users = 0
    if number is not None:
        users = (number in mounted) + len(sysfs.holders(sysfs.name_of(number)))
    values |= {"number": number, "deps": tuple(values["deps"])}
    values["open_count"] += users
    return DmInfo(**values)
