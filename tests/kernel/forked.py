"""A function in a process of its own: a new Python takes seconds to start in a guest."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable

from dmcopy.closing import Closing


class Forked(Closing):
    """A copy of this process, which runs `work` until it is killed; `close` does that, too.

    `work` is given what it calls once it is ready, which is waited for.
    """

    def __init__(self, work: Callable[[Callable[[], object]], object]) -> None:
        reading, writing = os.pipe()
        self._pid = os.fork()
        if not self._pid:
            try:
                work(lambda: os.write(writing, b"."))
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        os.close(writing)
        self._runs = True
        try:
            assert os.read(reading, 1), "it ended before it was ready"
        except BaseException:
            self.kill()
            raise
        finally:
            os.close(reading)

    def kill(self) -> None:
        """Kill it, and wait for its end."""
        if self._runs:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._runs = False

    close = kill
