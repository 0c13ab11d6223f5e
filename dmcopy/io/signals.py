"""Signals that wait: what a handler raises must not come out in the middle of a state machine.

Python calls a signal's handler between any two instructions of the main thread, and what it raises
(at Ctrl-C: KeyboardInterrupt) comes out right there: where a completion was taken and not handed on
yet, or a job is counted and not yet queued. asyncio and trio hold Ctrl-C back until no bookkeeping
is under way; a `Shield` does so with every signal whose handler may be meant to raise.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

SIGNALS: Final = tuple(
    int(number)
    for number in (
        signal.SIGHUP,
        signal.SIGINT,
        signal.SIGQUIT,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGALRM,
        signal.SIGTERM,
    )
)
IMPATIENT_SECONDS: Final = 1.0
"""A signal that comes again after so long is not held back: some callback does not return."""

# What is below the functions of `signal`: those make enums of what they return, which takes ten
# times as long as the rest, and every wait comes here.
_signal: Any = sys.modules.get("_signal", signal)
_get: Callable[[int], Any] = _signal.getsignal
_set: Callable[[int, Any], Any] = _signal.signal


class Shield:
    """A context in which the handlers of `SIGNALS` wait; it may be entered within itself.

    `wake` is called when one begins to wait. The handlers are called by `deliver`, or at the end of
    the context. Elsewhere than on the main thread, to which Python gives all signals, it does
    nothing.
    """

    def __init__(self, wake: Callable[[], object]) -> None:
        self.noted: dict[int, float] = {}
        self._wake = wake
        self._depth = 0
        self._handlers: dict[int, Callable[[int, FrameType | None], object]] = {}
        self._note = self._note_signal  # bound once: it is looked for among the handlers
        self._is_main = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> None:
        # Until a handler is replaced, what it raises may come out after any call made here.
        self._depth += 1
        if self._depth == 1 and self._is_main:
            try:
                for number in SIGNALS:
                    handler = _get(number)
                    if callable(handler) and handler is not self._note:
                        self._handlers[number] = handler
                        _set(number, self._note)
            except BaseException:
                self._depth = 0
                self._restore()
                raise

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if not self._depth and self._is_main:
            self._restore()
            if self.noted:
                self.deliver()

    def deliver(self) -> None:
        """Call the handlers of the signals that came; each raises what it raises.

        They are given no frame: the one that was interrupted is gone, and would keep what it used.
        """
        number, _ = self.noted.popitem()
        try:
            self._handlers[number](number, None)
        finally:
            if self.noted:
                self.deliver()

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            if _get(number) is self._note:
                _set(number, handler)

    def _note_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        before = self.noted.get(number)
        if not self._depth or (before is not None and now - before > IMPATIENT_SECONDS):
            self.noted.pop(number, None)
            self._handlers[number](number, frame)
        elif before is None:
            self.noted[number] = now
            self._wake()
