"""What is wrong with an exception store, and at which byte: more than the kernel itself looks for.

The kernel checks magic, version and chunk size (drivers/md/dm-snap-persistent.c) and believes every
entry. Everything else here is what no kernel would have written.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from itertools import chain
from typing import Final, NamedTuple

from dmcopy.cow.store import PIECE_BYTES, CowDevice, Store, read_bytes, read_header
from dmcopy.ondisk.exception_store import ENTRY_BYTES, HEADER_BYTES, StoreError, words

LISTED: Final = 1000
"""How many problems of one store are kept; a damaged one may have millions."""
_FEWEST_CHUNKS: Final = 3
_LOOKED_FOR: Final = 20


class Problem(NamedTuple):
    """Something at byte `offset` of the COW. Not an `error`: odd, but it harms nothing."""

    offset: int
    text: str
    is_error: bool = True

    def __str__(self) -> str:
        return f"byte {self.offset}: {self.text}"


class StoreReport:
    """What `check` found: the first `LISTED` problems, and how many there are.

    `valid` is the header's, None where there is no header that can be read.
    """

    def __init__(self) -> None:
        self.valid: bool | None = None
        self.errors = 0
        self.notes = 0
        self.problems: list[Problem] = []

    def add(self, problem: Problem) -> None:
        """Count a problem, and keep it while there are few."""
        if problem.is_error:
            self.errors += 1
        else:
            self.notes += 1
        if len(self.problems) < LISTED:
            self.problems.append(problem)


def check(
    device: CowDevice, *, origin_sectors: int | None = None, chunk_size: int | None = None
) -> StoreReport:
    """Look at everything on a COW. `chunk_size` is the one that its table has, in sectors."""
    report = StoreReport()
    try:
        header = read_header(device)
    except StoreError as error:
        report.add(Problem(error.offset, error.text))
        return report
    if header is None:
        report.add(Problem(0, "the magic is 0: there is no exception store yet", False))
        return report
    report.valid = header.valid
    if not header.valid:
        report.add(Problem(4, "the snapshot was invalidated, and is lost", False))
    if chunk_size not in (None, header.chunk_size):
        text = f"chunks are {header.chunk_size} sectors and not {chunk_size}"
        report.add(Problem(12, f"{text}: the kernel would go by this and not by its table"))
    for problem in problems(Store(device, header), origin_sectors=origin_sectors):
        report.add(problem)
    return report


def problems(store: Store, *, origin_sectors: int | None = None) -> Iterator[Problem]:
    """Yield everything that is wrong or odd, in the order of the store.

    With `origin_sectors`, chunks of the origin past its end, too. What makes the rest of the store
    unreadable ends it.
    """
    yield from _header(store)
    walk = _Walk(store, origin_sectors)
    area, full = 0, True
    while full:
        try:
            full = yield from walk.area(area)
        except StoreError as error:
            yield Problem(error.offset, error.text)
            return
        area += 1


def require_sound(store: Store, origin_sectors: int | None = None) -> None:
    """Raise MetadataError for the first error that there is in a store."""
    for problem in problems(store, origin_sectors=origin_sectors):
        if problem.is_error:
            text = f"{problem.text}; 'dmcopy cow check' lists everything"
            raise StoreError(problem.offset, text, store.path)


def _header(store: Store) -> Iterator[Problem]:
    chunk_bytes, block = store.layout.chunk_bytes, store.device.logical_block_size
    valid = int.from_bytes(read_bytes(store.device, 4, 4), "little")
    if valid > 1:
        yield Problem(4, f"valid is {valid}, where a kernel writes 0 or 1")
    if chunk_bytes % block:
        yield Problem(
            12, f"chunks of {chunk_bytes} bytes are not whole blocks of this device ({block} bytes)"
        )
    if store.chunks < _FEWEST_CHUNKS:
        yield Problem(
            12,
            f"the COW has {store.chunks} whole chunks of {store.header.chunk_size} sectors, and "
            f"holds no exception with less than {_FEWEST_CHUNKS}",
            is_error=store.chunks < 2,
        )
    if store.chunks:
        yield from _behind_header(store)


def _behind_header(store: Store) -> Iterator[Problem]:
    """The header's chunk is written whole, with zeroes; anything else came from elsewhere."""
    size = store.layout.chunk_bytes
    length = min(PIECE_BYTES, size)  # of powers of two: all pieces are as long
    for start in range(0, size, length):
        data = read_bytes(store.device, start, length)
        skip = HEADER_BYTES if not start else 0
        if (place := _first_set(data[skip:])) is not None:
            at = start + skip + place
            yield Problem(at, "not zero behind the header, where a kernel writes zeroes", False)
            return


