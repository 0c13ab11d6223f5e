"""Signals, for every command in one place: how it is ended from outside, and asked how far it is.

    SIGINT, SIGTERM, SIGHUP    the first: work that is registered with `interrupting` is asked to
                               end, and gets GRACE_SECONDS for it; else KeyboardInterrupt is raised.
                               Another one ends the process immediately.
    SIGUSR1                    the next progress that comes is told, as with dd

One that is ignored from the start stays so: SIGINT in a shell's background job, SIGHUP below nohup.
Not so SIGCHLD, without which the kernel does not tell how a program ends, nor a SIGALRM that is
held back, without which a command would not end after its grace.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any, Final, Protocol

from dmcopy.cli.shown import drawing
from dmcopy.errors import ExitCode

ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE_SECONDS: Final = 5.0
"""What a copy does at its end takes less; what takes more is a disk that does not answer."""
TOGETHER_SECONDS: Final = 0.3
"""Signals that come so close are one: timeout(1) sends two, and so does a terminal's end."""


class Interruptible(Protocol):
    """What can be ended early, and killed then without harm: a `TransferSession`, a `Mover`."""

    def interrupt(self) -> None:
        """End it soon. Called from a signal handler."""


class _State:
    def __init__(self) -> None:
        self.works: list[Interruptible] = []
        self.first: float | None = None
        self.asked = False


_state = _State()


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Handle signals for the length of a command. Does nothing outside of the main thread."""
    global _state
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _state = _State()
    before = {}
    for number in (*ENDING, signal.SIGUSR1, signal.SIGALRM):
        handler = signal.getsignal(number)
        if number == signal.SIGALRM or handler not in (signal.SIG_IGN, None):
            before[number] = handler
    for number in before.keys() - {signal.SIGALRM}:
        signal.signal(number, _ask if number == signal.SIGUSR1 else _end)
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    held = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    try:
        yield
    finally:
        if _state.first is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def interrupting(work: Interruptible) -> Iterator[None]:
    """Let a signal end `work`, instead of raising KeyboardInterrupt, for as long as this lasts."""
    _state.works.append(work)
    try:
        yield
    finally:
        _state.works.remove(work)


def unhurried() -> None:
    """Let work that was asked to end take its time: from now on only another signal ends it."""
    signal.setitimer(signal.ITIMER_REAL, 0)


def is_asked() -> bool:
    """Return whether the user has asked how far it is, since the last call."""
    asked, _state.asked = _state.asked, False
    return asked


def _ask(_number: int, _frame: FrameType | None) -> None:
    _state.asked = True


def _end(_number: int, _frame: FrameType | None) -> None:
    now = time.monotonic()
    if _state.first is not None:
        if now - _state.first > TOGETHER_SECONDS:
            _give_up()
        return
    _state.first = now
    if not _state.works:
        raise KeyboardInterrupt
    signal.signal(signal.SIGALRM, _give_up)
    signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS)
    for work in _state.works:
        work.interrupt()


def _give_up(*_: Any) -> None:
    """End the process, whatever it is doing; a bar may have hidden the cursor."""
    with contextlib.suppress(Exception):  # such as one in the middle of another message
        drawing(sys.stderr).write("\x1b[?25h\n" if sys.stderr.isatty() else "")
        sys.stderr.write("dmcopy: interrupted; what was under way has not ended\n")
    os._exit(ExitCode.INTERRUPTED)
