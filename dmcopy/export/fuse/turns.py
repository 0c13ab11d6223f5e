"""Order among requests: writes run in parallel, one that must not overlap others runs alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from dmcopy.io.request import Io


class Turns:
    """Lets writes to a device begin, in the order in which they came.

    A write of part of a block reads the block first and writes it back whole: any other write of it
    meanwhile would be undone. Such writes are rare, so one goes when no other is under way.
    """

    def __init__(self, submit: Callable[[Io], None]) -> None:
        self._submit = submit
        self._under_way = 0
        self._alone = False
        self._waiting: deque[Io | Callable[[], object]] = deque()

    def write(self, request: Io) -> None:
        """Submit `request` now or in its turn; `end` must follow when it has ended."""
        if self._alone or self._waiting:
            self._waiting.append(request)
        else:
            self._under_way += 1
            self._submit(request)

    def alone(self, begin: Callable[[], object]) -> None:
        """Call `begin` when no other is under way; `end` must follow when it has ended."""
        self._waiting.append(begin)
        self._go_on()

    def end(self) -> None:
        """Tell that one has ended."""
        self._under_way -= 1
        self._alone = False  # a request that runs alone is the only one that can end
        if self._waiting:
            self._go_on()

    def _go_on(self) -> None:
        while self._waiting and not self._alone:
            first = self._waiting[0]
            plain = isinstance(first, Io)
            if self._under_way and not plain:
                return
            self._waiting.popleft()
            self._under_way += 1
            self._alone = not plain
            if isinstance(first, Io):
                self._submit(first)
            else:
                first()
