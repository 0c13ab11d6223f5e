"""Keeps a backup of one block device on another: blockbackup SOURCE STORE.

The store has two slots, and at its start a head for each. A backup goes into the slot that is
older; its head is written when all of the slot is durable. So there is a good backup at any moment.
"""

from __future__ import annotations

import os
import struct
import sys
import zlib

BLOCK = 64 << 10
HEAD = struct.Struct("<8sQQI")  # magic, generation, bytes, checksum of the data
MAGIC = b"blkbakup"


def size_of(fd: int) -> int:
    return os.lseek(fd, 0, os.SEEK_END)


def heads(store: int) -> list[tuple[int, int, int]]:
    """Return generation, size and checksum of both slots; generation 0 where there is none."""
    found = []
    for slot in range(2):
        magic, *values = HEAD.unpack(os.pread(store, HEAD.size, slot * BLOCK))
        found.append(tuple(values) if magic == MAGIC else (0, 0, 0))
    return found


def place(store: int, slot: int) -> int:
    """Return where the data of a slot begins."""
    room = (size_of(store) - 2 * BLOCK) // 2 // BLOCK * BLOCK
    return 2 * BLOCK + slot * room


def read(fd: int, at: int, count: int) -> bytes:
    """Return `count` bytes: a read that meets a bad sector is short, and the next one fails."""
    data = b""
    while len(data) < count:
        data += os.pread(fd, count - len(data), at + len(data))
    return data


def copy(source: int, store: int, slot: int) -> tuple[int, int]:
    """Copy all of the source into a slot; return its size and checksum."""
    size, checksum = size_of(source), 0
    if place(store, slot) + size > (place(store, 1) if slot == 0 else size_of(store)):
        raise SystemExit("blockbackup: the store is too small")
    for at in range(0, size, BLOCK):
        data = read(source, at, min(BLOCK, size - at))
        os.pwrite(store, data, place(store, slot) + at)
        checksum = zlib.crc32(data, checksum)
    os.fsync(store)
    return size, checksum


def backup(source_path: str, store_path: str) -> None:
    source, store = os.open(source_path, os.O_RDONLY), os.open(store_path, os.O_RDWR)
    try:
        generations = [head[0] for head in heads(store)]
        slot = generations.index(min(generations))
        size, checksum = copy(source, store, slot)
        head = HEAD.pack(MAGIC, max(generations) + 1, size, checksum)
        os.pwrite(store, head, slot * BLOCK)
        os.fsync(store)
    finally:
        os.close(source)
        os.close(store)


def restored(store_path: str) -> bytes:
    """Return the newest backup. Raises ValueError if it is damaged."""
    store = os.open(store_path, os.O_RDONLY)
    try:
        generation, size, checksum = newest = max(heads(store))
        data = read(store, place(store, heads(store).index(newest)), size)
    finally:
        os.close(store)
    if not generation or zlib.crc32(data) != checksum:
        raise ValueError(f"{store_path}: no good backup")
    return data


if __name__ == "__main__":
    backup(*sys.argv[1:3])
