"""asyncio drives a reactor as long as a coroutine awaits, and no longer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dmcopy.io import Reactor, aio
from dmcopy.io.aio import wait_for
from dmcopy.io.thread import ReactorThread

Done = Callable[[Callable[[], object]], None]


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    with Reactor("threads") as reactor:
        yield reactor


def run(main: Any) -> None:
    """Run it; whatever asyncio would only log is an error."""

    async def watched() -> None:
        wrong: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, about: wrong.append(about))
        await asyncio.wait_for(main(), 60)
        await asyncio.sleep(0)
        assert not wrong

    asyncio.run(watched())


def later(reactor: Reactor, seconds: float) -> Done:
    def done(notify: Callable[[], object]) -> None:
        reactor.call_later(seconds, notify)

    return done


def test_the_descriptor_and_the_timers_both_drive_it(reactor: Reactor) -> None:
    async def main() -> None:
        await wait_for(reactor, lambda notify: reactor.call_soon_threadsafe(notify))
        await wait_for(reactor, later(reactor, 0.01))
        # Only its descriptor tells of what another thread does, after the first step was made.
        rings: list[Callable[[], object]] = []
        waiting = asyncio.ensure_future(wait_for(reactor, rings.append))
        for _ in range(5):
            await asyncio.sleep(0)
        await asyncio.to_thread(reactor.call_soon_threadsafe, rings[0])
        await waiting

    run(main)


def test_the_loop_lets_go_of_it_when_the_last_has_what_it_awaited(reactor: Reactor) -> None:
    """Else a program that is done with it would step it for ever, or keep a closed descriptor."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        first = asyncio.ensure_future(wait_for(reactor, later(reactor, 0.01)))
        second_is_due: list[Callable[[], object]] = []
        second = asyncio.ensure_future(wait_for(reactor, second_is_due.append))
        await first
        assert not second.done()
        reactor.call_soon_threadsafe(second_is_due[0])
        await second
        assert not loop.remove_reader(reactor.fileno())
        await wait_for(reactor, later(reactor, 0.01))  # and takes it up again

    run(main)


def test_one_of_another_thread_is_waited_for() -> None:
    """Its owner drives it."""
    said: list[str] = []

    async def main(reactor: Reactor) -> None:
        def done(notify: Callable[[], object]) -> None:
            def ended() -> None:
                said.append("ended")
                notify()

            reactor.call_soon_threadsafe(lambda: reactor.call_later(0.01, ended))

        await wait_for(reactor, done)
        said.append("went on")

    with ReactorThread("threads") as thread:
        run(lambda: main(thread.reactor))
    assert said == ["ended", "went on"]


def test_who_gave_up_waiting_is_not_told(reactor: Reactor) -> None:
    """Its loop is closed by the time that what it waited for is done."""
    ends: list[Callable[[], object]] = []
    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(wait_for(reactor, ends.append), 0.01))
    reactor.call_soon(ends[0])
    reactor.step()


def test_who_gave_up_just_now_does_not_hide_what_a_step_raises(reactor: Reactor) -> None:
    def fail() -> None:
        raise ValueError("mine")

    async def main() -> None:
        first, second = (asyncio.ensure_future(wait_for(reactor, lambda _: None)) for _ in "12")
        await asyncio.sleep(0)
        reactor.call_soon(fail)
        first.cancel()
        aio._drivers[reactor]._step()
        with pytest.raises(asyncio.CancelledError):
            await first
        with pytest.raises(ValueError, match="mine"):
            await second

    run(main)


def test_what_a_step_raises_is_raised_by_all_who_wait(reactor: Reactor) -> None:
    def fail() -> None:
        raise ValueError("mine")

    async def main() -> None:
        first, second = (asyncio.ensure_future(wait_for(reactor, lambda _: None)) for _ in "12")
        await asyncio.sleep(0)
        reactor.call_soon_threadsafe(fail)
        for waiting in (first, second):
            with pytest.raises(ValueError, match="mine"):
                await waiting
        await wait_for(reactor, later(reactor, 0.01))

    run(main)


def test_one_timer_is_set_however_many_steps_are_made(
    reactor: Reactor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each that stayed would make steps of its own: more with each completion."""
    timers: list[asyncio.TimerHandle] = []

    def pending() -> int:
        return sum(not timer.cancelled() for timer in timers)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        call_later = loop.call_later

        def noting(*words: Any) -> asyncio.TimerHandle:
            timers.append(call_later(*words))
            return timers[-1]

        monkeypatch.setattr(loop, "call_later", noting)
        far = reactor.call_later(3600, list)
        for _ in range(5):
            await wait_for(reactor, lambda notify: reactor.call_soon_threadsafe(notify))
        assert len(timers) > 1
        assert pending() == 1
        far.cancel()
        await wait_for(reactor, lambda notify: reactor.call_soon_threadsafe(notify))
        assert pending() == 0

    run(main)
