"""Lists of small copies, and a check that every one of them arrived."""

from __future__ import annotations

import os
import random
from array import array
from pathlib import Path

from tests.bench.disks import Disks, settle
from tests.bench.process import BenchError

BLOCK = 4096


def scattered(blocks: int, count: int, *, neighbours: float = 0.0, seed: int = 7) -> array[int]:
    """Return `count` pairs of byte offsets, source then destination, no block used twice.

    With the chance `neighbours` a piece follows its predecessor on both disks, as pieces do when
    a program writes more than one block; such runs lie at random places on either disk.
    """
    if count > blocks:
        raise ValueError(f"{count} pieces do not fit into {blocks} blocks")
    dice = random.Random(seed)
    lengths: list[int] = []
    left = count
    while left:
        length = 1
        while length < left and dice.random() < neighbours:
            length += 1
        lengths.append(length)
        left -= length
    starts = [_places(lengths, blocks - count, dice) for _ in range(2)]
    pairs = array("Q")
    for length, source, dest in zip(lengths, *starts, strict=True):
        for i in range(length):
            pairs.append((source + i) * BLOCK)
            pairs.append((dest + i) * BLOCK)
    return pairs


def _places(lengths: list[int], spare: int, dice: random.Random) -> list[int]:
    """Return a block number for each run: a random order, with the spare blocks spread between."""
    order = list(range(len(lengths)))
    dice.shuffle(order)
    cuts = sorted(dice.randint(0, spare) for _ in order)
    starts = [0] * len(lengths)
    used = 0
    for run, cut in zip(order, cuts, strict=True):
        starts[run] = used + cut
        used += lengths[run]
    return starts


def check(disks: Disks, pairs: array[int]) -> None:
    """Raise BenchError unless every piece of the list is the same on both disks."""
    settle([disks.source, disks.dests[0]])
    wrong = 0
    source, dest = _open(disks.source), _open(disks.dests[0])
    try:
        for i in range(0, len(pairs), 2):
            if os.pread(source, BLOCK, pairs[i]) != os.pread(dest, BLOCK, pairs[i + 1]):
                wrong += 1
    finally:
        os.close(source)
        os.close(dest)
    if wrong:
        raise BenchError(f"{wrong} of {len(pairs) // 2} pieces are wrong after the copy")


def _open(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
