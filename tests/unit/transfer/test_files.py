"""Sessions on real files: verification, holes, interrupted calls, files that change under them."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dmcopy.block import BlockDevice
from dmcopy.errors import DeviceError, ExitCode, UsageError
from dmcopy.io import IoRegion, Reactor, probe
from dmcopy.io.request import Io, Op
from dmcopy.io.request import Request as IoRequest
from dmcopy.kcopyd import Client
from dmcopy.ranges import RangeSet
from dmcopy.transfer import (
    Transfer,
    TransferOptions,
    TransferOutcome,
    TransferPlan,
    TransferRequest,
    TransferSession,
    events,
    open_all,
    opening,
)
from dmcopy.transfer.plan import find_holes
from dmcopy.transfer.settings import Settings
from dmcopy.transfer.store import StateStore
from dmcopy.transfer.verify import Verifier

pytestmark = pytest.mark.usefixtures("folder")

SIZE = 4 << 20


@pytest.fixture(params=["threads", "uring"])
def engine(request: pytest.FixtureRequest) -> str:
    if probe()[request.param]:
        pytest.skip(probe()[request.param])
    return str(request.param)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("src").write_bytes(os.urandom(SIZE))
    return tmp_path


def copy(*dests: str, **options: object) -> TransferOutcome:
    with open_all(TransferRequest("src", dests)) as opened:
        return TransferSession(opened, TransferOptions(**options)).run()  # type: ignore[arg-type]


def test_a_file_that_shrinks_is_a_read_error(engine: str) -> None:
    kept = 1 << 20 | 512
    with open_all(TransferRequest("src", ("a",))) as opened:
        os.truncate("src", kept)
        options = TransferOptions(backend=engine, piece=64)
        assert TransferSession(opened, options).run().exit_code == ExitCode.FAILED
        skipping = TransferOptions(backend=engine, piece=64, on_error="skip")
        outcome = TransferSession(opened, skipping).run()
    assert outcome.exit_code == ExitCode.PARTIAL
    assert outcome.transfer.bad.ranges() == RangeSet([(kept >> 9, SIZE >> 9)])
    assert Path("a").read_bytes()[:kept] == Path("src").read_bytes()


def test_short_writes_are_gone_on_with_until_the_error(engine: str) -> None:
    """A limit on the file size cuts a write short, and refuses the rest of it."""
    Path("a").write_bytes(bytes(SIZE))
    limit = (1 << 20) + 4096
    words = ["copy", "src", "a", "--io", engine, "--on-error", "skip", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "dmcopy", *words, "--piece", "64K", "--depth", "2"],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == ExitCode.PARTIAL, done.stderr
    assert '"EFBIG"' in done.stdout
    assert Path("a").read_bytes()[: 1 << 20] == Path("src").read_bytes()[: 1 << 20]


def test_interrupted_system_calls(engine: str) -> None:
    rings: list[int] = []
    over = threading.Event()
    main = threading.get_ident()

    def ring() -> None:
        while not over.wait(0.0005):
            signal.pthread_kill(main, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, lambda *_: rings.append(1))
    ringer = threading.Thread(target=ring)
    ringer.start()
    try:
        for depth in (1, 4):
            outcome = copy("a", "b", backend=engine, depth=depth, piece=16, verify=True)
            assert outcome.exit_code == ExitCode.OK
    finally:
        over.set()
        ringer.join(10)
        signal.signal(signal.SIGUSR1, before)
    assert rings
    assert Path("a").read_bytes() == Path("b").read_bytes() == Path("src").read_bytes()


@pytest.mark.parametrize("direct", [True, False])
def test_a_verification_names_the_sectors_that_differ(direct: bool) -> None:
    assert copy("a", "b").exit_code == ExitCode.OK
    content = bytearray(Path("b").read_bytes())
    content[1000 * 512 + 7] ^= 1
    content[1001 * 512 + 511] ^= 128
    content[-1] ^= 1
    Path("b").write_bytes(content)
    with open_all(TransferRequest("src", ("a", "b"))) as opened, Reactor() as reactor:
        if not direct:
            for region in opened.dests:
                region.device.direct = False  # type: ignore[attr-defined]
        client = Client(16, reactor=reactor)
        plan = TransferPlan(opened.source, tuple(opened.dests), 64)
        transfer = Transfer(client, plan)
        for dest in transfer.dests:
            dest.resume(RangeSet([(0, SIZE >> 9)]))
        found = Verifier(reactor, plan, transfer.dests, pages=64).run()
        client.destroy()
        outcome = TransferOutcome(
            transfer, TransferSession(opened, TransferOptions()).settings, found
        )
    last = (SIZE >> 9) - 1
    assert found.mismatches == [RangeSet(), RangeSet([(1000, 1002), (last, last + 1)])]
    assert (found.is_good(0), found.is_good(1)) == (True, False)
    assert outcome.exit_code == ExitCode.MISMATCH
    told = outcome.as_dict()["destinations"][1]
    assert told["mismatches"] == [{"sector": 1000, "count": 2}, {"sector": last, "count": 1}]


def test_holes() -> None:
    with open("src", "wb") as file:
        file.truncate(16 << 20)
        for start in (0, 5 << 20, 15 << 20):
            file.seek(start)
            file.write(b"x" * (1 << 20))
    with BlockDevice.open("src") as device:
        holes = find_holes(IoRegion(device, 0, device.sectors), 8)
        inner = find_holes(IoRegion(device, 3 << 11, 4 << 11), 8)
    assert holes == RangeSet([(1 << 11, 5 << 11), (6 << 11, 15 << 11)])
    assert inner == RangeSet([(0, 2 << 11), (3 << 11, 4 << 11)])


def test_without_a_map_there_is_one_flush(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The user would never learn what else had become durable on the way, and it takes time."""
    flushed: list[str] = []
    make = Settings.reactor

    def watched(settings: Settings) -> Reactor:
        reactor = make(settings)
        submit = reactor.submit

        def watch(request: IoRequest) -> None:
            if isinstance(request, Io) and request.op == Op.FLUSH:
                flushed.append(request.device.path)
            submit(request)

        reactor.submit = watch
        return reactor

    monkeypatch.setattr(Settings, "reactor", watched)
    assert copy("a", "b", piece=8, map_interval=1e-6).exit_code == ExitCode.OK
    assert flushed == ["a", "b"]
    assert not caplog.records


