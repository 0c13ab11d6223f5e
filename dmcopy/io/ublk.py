"""The kernel's ublk driver: its control device, and the bytes that it and a server exchange.

A ublk device is a block device, /dev/ublkbN, whose requests a process answers that has its queue,
/dev/ublkcN, open. Commands go to both through an io_uring. Layouts and numbers are those of
include/uapi/linux/ublk_cmd.h, 6.12; what the driver does is in drivers/block/ublk_drv.c.

A device carries 64 bits of its server's, which the driver keeps and shows (`ublksrv_flags`): a
random number there, the `mark`, in 16 digits, tells a device from the next one of its number.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import struct
import time
from typing import Final, NamedTuple

from dmcopy.io.ring import COMMAND, OP_URING_CMD, Ring, probe_ring, signed

CONTROL: Final = "/dev/ublk-control"
SECONDS: Final = 60.0
"""How long a command may take: to start a device, its partition table is read."""
_BUSY_SECONDS: Final = 0.01

FETCH: Final = 0xC0107520
COMMIT: Final = 0xC0107521
IO_COMMAND: Final = struct.Struct("<HHiQ")
"""What a command to a queue has: queue, tag, result, address of the tag's memory."""
IO_RESULT_AT: Final = 4
DESCRIPTION: Final = struct.Struct("<IIQQ")
"""What a request is, by tags in a queue's map: operation and flags, sectors, start, address."""

READ, WRITE, FLUSH, DISCARD, WRITE_ZEROES = 0, 1, 2, 3, 5
OPERATION: Final = 0xFF
FUA: Final = 1 << 13

DEAD, LIVE, QUIESCED = 0, 1, 2
"""States of a device: not served, not yet or any more; served; waiting for another server."""

_GET_INFO, _GET_FEATURES, _DELETE_LATER = 0x80207502, 0x80207513, 0x80207514
_ADD, _DELETE, _START, _STOP = 0xC0207504, 0xC0207505, 0xC0207506, 0xC0207507
_SET_PARAMS, _UPDATE_SIZE = 0xC0207508, 0xC0207515
_START_RECOVERY, _END_RECOVERY = 0xC0207510, 0xC0207511

_RECOVERY, _REISSUE, _IOCTL_ENCODE, _CAN_RESIZE = 1 << 3, 1 << 4, 1 << 6, 1 << 10
_NEEDED: Final = _RECOVERY | _REISSUE | _IOCTL_ENCODE

_ANY: Final = 0xFFFFFFFF
_LENT: Final[list[object]] = []
_ARGUMENT: Final = struct.Struct("<IHHQQHHI")
_INFO: Final = struct.Struct("<HHHHIIiIQQIIQQ")
_PARAMS: Final = struct.Struct("<II IBBBBIIQQ IIIIHH")
_READ_ONLY, _VOLATILE_CACHE, _CAN_FUA = 1, 1 << 2, 1 << 3
_PARAMS_BASIC_DISCARD: Final = 1 | 1 << 1

# 529d4d632788 without 011af85ccd87: to add a device, the kernel uses what it has not set up yet,
# and the caller never returns. Seen in 6.18.4, 6.18.5 and Ubuntu's 6.17.0-1015 and -1018.
_BROKEN: Final = re.compile(r"6\.18\.[45](?!\d)|6\.17\.0-10\d\d(?!\d)")


class UblkInfo(NamedTuple):
    """What the driver says of a device. `pid` is its server's, -1 for none."""

    number: int
    state: int
    pid: int
    mark: str

    @property
    def path(self) -> str:
        """The node of the block device."""
        return node(self.number)


def node(number: int) -> str:
    """Return the block device's node."""
    return f"/dev/ublkb{number}"


def queue_node(number: int) -> str:
    """Return the node by which a device is served."""
    return f"/dev/ublkc{number}"


def new_mark() -> str:
    """Return a mark that no device has."""
    return os.urandom(8).hex()


