"""A file that is mounted, served and noted in the ledger, until it is closed."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from functools import partial
from pathlib import Path
from typing import Final

from dmcopy.block import file_mounts, holders
from dmcopy.errors import BusyError, DeadlineError, DeviceError
from dmcopy.export.aside import aside
from dmcopy.export.fuse.file import MAX_BYTES, FuseRequests
from dmcopy.io.reactor import Reactor
from dmcopy.io.region import Device
from dmcopy.ledger import Ledger
from dmcopy.mapper.base import note_failure

_SECONDS: Final = 30.0
_CLOSE_SECONDS: Final = 10.0


class FuseFile:
    """`device` as the file `path`, which must not be there yet; `close` removes it.

    `otherwise` says what to do where it is.

    It is served while the reactor runs, that is, while anything is waited for there: on that thread
    the file itself can only be opened or looked at by way of `aside`. `gone` is true
    when another process has unmounted it. Until it is closed it is in `ledger`, by default the
    user's. Raises UsageError, MissingError, DeviceError, BusyError.
    """

    def __init__(
        self,
        reactor: Reactor,
        device: Device,
        path: str,
        *,
        ledger: Ledger | None = None,
        otherwise: str = "say another path",
    ) -> None:
        self._reactor = reactor
        self._ledger = ledger or Ledger()
        self._source = f"{file_mounts.SOURCE_PREFIX}{uuid.uuid4().hex[:12]}"
        self._requests: FuseRequests | None = None
        self.gone = False
        place = Path(path)
        self.path = str(place.parent.resolve() / place.name)
        self._entry = self._ledger.add("mount", self.path, uuid=self._source)
        try:
            file_mounts.make_point(self.path, self._source, otherwise)
        except BaseException:
            self._ledger.cancel(self._entry)
            raise
        try:
            fd = file_mounts.mount(
                self.path, self._source, max_bytes=MAX_BYTES, read_only=device.read_only
            )
            try:
                self._requests = FuseRequests(reactor, device, fd, self._ended)
            except BaseException:
                os.close(fd)
                raise
            self.look()
        except BaseException as error:
            note_failure(error, partial(self.close, force=True))
            raise

    def close(self, *, force: bool = False) -> None:
        """Unmount and remove the file. May be called again.

        Raises BusyError naming who has it open; then it is still served. `force` takes it from
        them: what they wait for, and all that they do with it from then on, fails.
        """
        if not self._entry:
            return
        requests = self._requests
        if force:
            # From then on no request comes, and this thread may unmount it: there may be no other.
            if requests is not None:
                requests.close()
            try:
                file_mounts.unmount(self.path, self._source, lazily=True)
            except OSError as error:
                raise self._not_unmounted(error) from error
        else:
            self._unmount()
        self._requests = None
        if requests is not None:
            requests.close()
            with contextlib.suppress(DeadlineError):  # it keeps its memory then
                ended = "the requests under way to end"
                self._reactor.run_until(lambda: not requests.under_way, _CLOSE_SECONDS, ended)
                requests.release()
        file_mounts.remove_point(self.path, self._source)
        self._ledger.cancel(self._entry)
        self._entry = ""

    def look(self) -> None:
        """Have the kernel ask for the size: until then it takes it for 0, and so does losetup."""
        if self._requests is not None:
            self._requests.look()

        def size() -> int:
            return os.stat(self.path).st_size

        try:
            aside(self._reactor, size, f"{self.path} to be there", timeout=_SECONDS)
        except OSError as error:
            raise DeviceError(self.path, "look at it", error.errno or 0) from error

    def _unmount(self) -> None:
        call = partial(file_mounts.unmount, self.path, self._source)
        try:
            aside(self._reactor, call, f"{self.path} to be unmounted", timeout=_SECONDS)
        except OSError as error:
            raise self._in_use(error) from None

    def _in_use(self, error: OSError) -> Exception:
        if error.errno != errno.EBUSY:
            return self._not_unmounted(error)
        found = aside(
            self._reactor,
            lambda: holders.who(self.path),
            f"who has {self.path} open",
            timeout=_SECONDS,
        )
        return BusyError(self.path, [str(one) for one in found], "it is still served")

    def _not_unmounted(self, error: OSError) -> DeviceError:
        return DeviceError(self.path, "unmount it", error.errno or 0, error.strerror or "")

    def _ended(self) -> None:
        self.gone = True
