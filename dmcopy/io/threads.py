"""The `threads` back end: plain system calls on a few threads. It works everywhere.

A worker does a whole copy, all reads and then the writes, in one go: for pieces of a megabyte that
is the quickest way there is, since nothing is handed over between the two.
"""

from __future__ import annotations

import errno
import os
import queue
import time
from collections import deque
from collections.abc import Callable

from dmcopy.io.poller import Poller
from dmcopy.io.region import Device
from dmcopy.io.request import CopyIo, Io, ListCopyIo, Memory, Op, Request, behind
from dmcopy.thread import Threads

WORKERS = 4


class WorkerPool:
    """Threads that perform requests; what is done is kept for `collect`.

    `wake` is called after a request was done, if the reactor said that it sleeps. Where the system
    gives no thread (RLIMIT_NPROC, RLIMIT_AS) those that there are do it all; where there is not
    even one, `collect` itself does.
    """

    def __init__(self, wake: Callable[[], None], workers: int = WORKERS) -> None:
        self._wake = wake
        self._todo: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._done: deque[Request] = deque()
        self._threads = Threads(workers, "dmcopy-io")
        self.in_flight = 0
        self.sleeping = False

    def submit(self, request: Request) -> None:
        """Hand a request to the next free worker."""
        self.in_flight += 1
        if self.in_flight > len(self._threads) < self._threads.limit:
            self._threads.begin_one(self._work)
        self._todo.put(request)
        if not self._threads and self.sleeping:
            self._wake()

    def collect(self) -> list[Request]:
        """Return what was done since the last call."""
        while not self._threads and not self._todo.empty():
            request = self._todo.get()
            assert request is not None, "a pool that is closed has nothing in flight"
            perform(request)
            self._done.append(request)
        done = [self._done.popleft() for _ in range(len(self._done))]
        self.in_flight -= len(done)
        return done

    def has_done(self) -> bool:
        """Whether `collect` would return something."""
        return bool(self._done or (self.in_flight and not self._threads))

    def close(self) -> None:
        """End the threads; nothing may be in flight."""
        for _ in self._threads:
            self._todo.put(None)
        for thread in self._threads:
            thread.join(timeout=5)

    def _work(self) -> None:
        while (request := self._todo.get()) is not None:
            try:
                perform(request)
            except BaseException as error:  # such as a SystemExit of a device
                request.error = _errno(error)
            # Order matters: the sleeper says that it sleeps before it looks for what is done.
            self._done.append(request)
            if self.sleeping:
                self._wake()


class ThreadsBackend:
    """`IoBackend` over a `WorkerPool`."""

    name = "threads"

    def __init__(self, poller: Poller, *, inline: bool = False, workers: int = WORKERS) -> None:
        self._poller = poller
        self._pool = WorkerPool(poller.wake, workers)
        self._inline = inline
        self._alone: Request | None = None
        self._nested = False
        self.time = time.monotonic

    def fileno(self) -> int:
        """The poller's descriptor; its caller sleeps on it, so every completion writes to it.

        Nothing is done inline any more: what is kept for `poll` would wake no one.
        """
        self._nested = self._pool.sleeping = True
        self._inline = False
        return self._poller.fileno()

    def submit(self, request: Request) -> None:
        """Start a request, or keep it for `poll` when it may be done inline."""
        if self._inline and self._alone is None and not self._pool.in_flight:
            self._alone = request
            return
        if self._alone is not None:
            self._pool.submit(self._alone)
            self._alone = None
        self._pool.submit(request)

    def pin(self, memory: Memory) -> None:
        """See `Reactor.pin`; nothing is gained by it here."""

    def unpin(self, memory: Memory) -> None:
        """See `Reactor.unpin`."""

    def poll(self, timeout: float | None) -> list[Request]:
        if (request := self._alone) is not None:
            perform(request)  # a Ctrl-C may come out of it: it is then done over
            self._alone = None
            return [request]
        pool = self._pool
        pool.sleeping = True
        self._poller.wait(0 if pool.has_done() else timeout)
        pool.sleeping = self._nested
        return pool.collect()

    def close(self) -> None:
        self._pool.close()


def perform(request: Request) -> None:
    """Do a request by plain system calls, now. Any `Exception` ends up in the request."""
    try:
        if isinstance(request, ListCopyIo):
            _copy_list(request)
        elif isinstance(request, CopyIo):
            _copy(request)
        else:
            _PERFORM[request.op](request)
    except Exception as error:
        request.error = _errno(error)


def _errno(error: BaseException) -> int:
    """Return the kernel's errno of an error; a device that was closed meanwhile has none: EBADF."""
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    return getattr(error, "errno", None) or errno.EBADF


def _copy(request: CopyIo) -> None:
    views = request.memory.views(request.extents)
    device, sector, _ = request.source
    read_all(device.fileno(), views, sector << 9, request.bytes)
    for index, (dest, to, _) in enumerate(request.dests):
        try:
            write_all(dest.fileno(), views, to << 9, request.bytes)
        except Exception as error:
            request.write_failed(index, _errno(error))


def _copy_list(request: ListCopyIo) -> None:
    memory = request.memory
    for (device, sector, count), extents in request.reads():
        read_all(device.fileno(), memory.views(extents), sector << 9, count << 9)
    for index, ((device, sector, count), extents) in enumerate(request.writes()):
        try:
            write_all(device.fileno(), memory.views(extents), sector << 9, count << 9)
        except Exception as error:
            request.write_failed(index, _errno(error))


def read_all(fd: int, views: list[memoryview], offset: int, length: int) -> None:
    """Read exactly `length` bytes at `offset` into `views`; EIO where the device ends before."""
    count = os.preadv(fd, views, offset)
    while count < length:
        if count == 0:
            raise OSError(errno.EIO, "the device ended before the region did")
        views, offset, length = behind(views, count), offset + count, length - count
        count = os.preadv(fd, views, offset)


def write_all(fd: int, views: list[memoryview], offset: int, length: int, flags: int = 0) -> None:
    """Write exactly `length` bytes from `views` at `offset`; EIO where the device takes no more."""
    count = os.pwritev(fd, views, offset, flags)
    while count < length:
        if count == 0:
            raise OSError(errno.EIO, "the device took nothing")
        views, offset, length = behind(views, count), offset + count, length - count
        count = os.pwritev(fd, views, offset, flags)


def _read(request: Io) -> None:
    assert request.memory is not None
    views = request.memory.views(request.extents)
    read_all(request.device.fileno(), views, request.sector << 9, request.bytes)


def _write(request: Io) -> None:
    assert request.memory is not None
    if request.preflush and not request.device.write_through:
        request.device.flush()
    views = request.memory.views(request.extents)
    flags = os.RWF_DSYNC if request.fua else 0
    write_all(request.device.fileno(), views, request.sector << 9, request.bytes, flags)


def _on_device(operation: Callable[[Device, int, int], None]) -> Callable[[Io], None]:
    return lambda request: operation(request.device, request.sector, request.count)


_PERFORM: dict[Op, Callable[[Io], None]] = {
    Op.READ: _read,
    Op.WRITE: _write,
    Op.FLUSH: _on_device(lambda device, _sector, _count: device.flush()),
    Op.DISCARD: _on_device(lambda device, sector, count: device.discard(sector, count)),
    Op.WRITE_ZEROES: _on_device(lambda device, sector, count: device.zero_out(sector, count)),
}
