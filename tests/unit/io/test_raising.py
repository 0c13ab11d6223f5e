"""What callbacks and handlers of signals raise: nothing else is lost, and it is reported."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from dmcopy.block import BlockDevice
from dmcopy.errors import ClosedError, MissingError, UsageError
from dmcopy.io import CopyIo, Io, IoRegion, Memory, Op, Reactor, parts, signals, threads, uring
from dmcopy.io.poller import Poller
from dmcopy.io.request import Request
from dmcopy.io.signals import Shield
from dmcopy.io.simulated import SimulatedBackend, SimulatedDisk
from dmcopy.io.stacked import StackedDevice
from dmcopy.io.thread import ReactorThread
from dmcopy.io.threads import WORKERS
from dmcopy.kcopyd import Client

PAGE = ((0, 4096),)


@pytest.fixture
def reactor() -> Reactor:
    return Reactor(SimulatedBackend(3), stacked=True)


@pytest.fixture(params=["uring", "threads"])
def real(request: pytest.FixtureRequest) -> Iterator[Reactor]:
    with Reactor(request.param) as reactor:
        yield reactor


@pytest.fixture
def device(tmp_path: Path) -> Iterator[BlockDevice]:
    path = tmp_path / "device"
    path.write_bytes(os.urandom(1 << 20))
    with BlockDevice.open(path, write=True) as device:
        yield device


@pytest.fixture
def on_interrupt() -> Iterator[list[int]]:
    """The numbers of the signals whose handler has raised KeyboardInterrupt."""
    heard: list[int] = []

    def handler(number: int, _frame: Any) -> None:
        heard.append(number)
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGINT, handler)
    yield heard
    assert signal.getsignal(signal.SIGINT) is handler, "it was given back"
    signal.signal(signal.SIGINT, old)


def raiser(error: BaseException) -> Any:
    def callback(*_: Any) -> None:
        raise error

    return callback


def flush(reactor: Reactor, notify: Any) -> None:
    reactor.submit(Io(Op.FLUSH, IoRegion(SimulatedDisk(8), 0, 0), notify=notify))


def test_what_raises_comes_out_of_the_wait(reactor: Reactor) -> None:
    """A caller may wait for what it was about, and is not left to wait."""
    for begin in (
        lambda notify: flush(reactor, notify),
        lambda notify: reactor.call_soon(notify),
        lambda notify: reactor.call_before_io(notify),
        lambda notify: reactor.call_later(1, notify),
        lambda notify: reactor.call_soon_threadsafe(notify),
    ):
        begin(raiser(ValueError("mine")))
        with pytest.raises(ValueError, match="mine"):
            reactor.run_until(lambda: False, 10)
        reactor.step(10)


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit])
def test_all_that_is_due_is_called_first(
    real: Reactor, device: BlockDevice, kind: type[BaseException]
) -> None:
    memory, ended, called = Memory(1), [], []

    def notify(io: Io) -> None:
        ended.append(io)
        if len(ended) == 2:
            raise kind("mine")

    for _ in range(5):
        real.submit(Io(Op.READ, IoRegion(device, 0, 8), memory, PAGE, notify))
    real.call_soon(raiser(kind("another")))
    real.call_soon(lambda: called.append(1))
    with pytest.raises(kind):
        real.run_until(lambda: len(called) == 2, 20, "what raises")
    assert called == [1]
    while len(ended) < 5:
        try:
            real.run_until(lambda: len(ended) == 5, 20, "the others")
        except kind:
            pass
    del ended[:]
    memory.close()


def test_an_interrupt_goes_before_an_error(
    reactor: Reactor, caplog: pytest.LogCaptureFixture
) -> None:
    reactor.call_soon(raiser(ValueError("mine")))
    reactor.call_soon(raiser(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        reactor.step()
    assert "ValueError: mine" in caplog.text, "and the error is not lost"
    reactor.step()


def test_who_takes_exceptions_gets_them(reactor: Reactor) -> None:
    taken: list[BaseException] = []
    reactor.on_exception = taken.append
    reactor.call_soon(raiser(ValueError("mine")))
    reactor.step()
    assert [str(error) for error in taken] == ["mine"]
    reactor.on_exception = raiser(RuntimeError("his own"))
    reactor.call_soon(raiser(ValueError("mine")))
    with pytest.raises(RuntimeError, match="his own"):
        reactor.step()


def test_a_watcher_that_raises_costs_no_completion(real: Reactor, device: BlockDevice) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"x")
    real.watch(reader, raiser(ValueError("mine")))
    memory, ended = Memory(1), []
    for _ in range(5):
        real.submit(
            Io(Op.READ, IoRegion(device, 0, 8), memory, PAGE, lambda io: ended.append(io.error))
        )
    with pytest.raises(ValueError, match="mine"):
        real.run_until(lambda: False, 20, "the watcher")
    real.unwatch(reader)
    real.run_until(lambda: len(ended) == 5, 20, "the reads")
    assert ended == [0] * 5
    memory.close()
    os.close(reader)
    os.close(writer)


def test_an_unwatched_descriptor_is_not_called_for() -> None:
    poller = Poller()
    reader, writer = os.pipe()
    os.write(writer, b"x")
    said: list[int] = []
    poller.watch(reader, said.append)
    poller.wait(0)
    poller.unwatch(reader)  # by a watcher that was called before it
    for notify in poller.fired:
        notify()
    assert not said
    poller.close()
    os.close(reader)
    os.close(writer)


def test_a_reactor_on_a_thread_outlives_what_callbacks_raise(
    device: BlockDevice, caplog: pytest.LogCaptureFixture
) -> None:
    with ReactorThread() as thread:
        for error in (ValueError("mine"), SystemExit("mine"), KeyboardInterrupt("mine")):
            thread.reactor.call_soon_threadsafe(raiser(error))
            with Client(8, reactor=thread.reactor) as client:
                assert client.copy(IoRegion(device, 0, 8), [IoRegion(device, 8, 8)]).wait(20).ok
        assert thread.call(lambda reactor: reactor) is thread.reactor
    for name in ("ValueError", "SystemExit", "KeyboardInterrupt"):
        assert f"{name}: mine" in caplog.text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_who_waits_for_a_reactors_thread_is_told_when_it_has_to_end() -> None:
    thread = ReactorThread("threads")
    raised = []

    def poll(_timeout: float | None) -> list[Request]:
        thread._calls.append((waiting, lambda _: None))  # as from another thread, just now
        raised.append(1)
        raise MemoryError

    def break_it(reactor: Reactor) -> None:
        reactor.backend.poll = poll  # type: ignore[method-assign, assignment]

    waiting: Future[Any] = Future()
    thread.call(break_it)
    with pytest.raises(ClosedError, match="thread has ended"):
        waiting.result(20)
    thread._thread.join(20)
    with pytest.raises(ClosedError, match="thread has ended"):
        thread.call(lambda _: None)
    thread.close()
    assert raised == [1]


class Failing:
    """What is no device of ours: whatever a thread asks it for raises `error`."""

    path, sectors, logical_block_size, read_only, identity = "failing", 64, 512, False, "failing"

    def __init__(self, error: BaseException) -> None:
        self.discard = raiser(error)


@pytest.mark.parametrize("kind", [MemoryError, RuntimeError, KeyboardInterrupt, SystemExit])
def test_what_raises_on_a_thread_ends_its_request_and_not_the_thread(
    real: Reactor, device: BlockDevice, kind: type[BaseException]
) -> None:
    """A thread that had ended would be counted on, and what it should do would never end."""
    ended: list[int] = []
    failing: Any = Failing(kind("mine"))
    for _ in range(2 * WORKERS):
        real.submit(
            Io(Op.DISCARD, IoRegion(failing, 0, 8), notify=lambda io: ended.append(io.error))
        )
    real.run_until(lambda: len(ended) == 2 * WORKERS, 20, "requests whose thread was raised in")
    assert set(ended) == {errno.ENOMEM if kind is MemoryError else errno.EBADF}
    zeroed = Io(Op.WRITE_ZEROES, IoRegion(device, 0, 8), notify=lambda io: ended.append(io.error))
    real.submit(zeroed)
    real.run_until(lambda: len(ended) > 2 * WORKERS, 20, "one for which the threads are there")
    assert ended[-1] == 0


def test_a_copy_without_memory_for_its_views_ends(real: Reactor, device: BlockDevice) -> None:
    class Short(Memory):
        views = staticmethod(raiser(MemoryError()))

    memory, ended = Short(1), []
    region = IoRegion(device, 0, 8)
    copy = CopyIo(region, [IoRegion(device, 8, 8)], memory, PAGE, lambda io: ended.append(io.error))
    real.submit(copy)
    real.run_until(lambda: ended, 20, "a copy")
    assert ended == ([0] if real.backend.name == "uring" else [errno.ENOMEM])
    memory.close()


@pytest.mark.parametrize("backend", ["uring", "threads"])
def test_an_interrupt_of_what_is_done_inline_costs_no_completion(
    backend: str, device: BlockDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, ended = Memory(1), []
    with Reactor(backend, inline=True) as reactor, monkeypatch.context() as patch:
        for module in (threads, uring):
            patch.setattr(module, "perform", raiser(KeyboardInterrupt()))
        io = Io(Op.READ, IoRegion(device, 0, 8), memory, PAGE, lambda io: ended.append(io.error))
        reactor.submit(io)
        with pytest.raises(KeyboardInterrupt):
            reactor.run_until(lambda: ended, 20, "a read that is interrupted")
        patch.undo()
        reactor.run_until(lambda: ended, 20, "the read")
    assert ended == [0]
    memory.close()


class Refusing(StackedDevice):
    """A device whose `submit` raises."""

    path, sectors, logical_block_size, read_only, identity = "refusing", 64, 512, False, "refusing"

    submit = staticmethod(raiser(ValueError("mine")))


def test_a_stacked_device_that_raises_ends_its_request(reactor: Reactor) -> None:
    taken: list[BaseException] = []
    reactor.on_exception = taken.append
    ended: list[int] = []
    for op in (Op.FLUSH, Op.READ, Op.DISCARD):
        refusing: Any = Refusing()
        request = Io(op, IoRegion(refusing, 0, 0), notify=lambda io: ended.append(io.error))
        reactor.submit(request)
        assert not ended, "never inside of submit()"
        reactor.run_until(lambda: ended, 10, "the end of a request")
        reactor.step(1)
        assert ended == [errno.EIO]
        ended.clear()
    assert [str(error) for error in taken] == ["mine"] * 3


def test_a_copy_to_a_stacked_device_that_raises(reactor: Reactor) -> None:
    taken: list[BaseException] = []
    reactor.on_exception = taken.append
    source, good = SimulatedDisk(64), SimulatedDisk(64)
    bad: Any = Refusing()
    source.load(b"data" * 128 * 64)
    with Client(8, reactor=reactor) as client:
        dests = [IoRegion(good, 0, 64), IoRegion(bad, 0, 64)]
        job = client.copy(IoRegion(source, 0, 64), dests).wait(10)
    assert (job.read_err, job.write_err) == (0, 0b10)
    assert good.content == source.content
    assert taken


def test_a_copy_that_cannot_say_what_to_write_ends_once(reactor: Reactor) -> None:
    ended: list[int] = []

    class Broken(CopyIo):
        def writes(self) -> Any:
            raise ValueError("mine")

    disk, memory = SimulatedDisk(64), Memory(1)
    copy = Broken(
        IoRegion(disk, 0, 8),
        [IoRegion(disk, 8, 8)],
        memory,
        PAGE,
        lambda io: ended.append(io.error),
    )
    reactor.submit(copy)
    with pytest.raises(ValueError, match="mine"):
        reactor.run_until(lambda: False, 10, "the error")
    reactor.step(10)
    assert ended == [errno.EIO]


def test_a_copy_without_memory_for_its_writes_ends_once(
    reactor: Reactor, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []

    def io(op: Op, *more: Any, **names: Any) -> Io:
        if op == Op.WRITE:
            raise MemoryError
        return Io(op, *more, **names)

    monkeypatch.setattr(parts, "Io", io)
    disk, other, memory = SimulatedDisk(64), Refusing(), Memory(1)
    dests: Any = [IoRegion(disk, 8, 8), (other, 0, 8)]  # a stacked one: it goes in parts
    region = IoRegion(disk, 0, 8)
    reactor.submit(CopyIo(region, dests, memory, PAGE, lambda io: ended.append(io.error)))
    with pytest.raises(MemoryError):
        reactor.run_until(lambda: False, 10, "the error")
    reactor.step(10)
    assert ended == [errno.EIO]
    memory.close()


def test_a_copy_to_nowhere_ends(reactor: Reactor) -> None:
    ended: list[int] = []
    disk, memory = SimulatedDisk(64), Memory(1)
    region = IoRegion(disk, 0, 8)
    reactor.submit(CopyIo(region, [], memory, PAGE, lambda io: ended.append(io.error)))
    reactor.run_until(lambda: ended, 10, "a copy to nowhere")
    assert ended == [0]


def test_a_signal_waits_until_no_callback_runs(real: Reactor, on_interrupt: list[int]) -> None:
    said: list[str] = []

    def interrupted() -> None:
        signal.raise_signal(signal.SIGINT)
        said.append("to the end")

    real.call_soon(interrupted)
    real.call_soon(lambda: said.append("the next, too"))
    with pytest.raises(KeyboardInterrupt):
        real.run_until(lambda: False, 20, "a signal")
    assert said == ["to the end", "the next, too"]
    assert on_interrupt == [signal.SIGINT]


def test_a_signal_ends_a_wait_for_nothing(real: Reactor, on_interrupt: list[int]) -> None:
    timer = threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGINT))
    real.call_soon(timer.start)  # in the wait: on a busy machine it would come before
    with pytest.raises(KeyboardInterrupt):
        real.run_until(lambda: False, 60, "a signal")
    timer.join()
    assert on_interrupt


def test_a_signal_that_comes_with_the_end_is_not_lost(
    real: Reactor, on_interrupt: list[int]
) -> None:
    said: list[int] = []

    def last() -> None:
        said.append(1)
        signal.raise_signal(signal.SIGINT)

    real.call_soon(last)
    with pytest.raises(KeyboardInterrupt):
        real.run_until(lambda: said, 20, "the last")
    real.call_soon(last)
    with pytest.raises(KeyboardInterrupt):
        real.step()
    assert len(on_interrupt) == 2


def test_several_signals_are_all_heard(real: Reactor, on_interrupt: list[int]) -> None:
    heard: list[int] = []
    old = signal.signal(signal.SIGUSR1, lambda number, _: heard.append(number))

    def both() -> None:
        for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGUSR1):
            signal.raise_signal(number)
        assert not heard
        assert not on_interrupt

    real.call_soon(both)
    try:
        with pytest.raises(KeyboardInterrupt):
            real.run_until(lambda: False, 20, "signals")
    finally:
        signal.signal(signal.SIGUSR1, old)
    assert heard == [signal.SIGUSR1]


def test_a_signal_that_comes_again_later_is_not_held_back(
    real: Reactor, on_interrupt: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A callback that never returns can still be ended by a second Ctrl-C."""
    monkeypatch.setattr(signals, "IMPATIENT_SECONDS", -1.0)

    def endless() -> None:
        while True:
            signal.raise_signal(signal.SIGINT)

    real.call_soon(endless)
    with pytest.raises(KeyboardInterrupt):
        real.run_until(lambda: False, 20, "a signal")
    assert len(on_interrupt) == 1


