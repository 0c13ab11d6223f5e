"""What a table does about an exception of a target of its own: `Guard`, then `FailedTarget`.

No caller can say how far a callback got that raised, nor which bios wait for the rest of it. So the
table stops there as in a crash: its targets write nothing any more, and when the I/O that is under
way has ended, so does every bio that they hold, with EIO.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EIO
from functools import partial
from typing import Any, TypeVar

from dmcopy.errors import ClosedError, DeadlineError
from dmcopy.io.reactor import Reactor, Timer
from dmcopy.io.request import Request
from dmcopy.targets.base import KILL, Bio, Map, Target, TargetError

_T = TypeVar("_T")


class Guard:
    """The reactor as the targets of one table have it: what calls them back goes through here.

    Once a callback has raised, which is reported as by the reactor, `failed(error)` is called, and
    may submit what must still be done; whatever is submitted later ends with EIO. When nothing
    is left that would call the targets, nothing ever calls them again, and `stopped()` is called.
    """

    def __init__(
        self,
        reactor: Reactor,
        failed: Callable[[BaseException], object],
        stopped: Callable[[], object],
    ) -> None:
        self.time = reactor.time
        self.shield = reactor.shield
        self._reactor = reactor
        self._submit = reactor.submit
        self._failed = failed
        self._stopped = stopped
        self._due = 0  # callbacks that will come
        self._timers: set[Timer] = set()  # those that may not, being cancelled
        self._has_failed = False
        self._refuses = False
        self._has_stopped = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def submit(self, request: Request) -> None:
        """Submit a request of a target's own, or a bio that it held."""
        if self._refuses:
            request.error = EIO
            self.call_soon(partial(request.notify, request))  # type: ignore[misc, arg-type]
            return
        request.notify = partial(self._ended, request.notify)  # type: ignore[arg-type]
        self._due += 1
        self._submit(request)

    def call_soon(self, notify: Callable[[], object]) -> None:
        self._due += 1
        self._reactor.call_soon(partial(self._call, notify))

    def call_before_io(self, notify: Callable[[], object]) -> None:
        self._due += 1
        self._reactor.call_before_io(partial(self._call, notify))

    def call_later(self, delay: float, notify: Callable[[], object]) -> Timer:
        def come() -> None:
            self._timers.discard(timer)
            self._due += 1
            self._call(notify)

        timer = self._reactor.call_later(delay, come)
        self._timers = {one for one in self._timers if not one.cancelled} | {timer}
        return timer

    def run_until(
        self,
        done: Callable[[], Any],
        timeout: float | None = None,
        waiting_for: str = "something",
    ) -> None:
        """See `Reactor.run_until`. Raises ClosedError when that cannot come any more."""
        self._reactor.run_until(lambda: done() or self._has_stopped, timeout, waiting_for)
        if not done():
            raise ClosedError(f"a target has failed: it cannot wait for {waiting_for}")

    def call(self, notify: Callable[..., _T], *args: Any) -> _T | None:
        """Call a target from a callback of another table: what it raises is its own, and None."""
        if not self._has_stopped:
            try:
                return notify(*args)
            except BaseException as error:
                self.report(error)
        return None

    def report(self, error: BaseException) -> None:
        """Take what a callback raised: its table fails. kcopyd, too, says it here."""
        if not self._has_failed:
            self._has_failed = True
            self._failed(error)
            self._refuses = True
        self._reactor.report(error)
        self._reactor.call_soon(self._look)

    def _ended(self, notify: Callable[[Any], object], request: Any) -> None:
        # Every request of a target comes through here: no call more than it needs.
        request.notify = notify
        self._due -= 1
        try:
            notify(request)
        except BaseException as error:
            self.report(error)
        if self._has_failed:
            self._look()

    def _call(self, notify: Callable[[], object]) -> None:
        self._due -= 1
        self.call(notify)
        if self._has_failed:
            self._look()

    def _look(self) -> None:
        """End it when nothing that is under way would call a target."""
        if self._due or self._has_stopped:
            return
        if all(timer.cancelled for timer in self._timers):
            self._has_stopped = True
            self._stopped()


class FailedTarget(Target):
    """In the place of a target whose table has failed: every bio ends with EIO."""

    flush_bios = discard_bios = 1
    maps_ranges = True

    def __init__(self, target: Target) -> None:
        self.name = target.name  # type: ignore[misc]
        self.host = target.host
        self.begin = target.begin
        self.length = target.length
        self.value = target.value
        self.status = target.status  # type: ignore[method-assign]
        self.table = target.table  # type: ignore[method-assign]
        self.stopped = target.stopped  # type: ignore[method-assign]
        self._target = target

    def map(self, bio: Bio) -> Map:
        del bio
        return KILL

    def message(self, words: tuple[str, ...]) -> str:
        del words
        raise TargetError("the target has failed; the device needs another table", EIO)

    def destroy(self) -> None:
        """Destroy the target, as far as its state allows that."""
        try:
            self._target.destroy()
        except DeadlineError:
            raise
        except Exception as error:
            self.host.reactor.report(error)
