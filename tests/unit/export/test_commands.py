"""Commands of the device server: those for one device in turn, others beside, each to its end."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

import pytest

from dmcopy.errors import DeadlineError, DeviceError
from dmcopy.export.commands import Commands, DeviceChange
from dmcopy.io import Reactor
from dmcopy.io.simulated import SimulatedBackend
from dmcopy.mapper.waiting import Until

SECONDS = 30.0


class Waiting:
    """Commands that wait until they are let go; `log` is of what was done."""

    def __init__(self, reactor: Reactor) -> None:
        self.reactor = reactor
        self.commands = Commands(reactor, SECONDS)
        self.free: set[str] = set()
        self.log: list[str] = []
        self.told: dict[str, Any] = {}

    def begin(self, what: str, *names: str, waits: bool = True) -> DeviceChange:
        async def change() -> str:
            self.log.append(f"{what} begins")
            try:
                if waits:
                    await Until(lambda: what in self.free, what)
            except Exception:
                self.log.append(f"{what} undone")
                raise
            self.log.append(f"{what} done")
            return what

        def told(result: object, error: Exception | None) -> None:
            self.told[what] = error or result

        command = DeviceChange(names, change, told)
        self.commands.add(command)
        self.work()
        return command

    def let(self, what: str) -> None:
        self.free.add(what)
        self.work()

    def work(self) -> None:
        while self.commands.due():
            self.commands.step()


@pytest.fixture
def waiting() -> Iterator[Waiting]:
    with Reactor(SimulatedBackend(seed=1)) as reactor:
        yield Waiting(reactor)


def test_those_for_one_device_are_in_turn_and_others_beside(waiting: Waiting) -> None:
    waiting.begin("suspend a", "a")
    waiting.begin("resume a", "a", waits=False)
    waiting.begin("suspend b", "b")
    waiting.begin("load a", waits=False)  # which needs no turn
    waiting.begin("rename c", "c", "a", waits=False)
    waiting.begin("remove c", "c", waits=False)  # behind its renaming
    assert waiting.log == [
        *("suspend a begins", "suspend b begins"),
        *("load a begins", "load a done"),
    ]
    waiting.let("suspend b")
    assert waiting.told == {"load a": "load a", "suspend b": "suspend b"}
    waiting.let("suspend a")
    assert waiting.log[-7:] == [
        "suspend a done",
        *(f"{what} {how}" for what in ("resume a", "rename c", "remove c")
          for how in ("begins", "done")),
    ]  # fmt: skip


def test_one_that_waits_is_given_up_and_undone(waiting: Waiting) -> None:
    suspend = waiting.begin("suspend", "a")
    resume = waiting.begin("resume", "a", waits=False)
    resume.give_up()  # it has not begun: as in the kernel, it is done when it is its turn
    waiting.work()
    assert waiting.log == ["suspend begins"]
    suspend.give_up()
    waiting.work()
    assert isinstance(waiting.told["suspend"], DeviceError)
    assert waiting.told["suspend"].errno == errno.EINTR
    assert waiting.told["resume"] == "resume"
    assert waiting.log[1:] == ["suspend undone", "resume begins", "resume done"]


def test_one_that_waits_too_long_is_undone(waiting: Waiting) -> None:
    waiting.begin("suspend", "a")
    waiting.reactor.run_until(waiting.commands.due)
    assert waiting.reactor.time() == pytest.approx(SECONDS)
    waiting.work()
    assert isinstance(waiting.told["suspend"], DeadlineError)
    assert str(waiting.told["suspend"]) == "waited 30 s for suspend"
    assert waiting.log == ["suspend begins", "suspend undone"]


def test_the_end_undoes_what_waits(waiting: Waiting) -> None:
    waiting.begin("suspend", "a")
    waiting.begin("resume", "a")
    waiting.commands.close()
    assert waiting.log == ["suspend begins", "suspend undone"]
    assert not waiting.commands.due()


def test_what_a_command_raises_is_told(waiting: Waiting) -> None:
    def fails() -> None:
        raise ValueError("wrong")

    told: list[Any] = []
    waiting.commands.add(DeviceChange((), fails, lambda *words: told.append(words)))
    waiting.work()
    ((result, error),) = told
    assert result is None
    assert isinstance(error, ValueError)