def test_handlers_that_callbacks_install_stay(real: Reactor) -> None:
    def handler(*_: Any) -> None: ...

    before = signal.getsignal(signal.SIGUSR2)
    old = signal.signal(signal.SIGUSR2, lambda *_: None)
    real.call_soon(lambda: signal.signal(signal.SIGUSR2, handler))
    real.step()
    assert signal.getsignal(signal.SIGUSR2) is handler
    signal.signal(signal.SIGUSR2, old)
    assert signal.getsignal(signal.SIGUSR2) is before


@pytest.mark.usefixtures("on_interrupt")
def test_a_shield_within_a_shield() -> None:
    said: list[str] = []
    outer = Shield(lambda: said.append("woken"))

    def twice() -> None:
        with outer:
            with outer:
                signal.raise_signal(signal.SIGINT)
                said.append("inner")
            said.append("outer")

    def two() -> None:
        with outer, Shield(lambda: None):
            signal.raise_signal(signal.SIGINT)
            said.append("of two")

    with pytest.raises(KeyboardInterrupt):
        twice()
    assert said == ["woken", "inner", "outer"]
    with pytest.raises(KeyboardInterrupt):
        two()
    assert said[-2:] == ["of two", "woken"], "the inner one hands it on when it ends"


@pytest.mark.usefixtures("on_interrupt")
def test_a_handler_that_raises_while_the_shield_goes_up_leaves_it_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shield = Shield(lambda: None)
    get = signals._get

    def interrupted(number: int) -> Any:
        if number == signal.SIGTERM:
            monkeypatch.undo()
            raise KeyboardInterrupt
        return get(number)

    monkeypatch.setattr(signals, "_get", interrupted)
    with pytest.raises(KeyboardInterrupt), shield:
        raise AssertionError("it is not up")
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), shield:
        signal.raise_signal(signal.SIGINT)


