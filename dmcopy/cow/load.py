"""Loading a whole store into memory, refusing one that contradicts itself."""

from __future__ import annotations

from array import array
from operator import lt

from dmcopy.cow.store import Entries, Store
from dmcopy.ondisk.exception_store import StoreError
from dmcopy.ondisk.exceptions import ExceptionTable


def load(
    store: Store, *, origin_sectors: int | None = None, kept: list[Entries] | None = None
) -> ExceptionTable:
    """Return every exception of a store; `kept` gets them as they are there.

    Raises MetadataError, naming the byte, for one that points past an end or into metadata, and for
    two of one chunk: what the kernel would make of those is no snapshot of anything.
    """
    if not store.header.valid:
        raise StoreError(
            4,
            "the snapshot was invalidated and is lost: what was overwritten after that is not "
            "here; 'dmcopy cow extract --changed-only' saves what is",
            store.path,
        )
    return load_any(store, origin_sectors=origin_sectors, kept=kept)


def load_any(
    store: Store, *, origin_sectors: int | None = None, kept: list[Entries] | None = None
) -> ExceptionTable:
    """Load as `load` does, from an invalidated store, too: what it has was saved before it was."""
    table = ExceptionTable()
    count = highest = 0
    checked = False
    for entries in store.entries():
        if not checked and not _looks_sound(store, entries, highest, origin_sectors):
            _require_sound(store, origin_sectors)  # slower: it may only be out of order
            checked = True
        table.extend(entries.pairs)
        if kept is not None:
            kept.append(entries)
        count += len(entries.pairs) // 2
        highest = entries.pairs[-1]
    if len(table) != count:
        _require_sound(store, origin_sectors)
    return table


def _require_sound(store: Store, origin_sectors: int | None) -> None:
    from dmcopy.cow.check import require_sound  # nearly never needed, and costs milliseconds

    require_sound(store, origin_sectors)


def _looks_sound(store: Store, entries: Entries, highest: int, origin_sectors: int | None) -> bool:
    """Check what can be checked quickly: exceptions in ascending order on the COW are no twins."""
    news, layout = entries.news, store.layout
    if news[0] <= highest or news[-1] >= store.chunks:
        return False
    if _is_consecutive(news):  # as it nearly always is
        if news[0] + (1 - news[0]) % layout.stride <= news[-1]:
            return False
    elif not all(map(lt, news, news[1:])) or any(new % layout.stride == 1 for new in news):
        return False
    return origin_sectors is None or max(entries.olds) * layout.chunk_size < origin_sectors


def _is_consecutive(numbers: array[int]) -> bool:
    first, last = numbers[0], numbers[-1]
    if last - first != len(numbers) - 1:
        return False
    return numbers == array("Q", range(first, last + 1))