def test_a_map_that_cannot_be_saved_is_told_once_until_it_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is tried again each second: hours of that would be thousands of lines."""
    seen: list[events.TransferEvent] = []
    errors = [errno.ENOSPC, errno.ENOSPC, 0, errno.EIO]

    def save(_: StateStore, __: Transfer) -> None:
        if error := errors.pop(0):
            raise DeviceError("m", "save the map", error)

    monkeypatch.setattr(StateStore, "save", save)
    with open_all(TransferRequest("src", ("a",))) as opened, Reactor() as reactor:
        session = TransferSession(opened, TransferOptions(map_path="m"), seen.append)
        client = Client(16, reactor=reactor)
        transfer = Transfer(client, session.plan)
        while errors:
            session._save(transfer)
        client.destroy()
    told = [events.MapFailed("m", os.strerror(error)) for error in (errno.ENOSPC, errno.EIO)]
    assert seen == told


def test_a_new_file_that_got_nothing_is_removed() -> None:
    with open_all(TransferRequest("src", ("a",))) as opened:
        assert opened.created == ["a"]
        opened.discard_created()
    assert not Path("a").exists()
    os.truncate("src", 512)
    with open_all(TransferRequest("src", ("b",))) as opened:
        os.truncate("src", 0)
        outcome = TransferSession(opened, TransferOptions(map_path="map")).run()
        assert (outcome.exit_code, outcome.nothing_written) == (ExitCode.FAILED, True)
    assert not Path("map").exists(), "nor is a map of nothing kept"
    assert outcome.map_path == "", "nor is the user told to resume by it"


def test_the_name_of_a_new_file_is_durable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its data is flushed; without its name it would be gone after a power cut all the same."""
    synced: list[str] = []
    monkeypatch.setattr(opening, "sync_folder", synced.append)
    with open_all(TransferRequest("src", ("a",))):
        assert synced == [os.getcwd()]


