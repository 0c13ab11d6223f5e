"""A device of the kernel's nbd driver that is connected, served and noted, until it is closed."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import ClassVar, Final, TypeVar

from dmcopy.block import tools
from dmcopy.errors import DeadlineError
from dmcopy.export.lasting import LastingDevice
from dmcopy.export.nbd.handshake import transmission_flags
from dmcopy.export.nbd.transmission import Transmission
from dmcopy.export.wire import Wire
from dmcopy.io import nbd
from dmcopy.ledger import Kind

_TAKE_SECONDS: Final = 30.0
_TAKE_AGAIN_SECONDS: Final = 0.01
_CLOSE_SECONDS: Final = 10.0
_T = TypeVar("_T")


class AttachedDevice(LastingDevice):
    """A device as one of the nbd driver's, over a pair of sockets. See `LastingDevice`.

    One that is not `recoverable` has a watcher, a process that disconnects it when this one ends.
    """

    kind: ClassVar[Kind] = "nbd"
    _wire: Wire | None = None
    _serving = False
    _watcher: subprocess.Popen[bytes] | None = None

    async def closing(self, *, force: bool = False) -> None:
        await super().closing(force=force)
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.kill()
            watcher.communicate()

    def resize(self) -> None:
        """Give it the size of the device."""
        self._do(self._sized, "give it another size")

    def _sized(self, number: int) -> None:
        self._control.resize(number, self.mark, self._device.sectors)

    @property
    def _control(self) -> nbd.NbdControl:
        return nbd.NbdControl()

    def _new_mark(self) -> str:
        return nbd.new_mark()

    def _find(self, mark: str) -> int | None:
        return self._control.find(mark)

    def _node(self, number: int) -> str:
        return nbd.node(number)

    async def _make(self) -> None:
        if not self._recoverable:
            self._watcher = _watcher_of(self.mark)
        connect = partial(
            self._control.connect,
            self.mark,
            sectors=self._device.sectors,
            block_size=self._device.logical_block_size,
            flags=transmission_flags(self._device),
            wait=self._recoverable,
        )
        joined = partial(_joined, connect)
        ours, number = await self._calling(joined, "make an nbd device of it")
        self._serve(ours)
        self._note(number)
        await self._doing(self._control.retry_soon, "set how often it looks for its server")

    async def _continue(self) -> None:
        self._serve(await self._doing(self._take, "take it over"))
        await self._doing(self._sized, "give it another size")

    def _take(self, number: int) -> socket.socket:
        """Have the driver continue with a socket of this process's; return its other end.

        It takes one when it knows that the last server is gone, and does not tell whether it did:
        one that it did not take has no other end any more.
        """
        deadline = time.monotonic() + _TAKE_SECONDS
        while True:
            ours, _ = _joined(partial(self._control.reconnect, number, self.mark))
            if _has_other_end(ours):
                return ours
            ours.close()
            if time.monotonic() > deadline:
                raise TimeoutError(errno.EBUSY, os.strerror(errno.EBUSY))
            time.sleep(_TAKE_AGAIN_SECONDS)

    def _serve(self, ours: socket.socket) -> None:
        wire = Wire(
            self._reactor, ours, lambda: transmission.readable(), lambda: transmission.lost()
        )
        transmission = Transmission(wire, self._device, self._over, structured=False)
        self._wire, self._serving = wire, True

    def _over(self) -> None:
        self._serving = False

    async def _remove(self, *, wait: bool) -> None:
        if not wait:
            self._end()  # whatever the driver could not hand over yet fails, too
        await self._doing(self._disconnect, "disconnect it")
        with contextlib.suppress(DeadlineError):
            ended = f"the requests of {self.path} to end"
            self._reactor.run_until(lambda: not self._serving, _CLOSE_SECONDS, ended)
        self._end()
        self._number = None

    def _disconnect(self, number: int) -> None:
        if self._control.mark(number) == self.mark:  # or another process has done so already
            self._control.disconnect(number)

    def _cut_off(self, number: int) -> None:
        self._disconnect(number)

    def _end(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()


def _joined(call: Callable[[int], _T]) -> tuple[socket.socket, _T]:
    """Have `call` give the driver one of two sockets; return the other, and what it returns."""
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            return ours, call(theirs.fileno())
    except BaseException:
        ours.close()
        raise


def _has_other_end(ours: socket.socket) -> bool:
    try:
        return bool(ours.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except BlockingIOError:
        return True


def _watcher_of(mark: str) -> subprocess.Popen[bytes]:
    """Start the process that disconnects a device when it can read no more from this one."""
    return subprocess.Popen(
        [sys.executable, "-m", "dmcopy.export.nbd.watcher", mark],
        cwd="/",
        env=tools.python_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # so that what ends the server by its terminal leaves it
    )
