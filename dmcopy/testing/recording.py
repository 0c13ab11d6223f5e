"""The writes and flushes of disks, recorded, and what a power cut at any moment would leave.

A `RecordedDisk` is put over any device and writes down each write with its data when it is sent and
when it is done, each flush, and marks: what the program had done by then. From the record the
content of the disks after a power cut at any moment is worked out, without running anything again:
what was flushed, and of the rest each write lost, kept or torn by sector.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from dmcopy.errors import UsageError
from dmcopy.io.layer import Layer
from dmcopy.io.reactor import Reactor
from dmcopy.io.region import Device, IoRegion
from dmcopy.io.request import FLUSH, READ, WRITE, Io
from dmcopy.ondisk.write_log import LogFlag
from dmcopy.testing.logfile import LogFile
from dmcopy.units import SECTOR_SHIFT, SECTOR_SIZE


class Sent(NamedTuple):
    """A write to disk number `disk` was sent."""

    disk: int
    sector: int
    data: bytes
    fua: bool


class Done(NamedTuple):
    """The write that is event number `write` was done, and with FUA is durable."""

    write: int


class Flushed(NamedTuple):
    """A flush of a disk was done that had been sent as event number `sent`."""

    disk: int
    sent: int


class Marked(NamedTuple):
    """The program said how far it was."""

    text: str


class Failed(NamedTuple):
    """The write that is event number `write` ended with an error: what it left is unknown."""

    write: int


Event = Sent | Done | Failed | Flushed | Marked


class Recording:
    """Events of disks, in the order in which they happened. `first`: what the disks held before."""

    def __init__(self, names: Sequence[str], first: Sequence[bytes]) -> None:
        self.names = list(names)
        self.first = list(first)
        self.events: list[Event] = []

    @classmethod
    def of_log(cls, log: LogFile, first: bytes, name: str = "disk") -> Recording:
        """Return what a log of writes says, for a disk that held `first` before it."""
        recording = cls([name], [first])
        note = recording.note
        for logged in log.entries():
            entry = logged.entry
            if entry.flags & LogFlag.MARK:
                note(Marked(entry.text.decode(errors="replace")))
                continue
            if entry.flags & LogFlag.FLUSH:  # of a write that has it, too, the flush is the first
                note(Flushed(0, len(recording.events)))
            if entry.nr_sectors:
                sector = entry.sector * log.block_sectors
                fua = bool(entry.flags & LogFlag.FUA)
                note(Done(note(Sent(0, sector, log.data(logged), fua))))
        return recording

    def note(self, event: Event) -> int:
        """Add an event; return its number."""
        self.events.append(event)
        return len(self.events) - 1

    def marks(self, at: int) -> tuple[str, ...]:
        """Return the marks before a moment."""
        return tuple(event.text for event in self.events[:at] if isinstance(event, Marked))


class RecordedDisk(Layer):
    """`below`, whose writes and flushes are noted as those of disk `number`."""

    def __init__(self, below: Device, reactor: Reactor, recording: Recording, number: int) -> None:
        super().__init__(below, reactor)
        self._recording = recording
        self._number = number

    def submit(self, request: Io) -> None:
        """Hand a request on, and note it. What is discarded counts as zeroed."""
        note = self._recording.note
        sent = len(self._recording.events)
        if request.op == WRITE:
            assert request.memory is not None
            data = request.memory.read(request.extents)
            note(Sent(self._number, request.sector, data, request.fua))
        elif request.op not in (READ, FLUSH):
            note(Sent(self._number, request.sector, bytes(request.count << SECTOR_SHIFT), False))

        def done(io: Io) -> None:
            request.error = io.error
            if request.op == FLUSH:
                if not io.error:
                    note(Flushed(self._number, sent))
            elif request.op != READ:
                note(Failed(sent) if io.error else Done(sent))
            request.notify(request)  # type: ignore[misc]

        region = IoRegion(self.below, request.sector, request.count)
        below = Io(request.op, region, request.memory, request.extents, done, fua=request.fua)
        self._reactor.submit(below)


FEW: Final = 8
"""Of so few writes each is also lost and kept alone."""
_TEXT: Final = re.compile(r"(\d+)((?:-\d+(?::[0-9a-f]+)?)*)")


@dataclass(frozen=True)
class Cut:
    """A power cut before event number `at`, and which writes that were not durable it undid.

    `kept`: of each of these, by its number, which sectors stayed, bit by bit; 0: none, it was lost.
    All others were kept. As text, `17-12-15:3`: at 17, write 12 lost, of write 15 two sectors kept.
    """

    at: int
    kept: Mapping[int, int] = field(default_factory=dict)

    def __str__(self) -> str:
        texts = (f"-{write}" + (f":{bits:x}" if bits else "") for write, bits in self.kept.items())
        return f"{self.at}{''.join(texts)}"

    @classmethod
    def parse(cls, text: str) -> Cut:
        """Return what `str` gives back. Raises UsageError."""
        if (found := _TEXT.fullmatch(text)) is None:
            raise UsageError(f"{text!r} is no power cut: one is such as 17 or 17-12-15:3")
        kept = {}
        for one in found[2].split("-")[1:]:
            write, _, bits = one.partition(":")
            kept[int(write)] = int(bits or "0", 16)
        return cls(int(found[1]), kept)


def fates(
    at: int, sectors: Mapping[int, int], seeds: Iterable[int]
) -> Iterator[tuple[int | None, dict[int, int]]]:
    """Yield what a power cut at `at` may undo of writes whose sizes are `sectors`: see `Cut.kept`.

    Nothing, everything, of a few writes each alone and all but each, and what seeds say, with them.
    """
    yield None, {}
    if not sectors:
        return
    yield None, dict.fromkeys(sectors, 0)
    if 1 < len(sectors) <= FEW:
        for number in sectors:
            yield None, {number: 0}
            yield None, {other: 0 for other in sectors if other != number}
    for seed in seeds:
        yield seed, _fate(random.Random(f"{seed} {at}"), sectors)


def _fate(rng: random.Random, sectors: Mapping[int, int]) -> dict[int, int]:
    kept = {}
    tears = rng.random() < 0.5
    for number, count in sectors.items():
        whole = (1 << count) - 1
        bits = rng.getrandbits(count) if tears and count > 1 else rng.choice((0, whole))
        if bits != whole:
            kept[number] = bits
    return kept


class Moment:
    """The disks after events 0 to `at` - 1: durable content, and writes that may be lost.

    `next` goes one event further. `version` changes whenever what is durable does.
    """

    def __init__(self, recording: Recording) -> None:
        self.at = 0
        self.version = 0
        self.marks: tuple[str, ...] = ()
        self.durable = [bytearray(content) for content in recording.first]
        self._events = recording.events
        self._pending: list[dict[int, Sent]] = [{} for _ in recording.first]
        self._done: dict[int, int] = {}

    def pending(self) -> dict[int, Sent]:
        """Return the writes that a power cut may lose or tear, by their numbers."""
        found: dict[int, Sent] = {}
        for writes in self._pending:
            found |= {
                number: write
                for number, write in writes.items()
                if not (write.fua and number in self._done)
            }
        return found

    def next(self) -> bool:
        """Let one more event happen; return whether what a power cut may leave is other then."""
        event = self._events[self.at]
        self.at += 1
        match event:
            case Sent():
                self._pending[event.disk][self.at - 1] = event
                return True
            case Done():
                write = self._events[event.write]
                assert isinstance(write, Sent)
                # In the order in which they were done, which of two to one place is the later.
                pending = self._pending[write.disk]
                pending[event.write] = pending.pop(event.write)
                self._done[event.write] = self.at - 1
                self.version += write.fua
                return write.fua
            case Failed():
                return False
            case Flushed():
                self._flush(event)
                return True
            case Marked():
                self.marks += (event.text,)
                return True

    def _flush(self, event: Flushed) -> None:
        pending = self._pending[event.disk]
        for number, write in list(pending.items()):
            if self._done.get(number, event.sent) < event.sent:
                start = write.sector << SECTOR_SHIFT
                self.durable[event.disk][start : start + len(write.data)] = write.data
                del pending[number]
                self.version += 1

    def kept(self, cut: Cut, disk: int) -> Iterator[tuple[int, bytes]]:
        """Yield the writes that a power cut now leaves of a disk's cache: sector, data."""
        for number, write in self._pending[disk].items():
            bits = cut.kept.get(number)
            if bits is None:
                yield write.sector, write.data
                continue
            for sector in range(len(write.data) >> SECTOR_SHIFT):
                if bits >> sector & 1:
                    at = sector << SECTOR_SHIFT
                    yield write.sector + sector, write.data[at : at + SECTOR_SIZE]

    def image(self, cut: Cut, disk: int) -> bytearray:
        """Return the content of a disk after a power cut now."""
        image = self.durable[disk][:]
        for sector, data in self.kept(cut, disk):
            start = sector << SECTOR_SHIFT
            image[start : start + len(data)] = data
        return image


def moments(recording: Recording) -> Iterator[Moment]:
    """Yield the moments at which a power cut may leave something new; the same object each time."""
    moment = Moment(recording)
    yield moment
    for _ in range(len(recording.events)):
        if moment.next():
            yield moment