def test_other_threads_have_no_signals_to_wait_for() -> None:
    found: list[Any] = []

    def look() -> None:
        with Shield(lambda: None):
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join(20)
    assert found == [signal.getsignal(signal.SIGINT)]


def test_a_child_of_fork_cannot_use_it(real: Reactor, device: BlockDevice) -> None:
    """It would take the parent's completions, and hang for want of its own."""
    client = Client(8, reactor=real)
    job = client.copy(IoRegion(device, 0, 8), [IoRegion(device, 8, 8)])
    pid = os.fork()
    if not pid:
        status = 1
        try:
            for use in (
                lambda: client.copy(IoRegion(device, 0, 8), [IoRegion(device, 8, 8)]),
                job.wait,
                client.destroy,
            ):
                with pytest.raises(ClosedError, match="belongs to the process that forked"):
                    use()
            with pytest.raises(UsageError, match="only by the thread that made it"):
                real.step()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    assert job.wait(20).ok
    client.destroy()


def test_without_descriptors_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def eventfd(*_: Any) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "eventfd", eventfd)
    with pytest.raises(MissingError, match="Too many open files"):
        Reactor("threads")


@pytest.mark.parametrize("threads", [0, 1])
def test_where_no_thread_can_be_started(
    real: Reactor, device: BlockDevice, only_threads: Callable[[int], None], threads: int
) -> None:
    """Those that there are do it all, or the reactor itself."""
    only_threads(threads)
    ended: list[int] = []
    memory = Memory(1)
    for _ in range(3):
        for op in (Op.READ, Op.WRITE_ZEROES):
            extents = PAGE if op == Op.READ else ()
            real.submit(
                Io(op, IoRegion(device, 0, 8), memory, extents, lambda io: ended.append(io.error))
            )
    real.run_until(lambda: len(ended) == 6, 20, "I/O without threads")
    with Client(8, reactor=real) as client:
        dests = [IoRegion(device, 64 * n, 64) for n in (2, 3)]
        assert client.copy(IoRegion(device, 64, 64), dests).wait(20).ok
    assert ended == [0] * 6
    assert device.pread(128, 64) == device.pread(192, 64) == device.pread(64, 64)
    memory.close()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_that_is_reported_comes_out_too(
    reactor: Reactor, kind: type[BaseException]
) -> None:
    """It is no error to be told of: it ends the program."""
    told: list[BaseException] = []
    reactor.on_exception = told.append
    reactor.report(kind())
    with pytest.raises(kind):
        reactor.step()
    assert told == []


def test_handlers_are_given_back_where_not_all_could_be_taken(
    monkeypatch: pytest.MonkeyPatch, on_interrupt: list[int]
) -> None:
    taken: list[int] = []
    take = signal.signal

    def refuse_second(number: int, handler: Any) -> Any:
        taken.append(number)
        if len(taken) == 2:
            raise KeyboardInterrupt
        return take(number, handler)

    monkeypatch.setattr(signals, "SIGNALS", (signal.SIGINT, signal.SIGTERM))
    monkeypatch.setattr(signals, "_set", refuse_second)
    other = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        shield = Shield(lambda: None)
        with pytest.raises(KeyboardInterrupt), shield:
            pytest.fail("it was entered")
        assert taken == [signal.SIGINT, signal.SIGTERM, signal.SIGINT]
    finally:
        signal.signal(signal.SIGTERM, other)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert on_interrupt == [signal.SIGINT]
