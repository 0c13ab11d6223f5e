"""The kernel as an engine: `Mapper` over the dmsetup command."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final
from weakref import WeakSet

from dmcopy.block import holders
from dmcopy.block.devno import openable
from dmcopy.block.sysfs import disk_mark
from dmcopy.errors import (
    BusyError,
    DeadlineError,
    DeviceError,
    DmcopyError,
    MissingError,
    UsageError,
)
from dmcopy.ledger import Ledger
from dmcopy.mapper import listing, names
from dmcopy.mapper.base import (
    PREFIX,
    QUICK_SECONDS,
    UUID_PREFIX,
    DmInfo,
    Version,
    check_name,
    note_failure,
)
from dmcopy.mapper.device import DmDevice
from dmcopy.mapper.dmsetup import Dmsetup, DmsetupError
from dmcopy.mapper.noded import NodedMapper
from dmcopy.mapper.passing import is_suspended, missing_device, table_text
from dmcopy.status import StatusLine, parse_lines
from dmcopy.table import Table

if TYPE_CHECKING:
    from dmcopy.io.reactor import Reactor
    from dmcopy.mapper.mapped_io import MappedIo

_log = logging.getLogger(__name__)
_FIRST_PAUSE: Final = 0.02
_LONGEST_PAUSE: Final = 0.25


class KernelMapper(NodedMapper):
    """Mapped devices of the running kernel.

    `timeout`, in seconds, is the one deadline of a call, its retries included. `ledger` notes what
    is made, so that `reap` can remove it after a crash. `prefix` is for the names that `device`
    and `stack` make. `uuid_prefix` is for the UUIDs of devices that are given none; where it is
    empty they get none, and the ledger tells them from others by the number of their disk.

    What `open` opens is used on one thread, that of `reactor`: by default one of the mapper's own,
    which `close`, or the end of a `with` block, gives up. A reactor of the caller's must be made
    with `stacked=True`.
    """

    def __init__(
        self,
        dmsetup: Dmsetup | None = None,
        *,
        ledger: Ledger | None = None,
        prefix: str = PREFIX,
        timeout: float = 30.0,
        reactor: Reactor | None = None,
    ) -> None:
        self.ledger = ledger or Ledger()
        self.dmsetup = dmsetup or Dmsetup(timeout=timeout, ledger=self.ledger)
        self.prefix = prefix
        self.uuid_prefix = UUID_PREFIX
        self.timeout = timeout
        super().__init__(reactor)
        self._nodes: WeakSet[MappedIo] = WeakSet()

    def close(self) -> None:
        """Close the devices that were opened, and the reactor if it is the mapper's own."""
        for node in list(self._nodes):
            node.close()
        super().close()

    def open(self, name: str) -> MappedIo:
        """Open a device through its node; see `Mapper.open`. Raises BusyError, too."""
        from dmcopy.mapper.node import NodeIo  # most commands do without I/O, and without a reactor

        self.see_node(name)
        node = NodeIo(self, name, self.reactor, self.timeout)
        self._nodes.add(node)
        return node

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
        names.checked(name)
        uuid = names.checked_uuid(uuid)
        if not uuid and self.uuid_prefix:
            uuid = f"{self.uuid_prefix}{os.urandom(16).hex()}"
        text = None if table is None else table_text(table)
        words = ["create", *(["--uuid", uuid] if uuid else [])]
        words += ["--readonly"] if readonly else []
        words += [] if minor is None else ["--minor", str(minor)]
        words += ["--notable"] if text is None else []
        entry = self.ledger.add("dm", name, uuid=uuid, keep=keep)
        try:
            self._change("create it", name, *words, "--", name, stdin=text, table=table)
            self.see_node(name)
        except BaseException as error:
            if isinstance(error, names.TakenError):
                self.ledger.cancel(entry)  # the one of that name is not ours
            else:
                note_failure(error, lambda: self._undo(name, uuid, entry))
            raise
        if not uuid:
            self.ledger.identify(entry, disk_mark(names.number_of(name)))
        return DmDevice(self, name)

    def load(self, name: str, table: Table, *, readonly: bool = False) -> None:
        words = ["load", *names.options(name), *(["--readonly"] if readonly else [])]
        text = table_text(table)
        self._change("load a table", name, *words, "--", name, stdin=text, table=table)

    def clear(self, name: str) -> None:
        self._change("clear its table", name, "clear", *names.options(name), "--", name)

    def suspend(self, name: str, *, flush: bool = True, lockfs: bool = True) -> None:
        words = ["suspend", *names.options(name), *_suspend_options(flush, lockfs)]
        self._change("suspend it", name, *words, "--", name)

    def resume(self, name: str, *, flush: bool = True, lockfs: bool = True) -> None:
        words = ["resume", *names.options(name), *_suspend_options(flush, lockfs)]
        self._change("resume it", name, *words, "--", name)
        self.see_node(name)

    def remove(
        self,
        name: str,
        *,
        deferred: bool = False,
        force: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Remove a device; see `Mapper.remove`. `force` makes I/O fail first, for good.

        A process that has it open for a moment, as udev's rules do after every close, is waited for
        until the deadline.
        """
        seconds = self.timeout if timeout is None else timeout
        words = ["remove", *names.options(name), *(["--deferred"] if deferred else [])]
        words += ["--force"] if force else []
        self._until_idle(name, seconds, lambda: self.dmsetup.change(*words, "--", name))
        self.ledger.drop("dm", name)

    def rename(self, name: str, new_name: str) -> None:
        names.checked(new_name)
        options = names.options(name) or names.options(new_name)
        self._change("rename it", name, "rename", *options, "--", name, new_name)
        self.ledger.rename("dm", name, new_name)
        self.see_node(new_name)
        if os.path.lexists(self.path(name)):  # dmsetup's, of which udev does not know
            self._make_node(name)

    def set_uuid(self, name: str, uuid: str) -> None:
        names.checked_uuid(uuid)
        words = ["rename", *names.options(name), "--setuuid", "--", name, uuid]
        try:
            self._change("set its UUID", name, *words)
        except DeviceError as error:
            number, hint = self._why_no_uuid(name, uuid, error)
            if not hint:
                raise
            raise DeviceError(name, "set its UUID", number, hint) from error

    def ls(self) -> list[DmInfo]:
        return sorted(self._infos(), key=lambda info: info.name)

    def info(self, name: str) -> DmInfo:
        check_name(name)
        try:
            found = self._infos(name)
        except DmsetupError as error:
            raise error.about(name, "look at it") from error
        if not found:
            raise DeviceError(name, "look at it", errno.ENXIO)
        return found[0]

    def table(self, name: str, *, inactive: bool = False, showkeys: bool = False) -> Table:
        """Return a table; see `Mapper.table`. `showkeys` for the keys of crypt and integrity."""
        words = [*names.options(name), *(["--inactive"] if inactive else [])]
        words += ["--showkeys"] if showkeys else []
        text = self._ask("read its table", name, self.dmsetup.run, "table", *words, "--", name)
        return Table.read(text)

    def active_tables(self) -> dict[str, Table]:
        return self.tables()

    def tables(self, *, inactive: bool = False, showkeys: bool = False) -> dict[str, Table]:
        """Return every table, by one call of dmsetup; see `table`."""
        words = [*(["--inactive"] if inactive else []), *(["--showkeys"] if showkeys else [])]
        text = self.dmsetup.run("table", *listing.RAW_NAMES, *words)
        return {name: Table.read(lines) for name, lines in listing.parse_lines_of(text).items()}

    def statuses(self, *, flush: bool = True) -> dict[str, tuple[StatusLine, ...]]:
        words = [] if flush else ["--noflush"]
        text = self.dmsetup.run("status", *listing.RAW_NAMES, *words)
        return {name: parse_lines(lines) for name, lines in listing.parse_lines_of(text).items()}

    def all_deps(self) -> dict[str, tuple[str, ...]]:
        """Return the devices under every device, by one call of dmsetup; see `deps`."""
        text = self.dmsetup.run("deps", *listing.RAW_NAMES, "-o", "devno")
        return {
            name: listing.parse_deps(lines) for name, lines in listing.parse_lines_of(text).items()
        }

    def status(self, name: str, *, flush: bool = True) -> tuple[StatusLine, ...]:
        words = [*names.options(name), *([] if flush else ["--noflush"])]
        return parse_lines(
            self._ask("read its status", name, self.dmsetup.run, "status", *words, "--", name)
        )

    def message(self, name: str, *words: str, sector: int = 0) -> str:
        if not all(words) or any("\0" in word for word in words):
            raise UsageError("a word of a message must not be empty or hold a zero byte")
        argv = ["message", *names.options(name), "--", name, str(sector), *map(_escaped, words)]
        return self._change("send it a message", name, *argv).rstrip("\n")

    def wait(self, name: str, event: int, *, timeout: float) -> int:
        try:
            words = ["wait", *names.options(name), "--", name, str(event)]
            self._ask("wait for it", name, self.dmsetup.run, *words, timeout=timeout)
        except DeadlineError:
            raise DeadlineError(
                f"{name}: no event after number {event} within {timeout:g} s"
            ) from None
        return self.info(name).events

    def deps(self, name: str) -> tuple[str, ...]:
        words = [*names.options(name), "-o", "devno", "--", name]
        return listing.parse_deps(
            self._ask("read its dependencies", name, self.dmsetup.run, "deps", *words)
        )

    def targets(self) -> dict[str, Version]:
        found = re.findall(
            r"^(\S+)\s+v(\d+)\.(\d+)\.(\d+)", self.dmsetup.run("targets"), re.MULTILINE
        )
        return {name: Version(*map(int, numbers)) for name, *numbers in found}

    def path(self, name: str) -> str:
        return f"/dev/mapper/{names.mangle(name)}"

    def refusal(self, table: Table) -> str:
        """Try a table; see `Mapper.refusal`. Loads the target's module if there is one."""
        name = f"{PREFIX}try-{os.urandom(6).hex()}"
        probe = self.create(name)
        try:
            self.load(name, table)
        except DmcopyError as error:
            return str(error)
        finally:
            probe.remove()
        return ""

    def exists(self, name: str) -> bool:
        try:
            self.info(name)
        except DeviceError as error:
            if error.errno == errno.ENXIO:
                return False
            raise
        return True

    def see_node(self, name: str) -> None:
        """Have dmsetup make the node of a device where udev's rules made none.

        dmsetup does so behind its own wait for udev, but not where its caller waits for the cookie
        (dm_udev_wait and update_devs in libdm 2.03.16).
        """
        if not names.has_node(name, self.path(name)):
            _log.warning("%s: udev made no node for it, so dmsetup makes it", name)
            self._make_node(name)

    def _make_node(self, name: str) -> None:
        words = ["mknodes", *names.options(name), "--", name]
        self._ask("make its node", name, self.dmsetup.run, *words)

    def _infos(self, *name: str) -> list[DmInfo]:
        # In mode hex: in the default mode one odd name makes the whole list fail.
        hex_names, rest = ("--manglename", "hex"), ["--", *name] if name else []
        columns = ("--noheadings", "--separator", "|", "-o", listing.FIELDS)
        run = self.dmsetup.run
        found = listing.parse_info(run("info", "-c", *hex_names, *columns, *rest))
        if any(info.open_count for info in found):  # no other removal is deferred
            with contextlib.suppress(DmsetupError):  # it has gone meanwhile
                return listing.with_deferred(found, run("info", *hex_names, *rest))
        return found

    def _ask(
        self,
        action: str,
        name: str,
        run: Callable[..., str],
        *words: str,
        timeout: float | None = None,
    ) -> str:
        check_name(name)
        try:
            return run(*words) if timeout is None else run(*words, timeout=timeout)
        except DmsetupError as error:
            raise error.about(name, action) from error

    def _change(
        self,
        action: str,
        name: str,
        *words: str,
        stdin: str | None = None,
        table: Table | None = None,
    ) -> str:
        check_name(name)
        try:
            return self.dmsetup.change(*words, stdin=stdin)
        except DmsetupError as error:
            raise self._explain(action, name, table, error) from error
        except DeadlineError:
            # Such as udev's look at the new device, which waits for one under it.
            stuck = [device for device in _devices(table) if is_suspended(device)]
            if not stuck:
                raise
            raise DeadlineError(
                f"{name}: cannot {action}: {', '.join(stuck)} is suspended, and I/O to it waits; "
                "resume it first"
            ) from None

    def _why_no_uuid(self, name: str, uuid: str, error: DeviceError) -> tuple[int, str]:
        """Return the kernel's errno and why it refused a UUID (dm_hash_rename in dm-ioctl.c)."""
        if isinstance(error, names.TakenError):
            having = next((one.name for one in self.ls() if one.uuid == uuid), "another device")
            return errno.EBUSY, f"{having} has the UUID {uuid} already"
        had = self.info(name).uuid if error.errno == errno.EINVAL else ""
        return error.errno, had and f"it has the UUID {had} already, and the kernel changes none"

    def _busy(
        self, action: str, name: str, table: Table | None, error: DmsetupError
    ) -> DmcopyError:
        """Find out who is in the way: of the device itself, or of one that its table needs."""
        # The ioctl that failed tells: a table that needs a busy device fails in "reload".
        if error.said.startswith(("device-mapper: create ioctl", "device-mapper: rename ioctl")):
            hint = "a mapped device has this name or UUID already"
            return names.TakenError(name, action, errno.EBUSY, hint)
        for device in _devices(table) or (self.path(name),):
            found = _holders(openable(device))
            if found:
                return BusyError(device, found)
        return error.about(name, action)

    def _explain(
        self, action: str, name: str, table: Table | None, error: DmsetupError
    ) -> DmcopyError:
        """Turn dmsetup's error into ours."""
        if error.errno == errno.EBUSY:
            return self._busy(action, name, table, error)
        missing = missing_device(table) if table is not None else ""
        if error.errno in (errno.ENODEV, errno.ENOENT, errno.ENOTBLK) and missing:
            return DeviceError(name, action, error.errno, missing)
        return error.about(name, action)

    def _until_idle(self, name: str, seconds: float, attempt: Callable[[], object]) -> None:
        """Call `attempt` until it does not fail with EBUSY, or the deadline is over.

        An attempt is never cut short by it: a dmsetup that is killed leaves its work half done.
        """
        deadline = time.monotonic() + seconds
        pause = _FIRST_PAUSE
        check_name(name)
        while True:
            try:
                attempt()
                return
            except DmsetupError as error:
                if error.errno != errno.EBUSY:
                    raise error.about(name, "remove it") from error
            if time.monotonic() + pause > deadline:
                hint = f"it was still open after {seconds:g} s"
                raise BusyError(name, _holders(self.path(name)), hint)
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _undo(self, name: str, uuid: str, entry: str) -> None:
        """After a failed create: remove what was made after all, or forget that it was to be."""
        try:
            made = any((info.name, info.uuid) == (name, uuid) for info in self.ls())
        except MissingError:
            made = False
        if made:
            self.remove(name, timeout=QUICK_SECONDS)
        else:
            self.ledger.cancel(entry)


def _escaped(word: str) -> str:
    """Return a word of a message; to the kernel a backslash makes the next byte part of it."""
    return re.sub(r"([\\\s])", r"\\\1", word)


def _suspend_options(flush: bool, lockfs: bool) -> list[str]:
    return [*([] if flush else ["--noflush"]), *([] if lockfs else ["--nolockfs"])]


def _holders(path: str) -> list[str]:
    try:
        return [str(holder) for holder in holders.who(os.path.realpath(path))]
    except DmcopyError:  # it went away meanwhile, or its node is not there
        return []


def _devices(table: Table | None) -> tuple[str, ...]:
    return () if table is None else table.devices