class UblkControl:
    """Commands about devices, each of which is over when its method returns.

    Several threads may use one. Raises OSError with the driver's errno, and TimeoutError for a
    command that does not end. A device that is being started is read from meanwhile: not to be
    called on the thread that answers.
    """

    def why_not(self) -> str:
        """Return why there can be no devices on this machine, "" where there can."""
        if os.geteuid() != 0:
            return "ublk devices need root"
        release = os.uname().release
        if _BROKEN.match(release):
            return f"kernel {release} never returns from adding a ublk device (mended in 6.18.6)"
        if not os.path.exists(CONTROL):
            return "this kernel has no ublk driver, or has not loaded it (modprobe ublk_drv)"
        try:
            if reason := probe_ring():
                return reason
            lacking = _NEEDED & ~self.features()
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                return "this kernel's ublk driver is older than 6.5"
            return f"{CONTROL}: {error.strerror}"
        return "this kernel's ublk driver cannot wait for another server" if lacking else ""

    def features(self) -> int:
        """Return what the driver can do, as bits."""
        answer = bytearray(8)
        self.command(_GET_FEATURES, _ANY, buffer=answer)
        return int.from_bytes(answer, "little")

    @property
    def can_resize(self) -> bool:
        """Whether `resize` works: since Linux 6.16."""
        return bool(self.features() & _CAN_RESIZE)

    def add(
        self,
        mark: str,
        *,
        depth: int,
        max_bytes: int,
        recoverable: bool,
        number: int | None = None,
    ) -> UblkInfo:
        """Make a device of one queue, which is to be started; by default with a free number.

        Where its server dies, all requests of a device fail and the driver stops it; if it is
        `recoverable` all waits for the next server, which is asked what the other did not answer.
        """
        flags = _IOCTL_ENCODE | (_RECOVERY | _REISSUE) * recoverable
        wanted = _ANY if number is None else number
        info = bytearray(
            _INFO.pack(1, depth, 0, 0, max_bytes, wanted, 0, 0, flags, int(mark, 16), 0, 0, 0, 0)
        )
        self.command(_ADD, wanted, buffer=info)
        return _parsed(info)

    def describe(
        self, number: int, *, sectors: int, block_size: int, max_bytes: int, read_only: bool
    ) -> None:
        """Say what a device is that is not started yet; it has a write cache, and FUA."""
        attributes = _VOLATILE_CACHE | _CAN_FUA | _READ_ONLY * read_only
        shift = block_size.bit_length() - 1
        most = _ANY // block_size * block_size >> 9
        # fmt: off
        params = bytearray(_PARAMS.pack(
            _PARAMS.size, _PARAMS_BASIC_DISCARD,
            attributes, shift, shift, shift, shift, max_bytes >> 9, 0, sectors, 0,
            0, block_size, most, most, 1, 0,
        ))
        # fmt: on
        self.command(_SET_PARAMS, number, buffer=params)

    def start(self, number: int) -> None:
        """Let a device appear, once this process waits for all of its requests."""
        self.command(_START, number, data=os.getpid())

    def stop(self, number: int) -> None:
        """Let a device vanish; what is asked of it from then on fails.

        Requests that its server has are waited for. Later writes of a page cache fail.
        """
        self.command(_STOP, number)

    def delete(self, number: int, *, wait: bool = True) -> None:
        """Remove a device, also one that runs. Wait until it is closed everywhere, and gone."""
        if not wait:
            try:
                self.command(_DELETE_LATER, number)
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
            else:
                return
        self.command(_DELETE, number)

    def resize(self, number: int, sectors: int) -> None:
        """Give a device another size."""
        self.command(_UPDATE_SIZE, number, data=sectors)

    def begin_recovery(self, number: int) -> None:
        """Take over a device whose server died; wait until the driver knows of that."""
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                self.command(_START_RECOVERY, number)
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise
                time.sleep(_BUSY_SECONDS)
            else:
                return

    def end_recovery(self, number: int) -> None:
        """Continue with a device, once this process waits for all of its requests."""
        self.command(_END_RECOVERY, number, data=os.getpid())

    def info(self, number: int) -> UblkInfo:
        """Return what is known of a device."""
        answer = bytearray(_INFO.size)
        self.command(_GET_INFO, number, buffer=answer)
        return _parsed(answer)

    def find(self, mark: str) -> UblkInfo | None:
        """Return the device that carries a mark."""
        for number in self.numbers():
            try:
                info = self.info(number)
            except OSError:  # it has gone meanwhile, or may not be looked at
                continue
            if info.mark == mark:
                return info
        return None

    def numbers(self) -> list[int]:
        try:
            names = os.listdir("/sys/class/ublk-char")
        except OSError:
            return []
        return sorted(int(name.removeprefix("ublkc")) for name in names)

    def command(
        self, code: int, number: int, *, data: int = 0, buffer: bytearray | None = None
    ) -> None:
        """Have the driver do something about a device; `buffer` is read by it, or written to."""
        size = len(buffer) if buffer else 0
        there = (ctypes.c_char * size).from_buffer(buffer) if buffer else None
        address = ctypes.addressof(there) if there else 0
        argument = _ARGUMENT.pack(number, 0xFFFF, size, address, data, 0, 0, 0)
        fd = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
        try:
            ring = Ring(1, wide=True)
            try:
                COMMAND.pack_into(ring.sqes, 0, OP_URING_CMD, fd, code, 0)
                ring.sqes[COMMAND.size : COMMAND.size + len(argument)] = argument
                result = _wait_for(ring)
            except TimeoutError:
                _LENT.append(there)  # the driver may write to it yet
                raise
            finally:
                ring.close()
        finally:
            os.close(fd)
        if result < 0:
            raise OSError(-result, os.strerror(-result))


def _wait_for(ring: Ring) -> int:
    deadline = time.monotonic() + SECONDS
    ring.queue([0])
    left = 1
    while not (found := ring.reap()):
        seconds = deadline - time.monotonic()
        if seconds <= 0:
            raise TimeoutError(errno.ETIMEDOUT, f"no answer of the driver within {SECONDS:g} s")
        left -= ring.enter(left, 1, seconds)
    return signed(found[1])


def _parsed(info: bytearray) -> UblkInfo:
    _, _, state, _, _, number, pid, _, _, mark, *_ = _INFO.unpack(info)
    return UblkInfo(number, state, pid, f"{mark:016x}")