@pytest.mark.parametrize("nameless", [True, False])
@pytest.mark.parametrize(
    ("number", "says"), [(errno.EFBIG, "takes no file of that size"), (errno.ENOSPC, "create it")]
)
def test_a_file_that_cannot_be_as_long_is_not_made(
    nameless: bool, number: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(_fd: int, _size: int) -> None:
        raise OSError(number, os.strerror(number))

    if not nameless:
        monkeypatch.setattr(os, "O_TMPFILE", os.O_RDWR)  # of a folder: as where there is none
    monkeypatch.setattr(os, "ftruncate", no_room)
    before = os.listdir()
    with pytest.raises(DeviceError, match=says), open_all(TransferRequest("src", ("a",))):
        pass
    assert os.listdir() == before


@pytest.mark.parametrize("nameless", [True, False])
def test_a_new_file_has_its_size_from_the_first(
    nameless: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not nameless:  # as on a file system without O_TMPFILE
        monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY)
    with open_all(TransferRequest("src", ("a",), count=9)) as opened:
        assert opened.created == ["a"]
    assert os.stat("a").st_size == 9 * 512
    assert sorted(os.listdir()) == ["a", "src"]
    assert os.stat("a").st_mode == os.stat("src").st_mode


class Stuck:
    """A back end whose requests never end, as on a disk that hangs. `begun`: at the first of them.

    Before it nothing is under way, and an interruption, as on a slow machine, leaves nothing open.
    """

    def __init__(self, reactor: Reactor, begun: Callable[[], object]) -> None:
        self.begun = begun
        self.inner = reactor.backend
        self.name, self.time, self.fileno = self.inner.name, self.inner.time, self.inner.fileno
        self.pin, self.unpin = self.inner.pin, self.inner.unpin
        self.held: list[IoRequest] = []
        reactor.backend = self
        reactor.submit = self.submit

    def submit(self, request: IoRequest) -> None:
        self.held.append(request)
        if len(self.held) == 1:
            self.begun()

    def poll(self, timeout: float | None) -> list[IoRequest]:
        return self.inner.poll(timeout)

    def close(self) -> None:
        self.inner.close()


@pytest.fixture
def waker() -> Iterator[list[threading.Timer]]:
    timers: list[threading.Timer] = []
    yield timers
    for timer in timers:
        timer.join(10)


def test_an_interruption_does_not_wait_for_a_disk_that_hangs(
    waker: list[threading.Timer],
) -> None:
    with open_all(TransferRequest("src", ("a",))) as opened, Reactor("threads") as reactor:
        client = Client(64, reactor=reactor)
        transfer = Transfer(client, TransferPlan(opened.source, tuple(opened.dests), 128))
        timer = threading.Timer(0.05, reactor.call_soon_threadsafe, [transfer.interrupt])
        waker.append(timer)
        stuck = Stuck(reactor, timer.start)
        transfer.start()
        reactor.run_until(lambda: transfer.finished, 30)
        assert (transfer.interrupted, transfer.abandoned) == (True, True)
        while stuck.held:  # let it end after all, so that the client can be destroyed
            request = stuck.held.pop()
            request.error = errno.EIO
            assert request.notify is not None
            request.notify(request)
            reactor.step(0.01)
        client.destroy(10)


def test_a_session_leaves_open_what_a_hanging_disk_may_still_write_from(
    waker: list[threading.Timer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pages and its reactor: neither can be closed with requests in flight."""
    made: list[tuple[Reactor, Stuck]] = []
    make = Settings.reactor

    def reactor(settings: Settings) -> Reactor:
        made.append((one := make(settings), Stuck(one, waker[0].start)))
        return one

    monkeypatch.setattr(Settings, "reactor", reactor)
    with open_all(TransferRequest("src", ("a",))) as opened:
        session = TransferSession(opened, TransferOptions(backend="threads"))
        waker.append(threading.Timer(0.05, session.interrupt))
        outcome = session.run()
        ((left, stuck),) = made
        assert (outcome.exit_code, outcome.transfer.abandoned) == (ExitCode.INTERRUPTED, True)
        assert stuck.held
        assert all(request.memory is not None and request.memory.view for request in stuck.held)
        left.step()  # it is open
        left.close()


def test_an_interruption_before_anything_began() -> None:
    with open_all(TransferRequest("src", ("a",))) as opened:
        session = TransferSession(opened, TransferOptions())
        session.interrupt()
        began = time.monotonic()
        outcome = session.run()
    assert outcome.exit_code == ExitCode.INTERRUPTED
    assert time.monotonic() - began < 30


def test_an_interruption_of_the_verification(engine: str) -> None:
    with open_all(TransferRequest("src", ("a",))) as opened:
        session: TransferSession

        def stop(event: events.TransferEvent) -> None:
            if isinstance(event, events.Progress) and event.phase == "verify":
                session.interrupt()

        session = TransferSession(
            opened, TransferOptions(backend=engine, piece=8, verify=True), stop
        )
        outcome = session.run()
    assert outcome.exit_code == ExitCode.INTERRUPTED
    assert outcome.transfer.dests[0].ok, "the copy itself was done"
    assert outcome.verified is not None
    assert not outcome.verified.is_good(0)


def test_a_path_given_twice_is_named_once() -> None:
    """The other path is told where it is another one."""
    os.symlink("a", "link")
    with pytest.raises(UsageError, match=r"a is given twice as a destination$"):
        open_all(TransferRequest("src", ("a", "a")))
    with pytest.raises(UsageError, match=r"link is given twice as a destination \(also as a\)$"):
        open_all(TransferRequest("src", ("a", "link")))


def test_a_verification_tells_how_far_it_is(engine: str) -> None:
    """From nothing to all of it, and never more."""
    told: list[events.TransferEvent] = []
    with open_all(TransferRequest("src", ("a",))) as opened:
        options = TransferOptions(backend=engine, piece=8, verify=True)
        assert TransferSession(opened, options, told.append).run().exit_code == ExitCode.OK
    progress = [event for event in told if isinstance(event, events.Progress)]
    verified = [event for event in progress if event.phase == "verify"]
    assert [event.total for event in verified] == [SIZE >> 9] * len(verified)
    assert (verified[0].sectors, verified[-1].sectors) == (0, SIZE >> 9)
    assert [event.written for event in verified] == [(event.sectors,) for event in verified]


def test_an_interruption_while_the_map_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a reactor then, and nothing yet that could be stopped on it."""
    with open_all(TransferRequest("src", ("a",))) as opened:
        session = TransferSession(opened, TransferOptions(map_path="m"))
        open_map = session._open_map
        monkeypatch.setattr(
            session, "_open_map", lambda *args: (session.interrupt(), open_map(*args))
        )
        assert session.run().exit_code == ExitCode.INTERRUPTED