def _first_set(data: bytes) -> int | None:
    """Return the place of the first byte that is not zero. Quick where there is none."""
    if data == bytes(len(data)):
        return None
    return len(data) - len(data.lstrip(b"\0"))


class _Seen:
    """Numbers that there were, a bit each: ten million chunks that are near each other take 10 MB.

    Bits are kept by pages of 512, and only pages that have one.
    """

    def __init__(self) -> None:
        self._pages: dict[int, int] = {}

    def add(self, number: int) -> bool:
        """Return whether a number is new, and remember it."""
        page, bit = number >> 9, 1 << (number & 511)
        bits = self._pages.get(page, 0)
        self._pages[page] = bits | bit
        return not bits & bit


class _Walk:
    """Goes through the entries, and remembers which chunks there were."""

    def __init__(self, store: Store, origin_sectors: int | None) -> None:
        self._store = store
        self._origin_sectors = origin_sectors
        self._per_area = store.layout.per_area
        self._olds = _Seen()
        self._news = _Seen()
        self._highest = 0
        self._looked = 0

    def area(self, area: int) -> Generator[Problem, None, bool]:
        """Yield an area's problems; return whether it is full."""
        base = area * self._per_area
        pieces = ((base + first, data) for first, data in self._store.pieces(area))
        for number, data in pieces:
            numbers = words(data)
            for place in range(0, len(numbers), 2):
                if numbers[place + 1] == 0:
                    rest = (number + place // 2, data[place * 8 :])
                    yield from self._behind_end(chain([rest], pieces))
                    return False
                yield from self._entry(number + place // 2, numbers[place], numbers[place + 1])
        return True

    def _behind_end(self, pieces: Iterable[tuple[int, bytes]]) -> Iterator[Problem]:
        """Look for what an area still has behind its end: the first of it, if any."""
        for number, data in pieces:
            if (place := _first_set(data)) is not None:
                text = "an entry behind the end of the list, left from before: it does not count"
                yield Problem(self._offset(number + place // ENTRY_BYTES), text, False)
                return

    def _entry(self, number: int, old: int, new: int) -> Iterator[Problem]:
        store, layout = self._store, self._store.layout
        at = self._offset(number)
        said = f"chunk {old} of the origin is said to be in chunk {new}"
        if new >= store.chunks:
            text = f"{said}, past the end of the COW, which has {store.chunks} chunks"
            yield Problem(at + 8, text)
        elif layout.is_metadata(new):
            area = (new - 1) // layout.stride
            yield Problem(at + 8, f"{said}, which holds metadata: area {area}")
        if not self._news.add(new):
            text = f"{said}, which {self._earlier(new, 1)} has already"
            yield Problem(at + 8, text)
        elif new < self._highest:
            text = f"{said}, after chunk {self._highest}: kernels from snapshot 1.12.0 on ascend"
            yield Problem(at + 8, text, False)
        self._highest = max(self._highest, new)
        if not self._olds.add(old):
            yield Problem(at, f"chunk {old} of the origin is in {self._earlier(old, 0)}, too")
        if self._origin_sectors is not None and old * layout.chunk_size >= self._origin_sectors:
            text = f"chunk {old} is past the end of the origin, at sector {self._origin_sectors}"
            yield Problem(at, text)

    def _earlier(self, chunk: int, column: int) -> str:
        """Name the first entry with a chunk; `column`: 0 for the origin's, 1 for the COW's.

        The store is read again for it, which is not worth it for every twin of very many.
        """
        self._looked += 1
        for entries in self._store.entries() if self._looked <= _LOOKED_FOR else ():
            chunks = entries.pairs[column::2]
            if chunk in chunks:
                return f"the entry at byte {entries.offset + chunks.index(chunk) * ENTRY_BYTES}"
        return "an entry before this one"

    def _offset(self, number: int) -> int:
        area, place = divmod(number, self._per_area)
        return self._store.area_offset(area) + place * ENTRY_BYTES
