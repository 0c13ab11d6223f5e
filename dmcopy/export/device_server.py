"""The device server: the process that holds a user's userspace devices and changes them on request.

`dmcopy.mapper.served` asks it; `dmcopy.export.daemon` is the process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final
from weakref import WeakSet

from dmcopy import plugins
from dmcopy.asking import told
from dmcopy.block import freezing
from dmcopy.errors import DeadlineError, DmcopyError, UsageError
from dmcopy.export.aside import aside
from dmcopy.export.commands import Commands, DeviceChange
from dmcopy.export.control import Control, Reply
from dmcopy.export.exported import ExportedMapper
from dmcopy.export.kept import Kept
from dmcopy.export.nodes import Nodes
from dmcopy.io.reactor import Reactor, Timer, log_exception
from dmcopy.mapper.base import DmInfo
from dmcopy.mapper.mapped import MappedDevice
from dmcopy.mapper.userspace import TIMEOUT_SECONDS
from dmcopy.table import Table

IDLE_SECONDS: Final = 10.0
"""How long a server waits for its first device."""
LEAVING_SECONDS: Final = 1.0
"""How often it looks whether a device can go whose removal was deferred."""
MAX_SECONDS: Final = 1e6
MAX_LINE: Final = 4 << 20
MAX_CONNECTIONS: Final = 64
# In the kernel a device's own lock is held for them, and for renaming ours has a node to move.
_IN_TURN: Final = frozenset(("create", "suspend", "resume", "remove", "rename"))
# A client that is killed in one of them ends it: the device is not suspended then.
_GIVEN_UP: Final = frozenset(("suspend", "resume"))

_Words = dict[str, Any]


class DeviceServer:
    """Answers at `path` for the devices of one engine, until the last one is gone.

    A question is answered immediately, within callbacks; a change, which may wait for I/O, is made
    outside of them, see `Commands`, and `wait` is answered when its event has come.
    """

    def __init__(self, reactor: Reactor, path: str, nodes: Nodes, *, resume: bool = False) -> None:
        self.reactor = reactor
        self.mapper = ExportedMapper(reactor, nodes)
        self._kept = Kept()
        if resume:
            self.mapper.restore(self._kept.load(), self._kept.marks)
        self.mapper.notice_events(lambda: reactor.call_soon(self._tell_waiting))
        self._path = path
        self._commands = Commands(reactor, TIMEOUT_SECONDS)
        self._waiting: list[_Waiting] = []
        self._trying: set[str] = set()
        self._frozen: WeakSet[MappedDevice] = WeakSet()
        self._stopping = False
        self._used = resume
        self._idle = reactor.call_later(IDLE_SECONDS, lambda: None)
        self._verbs = self._all_verbs()
        self._control = self._listen()

    def stop(self) -> None:
        """End soon, even with devices left. May be called from a signal handler."""

        def stop() -> None:
            self._stopping = True

        self.reactor.call_soon_threadsafe(stop)

    def run(self) -> None:
        """Answer until the last device is gone, or `stop`; then remove what is left."""
        try:
            while not self._stopping:
                self.reactor.run_until(
                    lambda: self._commands.due() or self._stopping or self._is_over()
                )
                if self._commands.due():
                    self._commands.step()
                    self._tell_waiting()
                elif self._retire():
                    break
        finally:
            with contextlib.ExitStack() as exits:  # each of them, whatever became of the others
                exits.callback(self.reactor.step)
                exits.callback(self._control.close)
                exits.callback(self.mapper.close)
                exits.callback(self._kept.remove)
                self._commands.close()

    def _listen(self) -> Control:
        return Control(
            self.reactor,
            self._path,
            self._verbs,
            max_line=MAX_LINE,
            max_connections=MAX_CONNECTIONS,
        )

    def _is_over(self) -> bool:
        """Whether there is no device any more, or was none for a while."""
        waited = self._used or self.reactor.time() >= self._idle.when
        return waited and not self.mapper.has_devices

    def _retire(self) -> bool:
        """Take no more questions, answer those that came; return whether it is the end."""
        self._control.retire()
        self.reactor.run_until(lambda: self._commands.due() or not self._control.talks)
        if not self._commands.due():
            return True
        self._control = self._listen()  # one came at the last moment
        return False

    def _all_verbs(self) -> Mapping[str, Callable[[_Words, Reply], Callable[[], object] | None]]:
        mapper = self.mapper
        looking = {
            "ls": lambda _: [_info(info) for info in mapper.ls()],
            "info": lambda words: _info(mapper.info(_text(words, "name"))),
            "table": lambda words: str(
                mapper.table(_text(words, "name"), inactive=_flag(words, "inactive"))
            ),
            "status": lambda words: "\n".join(map(str, mapper.status(_text(words, "name")))),
            "deps": lambda words: mapper.deps(_text(words, "name")),
            "targets": lambda _: mapper.targets(),
            "message": lambda words: mapper.message(
                _text(words, "name"), *_texts(words, "words"), sector=_number(words, "sector")
            ),
            "thawed": lambda words: self._frozen.discard(mapper.open(_text(words, "name"))),
        }
        changing = {
            "create": self._create,
            "load": lambda words: mapper.load(
                _text(words, "name"), _table(words), readonly=_flag(words, "readonly")
            ),
            "clear": lambda words: mapper.clear(_text(words, "name")),
            "suspend": self._suspend,
            "resume": self._resume,
            "remove": self._remove,
            "rename": lambda words: mapper.rename(_text(words, "name"), _text(words, "new_name")),
            "set_uuid": lambda words: mapper.set_uuid(_text(words, "name"), _text(words, "uuid")),
            "refusal": lambda words: mapper.refusal(_table(words)),
            "plugin": _plugin,
        }
        return {
            **{verb: partial(self._look, call) for verb, call in looking.items()},
            **{verb: partial(self._queue, call) for verb, call in changing.items()},
            "freeze": self._freeze,
            "wait": self._wait,
        }

    def _look(self, call: Callable[[_Words], object], words: _Words, answer: Reply) -> None:
        try:
            answer({"result": call(words)})
        except Exception as error:
            answer(_told(error))

    def _queue(
        self, call: Callable[[_Words], object], words: _Words, answer: Reply
    ) -> Callable[[], object] | None:
        names = [_text(words, key) for key in ("name", "new_name") if key in words]

        def told(result: object, error: Exception | None) -> None:
            try:
                # Before it is answered: it is to outlive a kill.
                self._kept.save(self.mapper, self.mapper.marks)
            except DmcopyError as failure:
                error = error or failure
            answer({"result": result} if error is None else _told(error))

        command = DeviceChange(names if words["do"] in _IN_TURN else (), lambda: call(words), told)
        self._commands.add(command)
        return command.give_up if words["do"] in _GIVEN_UP else None

    async def _create(self, words: _Words) -> None:
        table = _table(words) if words.get("table") is not None else None
        uuid, readonly = _text(words, "uuid"), _flag(words, "readonly")
        await self.mapper.creating(_text(words, "name"), table, uuid=uuid, readonly=readonly)
        self._used = True

    async def _suspend(self, words: _Words) -> None:
        await self.mapper.suspending(_text(words, "name"), flush=_flag(words, "flush"))

    async def _resume(self, words: _Words) -> bool:
        """Let I/O continue; return whether a file system on the device is to be thawed."""
        name = _text(words, "name")
        await self.mapper.resuming(name, flush=_flag(words, "flush"))
        return self.mapper.open(name) in self._frozen

    async def _remove(self, words: _Words) -> None:
        await self.mapper.removing(_text(words, "name"), deferred=_flag(words, "deferred"))
        self._leave_later()

    def _leave_later(self) -> None:
        """Try again soon to remove devices that were in use, each once at a time."""
        for name in set(self.mapper.leaving) - self._trying:
            self._trying.add(name)
            self.reactor.call_later(LEAVING_SECONDS, partial(self._leave, name))

    def _leave(self, name: str) -> None:
        def tried(facts: object, held: object = None, /) -> None:
            self._trying.discard(name)
            self._leave_later()
            _log(facts, held)

        if name in self.mapper.leaving:
            self._queue(self._remove, {"do": "remove", "name": name, "deferred": True}, tried)
        else:
            self._trying.discard(name)

    def _freeze(self, words: _Words, answer: Reply) -> None:
        """Note that the file system on a device is about to be frozen, for it to be suspended.

        The connection is the freezing's: when that ends and the device is not suspended, its client
        was killed between the two: what is frozen would stay so.
        """
        name = _text(words, "name")
        mapped = self.mapper.open(name)
        self._frozen.add(mapped)

        def ended() -> None:
            self._commands.add(DeviceChange((mapped.name,), thaw, lambda _, error: _log(error)))

        def thaw() -> None:
            number = self.mapper.nodes.number(mapped.name)
            if mapped in self._frozen and not mapped.suspended:
                self._frozen.discard(mapped)
                if number is not None:
                    call = partial(freezing.thaw_elsewhere, number, TIMEOUT_SECONDS)
                    aside(self.reactor, call, f"{name} to be thawed", timeout=TIMEOUT_SECONDS)

        answer({"result": None}, ended)

    def _wait(self, words: _Words, answer: Reply) -> Callable[[], object]:
        name, event, seconds = _text(words, "name"), _number(words, "event"), words.get("timeout")
        if not isinstance(seconds, int | float) or not seconds >= 0:
            raise UsageError(f"{seconds!r:.40} is no number of seconds")
        waiting = _Waiting(name, event, self.mapper.events(name), answer)
        waiting.timer = self.reactor.call_later(
            min(seconds, MAX_SECONDS), lambda: self._give_up(waiting, seconds)
        )
        self._waiting.append(waiting)
        self._tell_waiting()
        return lambda: self._forget(waiting)

    def _give_up(self, waiting: _Waiting, seconds: float) -> None:
        self._forget(waiting)
        text = f"{waiting.name}: no event after number {waiting.event} within {seconds:g} s"
        waiting.answer(DeadlineError(text))

    def _forget(self, waiting: _Waiting) -> None:
        if waiting in self._waiting:
            self._waiting.remove(waiting)
            if waiting.timer is not None:
                waiting.timer.cancel()

    def _tell_waiting(self) -> None:
        for waiting in list(self._waiting):
            try:
                number = waiting.now()
            except DmcopyError as error:  # it was removed
                self._forget(waiting)
                waiting.answer(error)
            else:
                if number != waiting.event:
                    self._forget(waiting)
                    waiting.answer({"result": number})


@dataclasses.dataclass(eq=False)
class _Waiting:
    name: str
    event: int
    now: Callable[[], int]
    answer: Reply
    timer: Timer | None = None


def _plugin(words: _Words) -> None:
    """Import targets of the user's own, which may lie where only the user's command looks."""
    module, folders = _text(words, "module"), _texts(words, "folders")
    sys.path.extend(folder for folder in folders if folder not in sys.path)
    importlib.invalidate_caches()
    plugins.load(module)


def _told(error: Exception) -> DmcopyError:
    """Return an error as an answer has it: what is wrong with a request ends no other."""
    if not isinstance(error, DmcopyError):
        log_exception(error)
    return told(error)


def _log(facts: object, held: object = None, /) -> None:
    del held
    if isinstance(facts, Exception):
        log_exception(facts)


def _info(info: DmInfo) -> dict[str, object]:
    return dataclasses.asdict(info)


def _text(words: _Words, key: str) -> str:
    value = words.get(key)
    if not isinstance(value, str):
        raise UsageError(f"{value!r:.40} is no {key}")
    return value


def _texts(words: _Words, key: str) -> list[str]:
    value = words.get(key)
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise UsageError(f"{value!r:.40} are no {key}")
    return value


def _flag(words: _Words, key: str) -> bool:
    value = words.get(key, False)
    if not isinstance(value, bool):
        raise UsageError(f"{value!r:.40}: say of {key} whether it is so")
    return value


def _number(words: _Words, key: str) -> int:
    value = words.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise UsageError(f"{value!r:.40} is no number of the {key}")
    return value


def _table(words: _Words) -> Table:
    return Table.read(_text(words, "table"), lenient=False)
