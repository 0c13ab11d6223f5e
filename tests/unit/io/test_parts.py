"""One callback for many requests."""

from __future__ import annotations

import errno
import gc
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from dmcopy.io.parts import Countdown, first_error, submit_all
from dmcopy.io.region import IoRegion
from dmcopy.io.request import Io, Op


class Flush(Io):
    """A request to which weak references are possible."""


def flushes(count: int) -> list[Io]:
    device: Any = None  # nothing is done with it
    return [Flush(Op.FLUSH, IoRegion(device, 0, 0)) for _ in range(count)]


def ended(request: Io) -> None:
    notify: Callable[[Io], object] | None = request.notify
    assert notify is not None
    notify(request)


def test_the_callback_comes_with_the_last_end() -> None:
    heard: list[str] = []
    countdown = Countdown(2, lambda: heard.append("all"))
    countdown.ended()
    assert heard == []
    countdown.ended("what a callback is called with")
    assert heard == ["all"]


def test_requests_are_handed_back_in_their_order_whatever_order_they_end_in() -> None:
    heard: list[Sequence[Io]] = []
    submitted: list[Io] = []
    requests = flushes(3)
    submit_all(submitted.append, requests, heard.append)
    assert submitted == requests
    requests[2].error = errno.ENOSPC
    requests[1].error = errno.EIO
    for request in reversed(requests):
        assert heard == []
        ended(request)
    assert heard == [requests]
    assert first_error(requests) == errno.EIO
    assert first_error(requests[:1]) == 0


def test_requests_that_have_ended_are_gone_without_the_garbage_collector() -> None:
    gc.disable()
    try:
        requests = flushes(2)
        first = weakref.ref(requests[0])
        submit_all(ended, requests, lambda _: None)
        del requests
        assert first() is None
    finally:
        gc.enable()
